#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# bench.sh BUILD_DIR: builds the C++ benchmarks there, prints the machine's limits, then the bars.
. "$(dirname "$0")/common.sh"

build_dir=$1
scripts/require_system.sh benchmarks
say "C++ benchmarks in $build_dir"
mkdir -p "$build_dir"
cmake -S . -B "$build_dir" -G Ninja -DWOQ_WERROR="$WERROR" -DWOQ_BUILD_TESTS=OFF \
  -DWOQ_BUILD_BENCHMARKS=ON >"$build_dir.configure.log" 2>&1 || {
  cat "$build_dir.configure.log"
  exit 1
}
cmake --build "$build_dir" -j "$JOBS"
"$build_dir/roofline"
"$build_dir/bars"
