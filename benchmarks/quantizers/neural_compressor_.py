# SPDX-License-Identifier: Apache-2.0
"""Neural Compressor's PyTorch side (github.com/intel/neural-compressor): GPTQ, AWQ, TEQ, RTN.

AWQ and TEQ scale the inputs of a layer; where that is not folded into the layer before, the scale
is part of the dequantized weight here, and is not counted in its bits. TEQ leaves the training to
its user: the loop here is the paper's (Adam, language-model loss), on the calibration samples.
"""

from __future__ import annotations

from typing import Any

import torch

from . import Made, Task, batches, dequantize, grouped_bits

PACKAGE = "neural-compressor-pt"
FORMATS = ("int4_sym", "int4_asym")
OPTIONS: dict[str, Any] = {
    "algorithm": "GPTQ",
    "act_order": False,
    "hybrid_order": False,
    "use_mse_search": False,
    "folding": False,
    "steps": 1000,
    "lr": 1e-3,
}
_FIELDS = {
    "GPTQ": ("act_order", "hybrid_order", "use_mse_search"),
    "AWQ": ("folding",),
    "TEQ": ("folding",),
    "RTN": ("use_mse_search",),
}


def quantize(task: Task) -> Made:
    from neural_compressor.torch import quantization

    options, asym = task.options, task.format == "int4_asym"
    algorithm = options["algorithm"]
    model = task.model()
    model.config.use_cache = False
    bits = grouped_bits(model, task.group_size, 4, 4 if asym else 0)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    config = getattr(quantization, f"{algorithm}Config")(
        bits=4,
        use_sym=not asym,
        group_size=task.group_size,
        **{name: options[name] for name in _FIELDS[algorithm]},
    )
    samples = batches(task.samples, 1)
    with task.measured():
        prepared = quantization.prepare(model, config, example_inputs=samples[0]["input_ids"])
        if algorithm == "TEQ":
            _train(prepared, samples, options)
        elif algorithm != "RTN":
            with torch.no_grad():
                for sample in samples:
                    prepared(**sample)
        made = quantization.convert(prepared)

    weights = {
        name: parameter.detach()
        for name, parameter in made.named_parameters()
        if name in before and not torch.equal(parameter, before[name])
    }
    for name, module in made.named_modules():
        if type(module).__name__ == "INCWeightOnlyLinear":
            parts = module.unpack()
            zeros = parts["zp"].float() if parts["zp"] is not None else 0.0
            groups = module.g_idx
            if groups is None:
                groups = torch.arange(module.in_features) // task.group_size
            weight = dequantize(parts["int_weight"], parts["scales"], zeros, groups.long())
            outer = name.removesuffix(".linear")
            if outer != name:
                weight = weight * made.get_submodule(outer).input_scale.float()[None]
            weights[f"{outer}.weight"] = weight
    return Made(weights, bits)


def _train(model: Any, samples: list[dict[str, torch.Tensor]], options: dict[str, Any]) -> None:
    """Adam on the language model's own loss, the rate falling linearly after a warm-up."""
    from transformers import get_scheduler

    steps = options["steps"]
    trained = list(model._prepare_trained_alphas.values())
    optimizer = torch.optim.Adam(trained, lr=options["lr"], betas=(0.9, 0.9))
    schedule = get_scheduler("linear", optimizer, int(0.05 * steps), steps)
    model.train()
    for step in range(steps):
        sample = samples[step % len(samples)]
        model(**sample, labels=sample["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval()
