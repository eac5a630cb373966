# SPDX-License-Identifier: Apache-2.0
"""4-bit floats whose scales have 8 bits: MXFP4 and NVFP4."""

from __future__ import annotations

import torch

from ...core import native
from .form import Tensors, extent, group_size_of

__all__ = ["global_scale", "read_fp4"]

_SCALE_DTYPES = {"e8m0": (torch.uint8,), "e4m3": (torch.float8_e4m3fn,)}
_GROUP_SIZES = {"e8m0": 32, "e4m3": 16}


def read_fp4(
    tensors: Tensors,
    rows: int,
    cols: int,
    *,
    weight: str,
    scales: str,
    multiplier: float = 1.0,
    divisor: float = 1.0,
) -> native.QuantizedMatrix:
    """The matrix of the tensors `weight` and "weight_scale", whose scales are of the kind `scales`,
    times `multiplier`, divided by `divisor`."""
    groups = extent(tensors, "weight_scale", 1)
    stored = tensors["weight_scale"]
    if stored.dtype not in _SCALE_DTYPES[scales]:
        raise native.Unsupported(
            f"tensor 'weight_scale' is {stored.dtype}, expected {_SCALE_DTYPES[scales][0]}"
        )
    parts = {"weight_scale": stored.view(torch.uint8)}
    if weight in tensors:
        parts["weight"] = tensors[weight]
    group_size = group_size_of(groups, cols, _GROUP_SIZES[scales])
    return native.read_fp4(
        parts,
        rows,
        cols,
        scales=scales,
        group_size=group_size,
        multiplier=multiplier,
        divisor=divisor,
    )


def global_scale(tensors: Tensors, name: str) -> float:
    """A number of the whole matrix."""
    tensor = tensors.get(name)
    if tensor is None or tensor.numel() != 1 or tensor.dtype != torch.float32:
        raise native.InvalidArgument(
            f"tensor {name!r} is "
            + ("missing" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}")
            + ", expected one float32"
        )
    return float(tensor.item())
