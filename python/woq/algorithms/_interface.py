# SPDX-License-Identifier: Apache-2.0
"""What the driver and the algorithms say to each other."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from .. import _native
from .._selection import Target
from ..config import WeightOnlyQuantConfig

__all__ = ["Finished", "round_to_nearest", "scheme_of"]


@dataclasses.dataclass(frozen=True)
class Finished:
    """A quantized layer. Losses are relative: sum (y - y_q)^2 / sum y^2 of what was tuned (the
    layer's or the block's output) on the calibration data; None where nothing was measured."""

    target: Target
    matrix: _native.QuantizedMatrix
    loss: float | None = None
    start_loss: float | None = None  # before tuning
    algorithm: str | None = None  # what was done instead of the algorithm of the config
    note: str = ""  # why


def scheme_of(config: WeightOnlyQuantConfig, target: Target) -> dict[str, Any]:
    """The number format of `target`, as the core's functions take it."""
    return {
        "dtype": target.weight_dtype,
        "group_size": config.group_size,
        "asym": config.asym,
        "scale_dtype": config.scale_dtype,
        "double_quant": config.use_double_quant,
    }


def round_to_nearest(
    weight: torch.Tensor,
    config: WeightOnlyQuantConfig,
    target: Target,
    *,
    mse_range: bool | None = None,
) -> _native.QuantizedMatrix:
    """RTN of `weight` [N, K]; `mse_range` overrides the config's."""
    return _native.quantize_rtn(
        weight,
        **scheme_of(config, target),
        mse_range=config.mse_range if mse_range is None else mse_range,
        name=target.name,
        num_threads=torch.get_num_threads(),
    )
