# SPDX-License-Identifier: Apache-2.0
"""OpenAI's gpt-oss: the experts in MXFP4, all of a layer in one tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...core import native
from .form import ForeignFormat, Tensors
from .fp4 import read_fp4

__all__ = ["mxfp4"]

_TENSORS = frozenset(
    f"{product}_{part}"
    for product in ("gate_up_proj", "down_proj")
    for part in ("blocks", "scales", "bias")
)


def mxfp4(settings: Mapping[str, Any]) -> ForeignFormat:
    return ForeignFormat("MXFP4 (gpt-oss)", "gate_up_proj_blocks", _TENSORS, _read, experts=True)


def _read(tensors: Tensors, rows: int, cols: int) -> tuple[native.QuantizedMatrix, str]:
    """One matrix of one expert: blocks uint8 [N, K / 32, 16], the code of the even column in the
    low nibble; scales uint8 [N, K / 32], exponents of 2 plus 127."""
    blocks = tensors["blocks"]
    if tuple(blocks.shape) != (rows, cols // 32, 16) or cols % 32:
        raise native.InvalidArgument(
            f"an expert's blocks have shape {list(blocks.shape)}, expected "
            f"{[rows, cols // 32, 16]} for a weight of {rows} x {cols}"
        )
    parts = {"weight": blocks.reshape(rows, cols // 2), "weight_scale": tensors["scales"]}
    return read_fp4(parts, rows, cols, weight="weight", scales="e8m0"), "mxfp4, expert by expert"
