#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the wheel (incrementally, in build/python) and installs it: what is tested is what ships.
. "$(dirname "$0")/common.sh"

say "building and installing the woq wheel"
portable=OFF  # bindings/portable.cc knows glibc on x86-64
[ "$(uname -m)" != x86_64 ] || ! getconf GNU_LIBC_VERSION >/dev/null 2>&1 || portable=ON
rm -rf build/wheel
CMAKE_BUILD_PARALLEL_LEVEL=$JOBS "$VENV/bin/python" -m pip wheel -q . \
  --no-build-isolation --no-deps --wheel-dir build/wheel \
  -C build-dir=build/python -C cmake.define.WOQ_WERROR="$WERROR" -C cmake.define.WOQ_PORTABLE="$portable"
"$VENV/bin/python" -m pip install -q --no-deps --force-reinstall build/wheel/woq-*.whl
