# SPDX-License-Identifier: Apache-2.0
"""The stored tensors of a quantized layer as torch tensors: names, shapes, dtypes, conversions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..config.quant_config import FORMAT_VERSION
from ..core import native

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MARKER", "check_marker", "from_torch", "marker", "stored_specs", "to_torch"]

# Key of a one-byte tensor that holds the format version. It has the name of the float weight and
# not its shape: a loader that knows nothing of woq stops with a shape error, where it would
# otherwise find no weight and go on with random numbers.
MARKER = "weight"


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


def stored_specs(
    scheme: native.QuantScheme,
    rows: int,
    cols: int,
    *,
    has_g_idx: bool = False,
    has_act_scales: bool = False,
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of every stored tensor of a [rows, cols] matrix, without the marker."""
    specs = native.stored_tensors(scheme, rows, cols, has_g_idx, has_act_scales)
    return {name: (shape, getattr(torch, dtype)) for name, (shape, dtype) in specs.items()}


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
    tensors: Mapping[str, torch.Tensor],
    rows: int,
    cols: int,
    scheme: native.QuantScheme,
    *,
    has_g_idx: bool = False,
    has_act_scales: bool = False,
) -> native.QuantizedMatrix:
    """The matrix that `to_torch` took apart.

    Raises:
        InvalidArgument: names every tensor that is missing, has another shape or dtype than the
            scheme says, or holds what no matrix can have.
    """
    ready = {name: value.detach().contiguous() for name, value in tensors.items()}
    return native.QuantizedMatrix.from_tensors(
        ready,
        rows=rows,
        cols=cols,
        scheme=scheme,
        has_g_idx=has_g_idx,
        has_act_scales=has_act_scales,
    )
