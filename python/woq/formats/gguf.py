# SPDX-License-Identifier: Apache-2.0
"""Whether a GGUF file is whole, before transformers reads it.

transformers and the package gguf take the numbers in a file as they are: a damaged one ends in
whatever Python raises for them, or in an attempt to get as much memory as they say.
"""

from __future__ import annotations

import importlib.util
import mmap
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ..core.native import InvalidArgument

__all__ = ["check_gguf"]

_STRING, _ARRAY = 8, 9
# The sizes of the other types of values, by their numbers: integers, float32, bool, 64 bits.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_MOST_DIMENSIONS = 4
_MOST_NESTED = 4


class _Tensor(NamedTuple):
    name: str
    elements: int
    kind: int
    offset: int


class _Damaged(Exception):
    """Says what is wrong."""


def check_gguf(path: str | os.PathLike[str]) -> None:
    """Read the header of a GGUF file, and compare what it announces with the file's size.

    Raises:
        InvalidArgument: it is damaged, incomplete, or of a version that nobody here reads.
        OSError: it cannot be opened.
    """
    try:
        with Path(path).open("rb") as file:
            if os.fstat(file.fileno()).st_size < 24:
                raise _Damaged("it ends within the header")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                reader = _Reader(data)
                tensors, alignment = _read_header(reader)
                start = -(-reader.position // alignment) * alignment
                _check_tensors(tensors, start, reader.size)
    except _Damaged as error:
        raise InvalidArgument(
            f"{path} is damaged or incomplete ({error}): download it again"
        ) from error


class _Reader:
    """Takes a file apart; every length is compared with what is left."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self.size = len(data)
        self.position = 0

    def skip(self, length: int, what: str) -> int:
        """Go on by `length` bytes; returns where they begin."""
        start = self.position
        if length > self.size - start:
            raise _Damaged(f"{what} has {length} bytes at byte {start} of {self.size}")
        self.position = start + length
        return start

    def number(self, kind: str, what: str) -> int:
        start = self.skip(struct.calcsize("<" + kind), what)
        value: int = struct.unpack_from("<" + kind, self._data, start)[0]
        return value

    def text(self, what: str) -> str:
        length = self.number("Q", what)
        start = self.skip(length, what)
        try:
            return self._data[start : start + length].decode()
        except UnicodeDecodeError as error:
            raise _Damaged(f"{what} is no UTF-8") from error

    def magic(self) -> bytes:
        start = self.skip(4, "the header")
        return self._data[start : start + 4]


def _read_header(reader: _Reader) -> tuple[list[_Tensor], int]:
    """The tensors that the file has, and the alignment of their data."""
    if reader.magic() != b"GGUF":
        raise _Damaged("it does not begin with GGUF")
    version = reader.number("I", "the header")
    if version not in (2, 3):
        raise _Damaged(f"its version is {version}, known are 2 and 3")
    count, values = reader.number("Q", "the header"), reader.number("Q", "the header")
    alignment = 32
    for number in range(values):
        key = reader.text(f"the name of value {number} of {values}")
        kind = reader.number("I", key)
        if key == "general.alignment" and kind == 4:
            alignment = reader.number("I", key)
        else:
            _skip_value(reader, kind, key, 0)
    tensors = []
    for number in range(count):
        name = reader.text(f"the name of tensor {number} of {count}")
        dimensions = reader.number("I", name)
        if dimensions > _MOST_DIMENSIONS:
            raise _Damaged(f"{name} has {dimensions} dimensions")
        elements = 1
        for _ in range(dimensions):
            elements *= reader.number("Q", name)
        kind, offset = reader.number("I", name), reader.number("Q", name)
        tensors.append(_Tensor(name, elements, kind, offset))
    if alignment < 1 or alignment & (alignment - 1):
        raise _Damaged(f"its alignment is {alignment}")
    return tensors, alignment


def _skip_value(reader: _Reader, kind: int, key: str, depth: int) -> None:
    if kind == _STRING:
        reader.skip(reader.number("Q", key), key)
    elif kind == _ARRAY:
        if depth == _MOST_NESTED:
            raise _Damaged(f"{key} has arrays in arrays")
        inner, length = reader.number("I", key), reader.number("Q", key)
        if inner in _SIZES:
            reader.skip(_SIZES[inner] * length, key)
            return
        for _ in range(length):
            _skip_value(reader, inner, key, depth + 1)
    elif kind in _SIZES:
        reader.skip(_SIZES[kind], key)
    else:
        raise _Damaged(f"{key} has the unknown type {kind}")


def _check_tensors(tensors: Iterable[_Tensor], start: int, size: int) -> None:
    """Whether the data, from byte `start` on, are all there."""
    if importlib.util.find_spec("gguf") is None:
        return  # transformers says that it is missing
    from gguf.constants import GGML_QUANT_SIZES

    sizes = {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()}
    for tensor in tensors:
        if tensor.kind not in sizes:
            raise _Damaged(f"{tensor.name} has the unknown type {tensor.kind}")
        block, nbytes = sizes[tensor.kind]
        end = start + tensor.offset + tensor.elements // block * nbytes
        if end > size:
            raise _Damaged(f"{tensor.name} ends at byte {end}, the file has {size}")
