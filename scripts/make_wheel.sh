#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# make_wheel.sh: puts the wheel that install_woq.sh has built into dist/, under the tag of the oldest
# systems that it runs on. auditwheel finds that tag, and fails where it is newer than manylinux_2_28.
. "$(dirname "$0")/common.sh"

say "the wheel for others, in dist/"
rm -rf dist
python -m auditwheel repair --plat manylinux_2_28_x86_64 --wheel-dir dist build/wheel/woq-*.whl
python -m auditwheel show dist/woq-*.whl
