# SPDX-License-Identifier: Apache-2.0
"""The two kinds of file that llama.cpp keeps an importance matrix in, as bytes. The core reads and
writes them; include/woq/io/imatrix.h describes both."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core import native

__all__ = ["Contents", "Entry", "decode", "encode_dat", "encode_gguf"]

# llama.cpp's default context, which it takes for the length of a chunk where a file has none.
CHUNK_SIZE = 512


class Entry(NamedTuple):
    """The statistics of one weight, or of a stack of experts."""

    mean: NDArray[np.float32]  # [experts, K]: mean of the squares of each input channel
    counts: NDArray[np.int64]  # [experts]: tokens seen


@dataclasses.dataclass
class Contents:
    """What a file holds; names are llama.cpp's, with ".weight"."""

    entries: dict[str, Entry]
    datasets: list[str]
    chunk_size: int = CHUNK_SIZE


def decode(data: bytes, path: str) -> Contents:
    """The contents of a file of either kind; `path` is for messages.

    Raises:
        InvalidArgument: damaged, empty, of another kind, or with negative or infinite statistics.
    """
    entries, datasets, chunk_size = native.read_imatrix(data, path)
    return Contents({name: Entry(*entry) for name, entry in entries.items()}, datasets, chunk_size)


def encode_dat(contents: Contents) -> bytes:
    """A `.dat` file. Experts without a token are stored as ones, as llama.cpp does: the file has
    one count for a whole stack of experts."""
    return _encoded(contents, legacy=True)


def encode_gguf(contents: Contents) -> bytes:
    """A GGUF file. Counts are float32 there, as llama.cpp has it: exact up to 2^24 tokens."""
    return _encoded(contents, legacy=False)


def _encoded(contents: Contents, *, legacy: bool) -> bytes:
    return native.write_imatrix(
        contents.entries, contents.datasets, contents.chunk_size, legacy=legacy
    )
