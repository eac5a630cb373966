#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# test_emulated_amx.sh: runs the C++ tests that meet the amx target with AMX in software
# (tests/emulation/run_amx.py). The rest of the CPU is real, so it needs AVX-512 BF16.
. "$(dirname "$0")/common.sh"

# Kernels of the target; layers, which choose it, and their threads; what the CPU is said to have.
FILTER=${FILTER:-*amx*:*Linear*:Select.*:Target.*:Cpu.*}

say "AMX by emulation"
if [ "$(uname -m)" != x86_64 ]; then
  echo "SKIPPED: this machine is not x86-64"
  exit 0
fi
if grep -q amx_tile /proc/cpuinfo; then
  echo "SKIPPED: this CPU has AMX and ran those tests natively"
  exit 0
fi
if ! grep -q avx512_bf16 /proc/cpuinfo; then
  echo "SKIPPED: without AVX-512 BF16 nothing on this machine tests the amx target"
  exit 0
fi
cmake -S . -B build/cpp -G Ninja -DWOQ_WERROR="$WERROR" >/dev/null
cmake --build build/cpp -j "$JOBS" --target woq_tests
mkdir -p build/emulation
run() {
  python3 tests/emulation/run_amx.py build/cpp/woq_tests --gtest_brief=1 \
    --gtest_filter="$1" | tee build/emulation/amx.log
}

run "$FILTER"
# An empty run, or one whose kernels were all skipped, proves nothing.
grep -Eq '\[  PASSED  \] [1-9][0-9]* tests?\.' build/emulation/amx.log &&
  grep -Eq 'AMX emulation: [1-9][0-9]* instructions' build/emulation/amx.log ||
  die "AMX emulation: no tile was multiplied; is the filter '$FILTER' still right?"

say "AMX by emulation: an operating system that refuses it"
WOQ_TEST_REFUSE_AMX=1 run '*SmallOnes*_amx:Linear.AForcedTarget*'
grep -q 'this CPU lacks amx_tile, amx_int8, amx_bf16' build/emulation/amx.log ||
  die "AMX emulation: the kernels run without permission"
