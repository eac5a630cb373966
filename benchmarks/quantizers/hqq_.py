# SPDX-License-Identifier: Apache-2.0
"""HQQ (github.com/dropbox/hqq): no data; scale and zero point of a group are both 16-bit floats.

Groups run over the flattened weight, so where K is no multiple of the group size they straddle
rows.
"""

from __future__ import annotations

from typing import Any

import torch
from quality_exchange import linear_layers

from . import Made, Task

PACKAGE = "hqq"
FORMATS = ("int4_asym",)
OPTIONS: dict[str, Any] = {"axis": 1}  # 1: groups along K, as its kernels need; 0: along N


def quantize(task: Task) -> Made:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear, Quantizer

    config = BaseQuantizeConfig(nbits=4, group_size=task.group_size, axis=task.options["axis"])
    layers = linear_layers(task.model())
    with task.measured():
        made = {
            name: HQQLinear(layer, config, compute_dtype=torch.float16, device="cpu")
            for name, layer in layers.items()
        }
    weights, bits = {}, 0
    for name, layer in made.items():
        meta = layer.meta
        codes = Quantizer.unpack[meta["packing"]](layer.W_q, dtype=torch.float32)
        weight = (codes - meta["zero"].float()) * meta["scale"].float()
        weights[f"{name}.weight"] = weight.reshape(meta["shape"])
        bits += codes.numel() * 4 + 16 * (meta["zero"].numel() + meta["scale"].numel())
    return Made(weights, bits)
