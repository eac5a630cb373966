#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# test_clang.sh: the library and those C++ tests that between them instantiate every layer, built
# with Clang, warnings as errors, and run. All tests with Clang: make test-all.
. "$(dirname "$0")/common.sh"

export WERROR=ON
CLANG=${CLANG:-clang-16}
scripts/require_system.sh clang
scripts/test_cpp.sh build/clang-part -DCMAKE_CXX_COMPILER="${CLANG/clang/clang++}" \
  -DWOQ_TESTS="core/*;io/*;linalg/linalg_test;pack/*;quant/rtn_test;quant/gptq_test;kernels/schemes_test;linear_test"
