#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# test_cpp.sh BUILD_DIR [CMAKE_OPTION...]: builds the C++ tests there and runs them.
. "$(dirname "$0")/common.sh"

build_dir=$1
shift
scripts/require_system.sh tests
say "C++ tests in $build_dir"
mkdir -p "$build_dir"
cmake -S . -B "$build_dir" -G Ninja -DWOQ_BUILD_TESTS=ON \
  -DWOQ_WERROR="$WERROR" "$@" >"$build_dir.configure.log" 2>&1 || {
  cat "$build_dir.configure.log"
  exit 1
}
grep -i 'woq: .*onednn' "$build_dir.configure.log" || true
cmake --build "$build_dir" -j "$JOBS"
ctest --test-dir "$build_dir" --output-on-failure -j "$JOBS"
