# SPDX-License-Identifier: Apache-2.0
"""Writes safetensors files from tensors that are made one at a time.

The format is eight bytes with the length of the header (little endian), the header (JSON: name ->
dtype, shape, offsets), and the data. The usual writer takes all tensors at once; unpacking a whole
model for it would need its size a second time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

__all__ = ["DTYPES", "DTYPE_NAMES", "Entry", "as_bytes", "write_safetensors"]

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
# The other way round.
DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


class Entry(NamedTuple):
    """A tensor to write: what it is, and how to get it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], torch.Tensor]

    @property
    def nbytes(self) -> int:
        count = 1
        for extent in self.shape:
            count *= extent
        return count * torch.empty(0, dtype=self.dtype).element_size()


def write_safetensors(
    path: str | os.PathLike[str], entries: dict[str, Entry], metadata: dict[str, str]
) -> None:
    """Write `entries` in their order."""
    # Readers map the file: wide types first keeps them aligned (as the usual writer does).
    ordered = sorted(entries.items(), key=lambda item: -_width(item[1].dtype))
    header: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name, entry in ordered:
        end = offset + entry.nbytes
        header[name] = {
            "dtype": DTYPE_NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name, entry in ordered:
            tensor = entry.make()
            if tuple(tensor.shape) != entry.shape or tensor.dtype != entry.dtype:
                raise RuntimeError(
                    f"{name} turned out as {tensor.dtype} {list(tensor.shape)}, "
                    f"announced as {entry.dtype} {list(entry.shape)}"
                )
            if tensor.numel():
                file.write(as_bytes(tensor))


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor; a copy only where they are not contiguous."""
    return memoryview(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())


def _width(dtype: torch.dtype) -> int:
    return torch.empty(0, dtype=dtype).element_size()
