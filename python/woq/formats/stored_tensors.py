# SPDX-License-Identifier: Apache-2.0
"""The stored tensors of a quantized layer as torch tensors: names, shapes, dtypes, conversions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..config.quant_config import FORMAT_VERSION
from ..core import native

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MARKER", "check_marker", "from_torch", "marker", "tensor_specs", "to_torch"]

# Key of a one-byte tensor that holds the format version. It has the name of the float weight and
# not its shape: a loader that knows nothing of woq stops with a shape error, where it would
# otherwise find no weight and go on with random numbers.
MARKER = "weight"

_SCALE_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_DOUBLE_QUANT_BLOCK = 256


def marker() -> torch.Tensor:
    return torch.tensor([FORMAT_VERSION], dtype=torch.uint8)


def check_marker(value: torch.Tensor) -> None:
    """Raise InvalidArgument unless `value` is a marker that this version can read."""
    if value.dtype != torch.uint8 or value.shape != (1,):
        raise native.InvalidArgument(
            f"expected woq's format marker (uint8 [1]), got {value.dtype} {list(value.shape)}: "
            "these are not the tensors of a woq checkpoint"
        )
    if int(value) > FORMAT_VERSION:
        raise native.InvalidArgument(
            f"the tensors have format version {int(value)}; this woq reads up to {FORMAT_VERSION}: "
            "install a newer woq"
        )


def tensor_specs(
    rows: int,
    cols: int,
    *,
    dtype: str,
    group_size: int,
    asym: bool,
    scale_dtype: str,
    double_quant: bool,
    act_order: bool = False,
    scales_input: bool = False,
    float_zeros: bool = False,
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of every stored tensor of a [rows, cols] matrix, without the marker."""
    groups = 1 if group_size < 0 else -(-cols // group_size)
    bits = 8 if dtype == "int8" else 4
    count = rows * groups
    specs: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "qweight": ((rows, -(-cols * bits // 8)), torch.uint8),
        "scales": ((rows, groups), torch.uint8 if double_quant else _SCALE_DTYPES[scale_dtype]),
    }
    if asym:
        zeros = torch.float32 if float_zeros else torch.uint8
        specs["zero_points"] = ((rows, groups), zeros)
    if act_order:
        specs["g_idx"] = ((cols,), torch.int32)
    if scales_input:
        specs["act_scales"] = ((cols,), torch.float32)
    if double_quant:
        specs["scales_absmax"] = ((-(-count // _DOUBLE_QUANT_BLOCK),), torch.float32)
        specs["scales_offset"] = ((1,), torch.float32)
        if dtype == "int4_fullrange" and not asym:
            specs["scales_sign"] = ((-(-count // 8),), torch.uint8)
    return specs


def to_torch(matrix: native.QuantizedMatrix) -> dict[str, torch.Tensor]:
    """Copies of the stored tensors: `matrix` can be freed, and they can be written to."""
    tensors = {}
    for name, array in matrix.tensors().items():
        if name == "scales" and array.dtype == "uint16":
            # numpy has no bfloat16 of its own: the bits arrive as integers.
            tensors[name] = torch.from_numpy(array.view("int16").copy()).view(torch.bfloat16)
        else:
            tensors[name] = torch.from_numpy(array.copy())
    return tensors


def from_torch(
    tensors: Mapping[str, torch.Tensor], rows: int, cols: int, scheme: Mapping[str, Any]
) -> native.QuantizedMatrix:
    """The matrix that `to_torch` took apart.

    Raises:
        InvalidArgument: a tensor is missing, or has another shape or dtype than the scheme says.
    """
    ready = {name: value.detach().contiguous() for name, value in tensors.items()}
    return native.QuantizedMatrix.from_tensors(ready, rows=rows, cols=cols, **scheme)
