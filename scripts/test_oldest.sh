#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The tests of the transformers integration against the oldest version that we support
# (pyproject.toml, extra "transformers"), in an environment of its own.
. "$(dirname "$0")/common.sh"

oldest=$(sed -n 's/^transformers = .*"transformers>=\([0-9.]*\),.*/\1/p' pyproject.toml)
[ -n "$oldest" ] || die "no lower bound of transformers in pyproject.toml"
say "oldest supported transformers: $oldest"
environment=build/oldest
[ -x "$environment/bin/python" ] || python3 -m venv "$environment"
"$environment/bin/python" -m pip install -q "$TORCH_REQUIREMENT" "transformers==$oldest.*" \
  'accelerate>=1.1' 'gguf>=0.10' 'hypothesis>=6.100' 'ml_dtypes>=0.5' 'psutil>=5.9' 'pytest>=9.0' \
  build/wheel/woq-*.whl
"$environment/bin/python" -m pytest tests/python/test_{autoload,config,linear,quantize,saving,transformers}.py
