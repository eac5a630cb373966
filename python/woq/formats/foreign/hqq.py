# SPDX-License-Identifier: Apache-2.0
"""HQQ (Mobius Labs), as transformers saves its layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...core import native
from .form import ForeignFormat, Tensors

__all__ = ["hqq"]

# What makes the weight, and what says how.
_WEIGHT = ("W_q", "scale", "zero")
_SETTINGS = ("axis", "group_size", "nbits", "packing", "shape", "view_as_float")
# Scales or zero points that are quantized themselves, which hqq has given up.
_NESTED = ("quant_scale", "quant_zero")
# How the layer was made, and in which types hqq unpacks and computes.
_WITHOUT_MEANING = (
    "channel_wise",
    "compute_dtype",
    "encoded_state_dict",
    "offload_meta",
    "optimize",
    "round_zero",
    "stores_quant_config",
    "unpack_view_dtype",
)

_PACKINGS = {2: "2bit_u8", 3: "3bit_32", 4: "4bit_u8"}


def hqq(settings: Mapping[str, Any]) -> ForeignFormat:
    names = frozenset({*_WEIGHT, *_SETTINGS, *_NESTED, *_WITHOUT_MEANING})
    return ForeignFormat("HQQ", "W_q", names, _read)


def _read(tensors: Tensors, rows: int, cols: int) -> tuple[native.QuantizedMatrix, str]:
    shape = tensors.get("shape")
    if shape is not None and shape.reshape(-1).tolist() != [rows, cols]:
        raise native.InvalidArgument(
            f"shape is {shape.tolist()}, the model's layer has [{rows}, {cols}]"
        )
    if _number(tensors, "axis") != 1:
        raise native.Unsupported(
            f"its groups run along axis {_number(tensors, 'axis')}, across rows: woq reads axis 1"
        )
    for name in (*_NESTED, "view_as_float"):
        if _number(tensors, name, 0):
            raise native.Unsupported(f"it is stored with {name}, which woq does not read")
    bits = _number(tensors, "nbits")
    packing = _text(tensors, "packing")
    if packing not in ("", _PACKINGS.get(bits, "8bit_u8")):
        raise native.Unsupported(
            f"its {bits} bits are packed as {packing!r}, which woq does not read"
        )
    matrix = native.read_hqq(
        {name: tensors[name] for name in _WEIGHT if name in tensors},
        rows,
        cols,
        bits,
        _number(tensors, "group_size"),
    )
    return matrix, "zero points as stored, which are no codes"


def _number(tensors: Tensors, name: str, default: int | None = None) -> int:
    tensor = tensors.get(name)
    if tensor is None and default is not None:
        return default
    if tensor is None or tensor.numel() != 1 or tensor.is_floating_point():
        raise native.InvalidArgument(
            f"tensor {name!r} {'is missing' if tensor is None else 'is no integer'}"
        )
    return int(tensor.item())


def _text(tensors: Tensors, name: str) -> str:
    """hqq writes texts as bytes."""
    tensor = tensors.get(name)
    if tensor is None:
        return ""
    return bytes(value & 255 for value in tensor.reshape(-1).tolist()).decode("utf-8", "replace")
