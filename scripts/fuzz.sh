#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# fuzz.sh [SECONDS|RUNSx]: builds the fuzzers of tests/fuzz with Clang and runs each for SECONDS
# (default 30), or for so many inputs (fuzz.sh 10000000x), from the committed corpus and from what
# earlier runs found (build/fuzz/found). A crash, a sanitizer's finding, an input that takes 10
# seconds or 1 GiB is a failure; the input is kept.
. "$(dirname "$0")/common.sh"

case ${1:-30} in
  # Weighing inputs by how rare their branches are takes more than half of the time.
  *x) limit=(-runs="${1%x}" -entropic=0) ;;
  *) limit=(-max_total_time="${1:-30}") ;;
esac
CLANG=${CLANG:-clang-16}
scripts/require_system.sh clang
python3 tests/fuzz/make_corpora.py --check
say "fuzzing every reader of foreign bytes, ${1:-30} seconds or inputs (x) each"
# Every error is an exception, at which the address sanitizer would search the frames that it keeps
# to find uses after a return: half of the time. The C++ tests run with that check (test_clang.sh).
export ASAN_OPTIONS=detect_stack_use_after_return=0
cmake -S . -B build/fuzz -G Ninja -DWOQ_WERROR="$WERROR" -DWOQ_BUILD_TESTS=OFF \
  -DWOQ_BUILD_FUZZERS=ON -DCMAKE_CXX_COMPILER="${CLANG/clang/clang++}" >build/fuzz.configure.log 2>&1 || {
  cat build/fuzz.configure.log
  exit 1
}
cmake --build build/fuzz -j "$JOBS" --target fuzzers
for source in tests/fuzz/*_fuzz.cc; do
  name=$(basename "$source" .cc)
  found=build/fuzz/found/$name
  mkdir -p "$found"
  log=build/fuzz/$name.log
  "build/fuzz/$name" "${limit[@]}" -timeout=10 -rss_limit_mb=1024 -max_len=4096 \
    -artifact_prefix="build/fuzz/$name-" -print_final_stats=1 -verbosity=0 \
    "$found" "tests/fuzz/corpora/${name%_fuzz}" >"$log" 2>&1 || {
    tail -60 "$log"
    die "$name failed; run it on the input that it names: build/fuzz/$name INPUT"
  }
  # A fuzzer that did not run proves nothing.
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  [ "${runs:-0}" -gt 1000 ] || die "$name ran ${runs:-0} inputs only; see $log"
  echo "$name: $runs inputs, no failure"
done
