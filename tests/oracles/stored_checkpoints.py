# SPDX-License-Identifier: Apache-2.0
"""Small checkpoints of every form of a stored matrix, as the woq that runs this script saves them.

    python tests/oracles/stored_checkpoints.py tests/models/stored_2

There is a folder for each version of the format. Those of version 1, in tests/models/stored, were
written at commit c2719c8. None are to be written again: what they pin is that later versions read
the same bytes, and write them if the version is their own. `digests.json` has the SHA-256 of the
float32 values that each layer stood for, `logits.json` the logits of `IDS` (version 1 has none).
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import woq

_IDS = [[(7 * i + 3 * j) % 16 for j in range(12)] for i in range(4)]
CALIBRATION = [torch.tensor([ids]) for ids in _IDS]

# Group size 24 leaves a shorter last group in 32 and in 40 columns.
CASES = {
    "int4_clip_asym": woq.WeightOnlyQuantConfig(
        weight_dtype="int4_clip", scheme="asym", group_size=16, scale_dtype="bf16"
    ),
    "int4_fullrange_double": woq.WeightOnlyQuantConfig(
        weight_dtype="int4_fullrange", group_size=16, use_double_quant=True
    ),
    "nf4_double": woq.WeightOnlyQuantConfig(
        weight_dtype="nf4", group_size=24, use_double_quant=True
    ),
    "int8_fp16": woq.WeightOnlyQuantConfig(weight_dtype="int8", group_size=-1, scale_dtype="fp16"),
    "gptq_desc_act": woq.GPTQConfig(
        weight_dtype="int4_clip", group_size=16, desc_act=True, dataset=CALIBRATION
    ),
    "awq": woq.AwqConfig(weight_dtype="int4_clip", group_size=16, dataset=CALIBRATION),
    "hqq": woq.HqqConfig(weight_dtype="int4_clip", group_size=16),
}
# The only one that is more than one file.
SHARDED = "int4_clip_asym"
IDS = torch.tensor([_IDS[1]])


def build_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


def digests(model: torch.nn.Module) -> dict[str, str]:
    """Of the dequantized weight of each quantized layer, by name."""
    return {
        name: hashlib.sha256(module.dequantize().numpy().tobytes()).hexdigest()
        for name, module in model.named_modules()
        if isinstance(module, woq.WeightOnlyLinear)
    }


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for name, config in CASES.items():
        model = woq.quantize(build_model(), config)
        size = "4KB" if name == SHARDED else "1GB"
        woq.save_pretrained(model, folder / name, max_shard_size=size)
        with torch.no_grad():
            values = model(IDS).logits[0].tolist()
        (folder / name / "logits.json").write_text(json.dumps(values) + "\n")
        (folder / name / "generation_config.json").unlink(missing_ok=True)
        (folder / name / "digests.json").write_text(json.dumps(digests(model), indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
