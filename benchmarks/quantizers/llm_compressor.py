# SPDX-License-Identifier: Apache-2.0
"""llm-compressor (github.com/vllm-project/llm-compressor): GPTQ (with its default, static order of
the columns by activation), AWQ folded into the layers before, or plain rounding."""

from __future__ import annotations

from typing import Any

import torch
from quality_exchange import linear_layers

from . import Made, Task, batches, dequantize, grouped_bits

PACKAGE = "llmcompressor"
FORMATS = ("int4_sym", "int4_asym")
OPTIONS: dict[str, Any] = {
    "algorithm": "GPTQ",  # GPTQ, AWQ, AWQ+GPTQ or RTN
    "batch_size": 8,
    "duo_scaling": "both",  # what its own example of AWQ has
    "observer": None,  # "mse" searches the range
}


def quantize(task: Task) -> Made:
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from torch.utils.data import DataLoader

    options, asym = task.options, task.format == "int4_asym"
    weights = {
        "num_bits": 4,
        "type": "int",
        "symmetric": not asym,
        "strategy": "group",
        "group_size": task.group_size,
    }
    if options["observer"]:
        weights["observer"] = options["observer"]
    groups = {"all": {"targets": ["Linear"], "weights": weights}}
    steps = options["algorithm"].split("+")
    rounding = GPTQModifier if "GPTQ" in steps else QuantizationModifier
    recipe = [rounding(config_groups=groups, ignore=["lm_head"])]
    if "AWQ" in steps:
        recipe.insert(0, AWQModifier(duo_scaling=options["duo_scaling"]))

    model = task.model()
    bits = grouped_bits(model, task.group_size, 4, 4 if asym else 0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    samples = DataLoader(batches(task.samples, options["batch_size"]), batch_size=None)
    with task.measured():
        oneshot(
            model=model,
            tokenizer=str(task.protocol),
            recipe=recipe,
            dataset=samples,
            pipeline="sequential",
        )

    made = {
        name: parameter.detach()
        for name, parameter in model.named_parameters()
        if name in before and not torch.equal(parameter, before[name])
    }
    for name, layer in linear_layers(model).items():
        scales = layer.weight_scale.detach().float()  # [N, groups of a row]
        zeros = layer.weight_zero_point.float() if asym else torch.zeros_like(scales)
        columns = torch.arange(layer.in_features) // task.group_size
        places = layer.weight.detach() / scales[:, columns] + zeros[:, columns]
        codes = places.round().clamp(-8, 7)
        made[f"{name}.weight"] = dequantize(codes, scales, zeros, columns)
    return Made(made, bits)
