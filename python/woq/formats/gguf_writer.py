# SPDX-License-Identifier: Apache-2.0
"""Writes GGUF files, version 3 (docs/gguf.md of ggml): a header, metadata, the list of tensors, and
their bytes at multiples of 32."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ..core.native import GGUF_TYPES

__all__ = ["GgufTensor", "encoded", "write_gguf"]

_ALIGNMENT = 32

# The numbers of the types of values that are written.
_U32, _I32, _F32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9


class GgufTensor(NamedTuple):
    """A tensor whose bytes are made when it is written."""

    name: str
    type: str  # as GGUF_TYPES has it
    shape: tuple[int, ...]  # the contiguous dimension last
    make: Callable[[], Any]  # an array of `nbytes` bytes

    @property
    def nbytes(self) -> int:
        _, elements, nbytes = GGUF_TYPES[self.type]
        count = 1
        for extent in self.shape:
            count *= extent
        return count // elements * nbytes


def encoded(value: Any) -> bytes:
    """A value of metadata with its type before it. Whole numbers take 32 bits, signed in lists, and
    floats 32, as llama.cpp's converter has them."""
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _U32, value)
    if isinstance(value, float):
        return struct.pack("<If", _F32, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    first = value[0]
    if isinstance(first, str):
        kind, data = _STRING, b"".join(map(_text, value))
    elif isinstance(first, float):
        kind, data = _F32, np.asarray(value, "<f4").tobytes()
    else:
        kind, data = _I32, np.asarray(value, "<i4").tobytes()
    return struct.pack("<IIQ", _ARRAY, kind, len(value)) + data


def write_gguf(path: Path, metadata: Mapping[str, bytes], tensors: Iterable[GgufTensor]) -> None:
    """Write a file. `metadata` are encoded values.

    Raises:
        OSError: it could not be written.
    """
    listed = list(tensors)
    with path.open("wb") as file:
        file.write(struct.pack("<4sIQQ", b"GGUF", 3, len(listed), len(metadata)))
        for key, value in metadata.items():
            file.write(_text(key) + value)
        offset = 0
        for tensor in listed:
            file.write(_entry(tensor, offset))
            offset += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        _pad(file)
        for tensor in listed:
            data = memoryview(tensor.make()).cast("B")
            if data.nbytes != tensor.nbytes:
                raise RuntimeError(f"{tensor.name} has {data.nbytes} bytes, not {tensor.nbytes}")
            file.write(data)
            _pad(file)


def _entry(tensor: GgufTensor, offset: int) -> bytes:
    """A tensor in the list. The contiguous dimension comes first there."""
    rank = len(tensor.shape)
    numbers = struct.pack(f"<I{rank}QI", rank, *reversed(tensor.shape), GGUF_TYPES[tensor.type][0])
    return _text(tensor.name) + numbers + struct.pack("<Q", offset)


def _pad(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % _ALIGNMENT))


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
