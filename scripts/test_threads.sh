#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# test_threads.sh: the tests of teams of threads under ThreadSanitizer. With Clang, because GCC's
# OpenMP runtime is not instrumented and its barriers would look like races; LLVM's tells
# ThreadSanitizer about them through its tool Archer.
. "$(dirname "$0")/common.sh"

CLANG=${CLANG:-clang-16}
scripts/require_system.sh tests clang
say "C++ tests of threads under ThreadSanitizer"
cmake -S . -B build/threads -G Ninja -DWOQ_WERROR="$WERROR" -DWOQ_SANITIZE=thread \
  -DCMAKE_CXX_COMPILER="${CLANG/clang/clang++}" -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG=-O1 \
  -DWOQ_TESTS="core/parallel_test;linear_threads_test;linalg/linalg_test" \
  >build/threads.configure.log 2>&1 || {
  cat build/threads.configure.log
  exit 1
}
cmake --build build/threads -j "$JOBS" --target woq_tests
# libomp itself is not instrumented: what it does inside is Archer's to say. A fork of a process
# that has threads is what one of the tests is about, so it does not end the program.
log=build/threads/log
OMP_NUM_THREADS=4 ARCHER_OPTIONS=verbose=1 \
  TSAN_OPTIONS="ignore_noninstrumented_modules=1 die_after_fork=0 halt_on_error=1" \
  build/threads/woq_tests --gtest_brief=1 2>&1 | tee "$log"
# Without Archer, or without a test, the run proves nothing.
grep -q 'Archer detected OpenMP application with TSan' "$log" ||
  die "ThreadSanitizer: Archer was not loaded; it belongs to libomp-${CLANG#clang-}-dev"
grep -Eq '\[  PASSED  \] [1-9][0-9]* tests?\.' "$log" || die "ThreadSanitizer: no test ran"
