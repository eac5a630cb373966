# SPDX-License-Identifier: Apache-2.0
"""AWQ (AutoAWQ, GPTQModel)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ...core import native
from .form import ForeignFormat, Tensors, bits_of, extent, group_size_of

__all__ = ["awq"]


def awq(settings: Mapping[str, Any], widths: Collection[int] = (4,)) -> ForeignFormat:
    """`widths` are the bits that the writer of the checkpoint has this layout for."""
    version = str(settings.get("version") or "gemm").lower()
    if version != "gemm":
        raise native.Unsupported(f"this AWQ checkpoint has version {version!r}; woq reads 'gemm'")
    bits = settings.get("bits", settings.get("w_bit", 4))
    if bits not in widths:
        raise native.Unsupported(
            f"this AWQ checkpoint has {bits!r} bits; woq reads {', '.join(map(str, widths))}"
        )
    said = settings.get("group_size", settings.get("q_group_size"))

    def read(tensors: Tensors, rows: int, cols: int) -> tuple[native.QuantizedMatrix, str]:
        group_size = group_size_of(extent(tensors, "scales", 0), cols, said)
        width = bits_of(extent(tensors, "qweight", 1), rows, bits)
        matrix = native.read_awq(tensors, rows, cols, group_size, width)
        return matrix, "zero points as stored" if matrix.scheme.asym else "symmetric"

    return ForeignFormat("AWQ (gemm)", "qweight", frozenset({"qweight", "qzeros", "scales"}), read)
