# SPDX-License-Identifier: Apache-2.0
"""A quantized layer, as the algorithms hand it to those who replace and store layers."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from ...config.quant_config import WeightOnlyQuantConfig
from ...core import native
from ...formats.stored_tensors import from_torch, to_torch
from ...modules.targets import Target

__all__ = [
    "Finished",
    "as_stored",
    "stored_scheme",
    "with_input_scales",
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


def stored_scheme(config: WeightOnlyQuantConfig, target: Target) -> dict[str, Any]:
    """The number format of `target`, and which other tensors are stored with it, as
    `QuantizedMatrix.from_tensors` takes them."""
    return {
        **target.scheme,
        "act_order": config.stores_g_idx,
        "scales_input": config.stores_act_scales,
    }


def with_input_scales(
    matrix: native.QuantizedMatrix, act_scales: torch.Tensor
) -> native.QuantizedMatrix:
    """`matrix` for inputs that are multiplied by `act_scales` [K] first."""
    tensors = {**to_torch(matrix), "act_scales": act_scales.float()}
    return _rebuilt(matrix, tensors, matrix.act_order, True)


def as_stored(
    matrix: native.QuantizedMatrix, config: WeightOnlyQuantConfig
) -> native.QuantizedMatrix:
    """`matrix` with the tensors that every layer of a model saved with `config` has: a layer that
    was rounded to nearest among others gets neutral ones."""
    if config.stores_act_scales and not matrix.scales_input:
        matrix = with_input_scales(matrix, torch.ones(matrix.cols))
    if config.stores_g_idx and not matrix.act_order:
        group = matrix.cols if matrix.group_size < 0 else matrix.group_size
        g_idx = (torch.arange(matrix.cols) // group).to(torch.int32)
        tensors = {**to_torch(matrix), "g_idx": g_idx}
        matrix = _rebuilt(matrix, tensors, True, matrix.scales_input)
    return matrix


def _rebuilt(
    matrix: native.QuantizedMatrix,
    tensors: dict[str, torch.Tensor],
    act_order: bool,
    scales_input: bool,
) -> native.QuantizedMatrix:
    scheme = {
        "dtype": matrix.dtype,
        "group_size": matrix.group_size,
        "asym": matrix.asym,
        "scale_dtype": matrix.scale_dtype,
        "double_quant": matrix.double_quant,
        "act_order": act_order,
        "scales_input": scales_input,
    }
    return from_torch(tensors, matrix.rows, matrix.cols, scheme)
