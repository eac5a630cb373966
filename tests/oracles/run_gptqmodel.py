# SPDX-License-Identifier: Apache-2.0
"""Loads a folder that `woq.export` wrote into transformers with GPTQModel, on the CPU, for
tests/python/test_export_gptqmodel.py.

    python run_gptqmodel.py FOLDER TOKENS.npy OUT.npz

Run with the Python of an environment that has gptqmodel and optimum, and not woq. OUT gets the
logits [tokens, vocabulary] and the class of the quantized layers.
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from transformers import AutoModelForCausalLM


def main() -> None:
    folder, tokens, out = sys.argv[1:]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map="cpu")
    with torch.no_grad():
        logits = model(torch.from_numpy(np.load(tokens))[None]).logits[0].float()
    layer = type(model.model.layers[0].mlp.down_proj)
    np.savez(out, logits=logits.numpy(), layer=f"{layer.__module__}.{layer.__name__}")


if __name__ == "__main__":
    main()
