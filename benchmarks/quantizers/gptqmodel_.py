# SPDX-License-Identifier: Apache-2.0
"""GPTQModel (github.com/ModelCloud/GPTQModel): GPTQ with its group-aware order of the columns.

GPTQMODEL_CPU_WORKERS=2 in the environment, or it starts more threads than two cores can serve.
"""

from __future__ import annotations

from typing import Any

from . import Made, Task, batches, gptq_weights, grouped_bits

PACKAGE = "gptqmodel"
FORMATS = ("int4_sym", "int4_asym")
OPTIONS: dict[str, Any] = {
    "batch_size": 8,  # its default, 1, is slower and gives the same second moments
    "desc_act": False,
    "act_group_aware": True,
}


def quantize(task: Task) -> Made:
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    asym = task.format == "int4_asym"
    bits = grouped_bits(task.model(), task.group_size, 4, 4 if asym else 0)
    config = QuantizeConfig(
        bits=4,
        group_size=task.group_size,
        sym=not asym,
        desc_act=task.options["desc_act"],
        act_group_aware=task.options["act_group_aware"],
        device="cpu",
    )
    model = GPTQModel.load(str(task.protocol), config)
    samples = batches(task.samples, 1)
    with task.measured():
        model.quantize(samples, batch_size=task.options["batch_size"], backend=BACKEND.TORCH)
    model.save(str(task.scratch))
    return Made(gptq_weights(task.scratch), bits)
