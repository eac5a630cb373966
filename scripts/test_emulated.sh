#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# test_emulated.sh [--force]: runs the C++ tests of the avx512 and avx512_vnni targets on an emulated
# CPU (tests/emulation). Machines that have AVX-512 run them natively, and skip this unless forced.
. "$(dirname "$0")/common.sh"

# Linear algebra and attention run there too, for bfloat16 in the fp32 arithmetic that gives the bits
# of BF16 instructions.
#
# Left out: what this CPU model lacks (BF16), what is too long for an emulator (minutes each; of two
# tests one weight kind stays), what needs threads, mutations, which test the tests, fp16 output,
# because bochs 2.7's vcvtps2ph rounds ties away from zero (fuzzing draws such outputs too), and
# memory protection, which the mini kernel lacks.
LEFT_OUT="*avx512_bf16*:*KernelShapes.FullGrid*:*KernelMutations*:*KernelTypes.AllOfXAndC*"
LEFT_OUT+=":*KernelShapes.ManyRows*:*KernelShapes.EveryBlockLength*:*NoActivationsAreRead*"
LEFT_OUT+=":*Fuzz.*:*LinearTargets.ResidualsAreAdded*"
LEFT_OUT+=":*Attentions.EveryShape*:*Attentions.AreTheSameForAnyNumberOfThreads*"
for long in KernelShapes.FullLong KernelPortions.AreWrittenAndNothingElse; do
  LEFT_OUT+=":*$long*_t4_*:*$long*_u8_*"
done
FILTER=${FILTER:-*avx512*-$LEFT_OUT}

say "AVX-512 by emulation"
if [ "$(uname -m)" != x86_64 ]; then
  echo "SKIPPED: this machine is not x86-64"
  exit 0
fi
if [ "${1:-}" != --force ] && grep -q avx512_vnni /proc/cpuinfo; then
  echo "SKIPPED: this CPU has AVX-512 and ran those tests natively (make test-emulated forces it)"
  exit 0
fi
if ! scripts/require_system.sh tests emulation; then
  echo "SKIPPED: without these packages nothing on this machine tests the AVX-512 targets"
  exit 0
fi
cmake -S . -B build/cpp -G Ninja -DWOQ_WERROR="$WERROR" >/dev/null
cmake --build build/cpp -j "$JOBS" --target woq_tests_static
mkdir -p build/emulation
"$VENV/bin/python" tests/emulation/run.py --timeout 900 \
  build/cpp/woq_tests_static --gtest_brief=1 --gtest_filter="$FILTER" | tee build/emulation/log
# An empty run, or one whose targets were all skipped, proves nothing.
grep -Eq '\[  PASSED  \] [1-9][0-9]* tests?\.' build/emulation/log ||
  die "emulation: no test ran; is the filter '$FILTER' still right?"
