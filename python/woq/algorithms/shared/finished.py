# SPDX-License-Identifier: Apache-2.0
"""A quantized layer, as the algorithms hand it to those who replace and store layers."""

from __future__ import annotations

import dataclasses

import torch

from ...config.quant_config import WeightOnlyQuantConfig
from ...core import native
from ...modules.targets import Target

__all__ = [
    "Finished",
    "as_stored",
    "stored_extras",
]


@dataclasses.dataclass(frozen=True)
class Finished:
    """A quantized layer. Losses are relative: sum (y - y_q)^2 / sum y^2 of what was tuned (the
    layer's or the block's output) on the calibration data; None where nothing was measured."""

    target: Target
    matrix: native.QuantizedMatrix
    loss: float | None = None
    start_loss: float | None = None  # before tuning
    algorithm: str | None = None  # what was done instead of the algorithm of the config
    note: str = ""  # why


def stored_extras(config: WeightOnlyQuantConfig) -> dict[str, bool]:
    """Which tensors every layer of a model saved with `config` has beside those of its scheme, as
    `QuantizedMatrix.from_tensors` takes them."""
    return {"has_g_idx": config.stores_g_idx, "has_act_scales": config.stores_act_scales}


def as_stored(
    matrix: native.QuantizedMatrix, config: WeightOnlyQuantConfig
) -> native.QuantizedMatrix:
    """`matrix` with the tensors that every layer of a model saved with `config` has: a layer that
    was rounded to nearest among others gets neutral ones."""
    if config.stores_act_scales and not matrix.has_act_scales:
        matrix = matrix.with_act_scales(torch.ones(matrix.cols))
    if config.stores_g_idx and not matrix.has_g_idx:
        matrix = matrix.with_g_idx()
    return matrix
