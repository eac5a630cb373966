# SPDX-License-Identifier: Apache-2.0
"""The two kinds of file that llama.cpp keeps an importance matrix in, as bytes.

Both are little-endian. The older one, `.dat`, is a sequence of records: the number of entries
(int32); for each of them the length of its name (int32), the name, the number of calls (int32), the
number of values (int32), and the values (float32), which are means of squares times the calls; then
the calls of the whole run (int32), the length (int32) and the name of the data set. The oldest
files end after the entries. A call is a chunk of tokens, whose length the file does not say.

The newer one is GGUF (specification: docs/gguf.md of ggml) with `general.type` "imatrix", and for
each entry the tensors `<name>.in_sum2` [experts, K], sums of squares, and `<name>.counts`
[experts, 1], the tokens that went into them. Sums of the inputs themselves (`<name>.in_sum`) are
skipped.

Every length is compared with the bytes that are left before it is used.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.native import InvalidArgument

__all__ = ["Contents", "Entry", "decode", "encode_dat", "encode_gguf"]

# llama.cpp's default context, which it takes for the length of a chunk where a file has none.
CHUNK_SIZE = 512

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)  # of one layout; version 1 had 32-bit lengths
_ALIGNMENT = 32
_F32 = 0  # GGUF's number for a tensor of float32
_U32, _STRING, _ARRAY = 4, 8, 9  # GGUF's numbers for types of metadata
# Formats of the other types, by number.
_SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", _U32: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_MAX_DIMS = 4
_SUMS, _COUNTS = ".in_sum2", ".counts"


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


class _Bytes:
    """Reads from the front of a file's bytes; errors say where."""

    def __init__(self, data: bytes, path: str) -> None:
        self.data = data
        self.path = path
        self.at = 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def fail(self, what: str) -> InvalidArgument:
        return InvalidArgument(
            f"importance matrix {self.path}: {what} (at byte {self.at} of {len(self.data)}): the "
            "file is damaged or of another kind; download or collect it again"
        )

    def take(self, count: int, what: str) -> bytes:
        if not 0 <= count <= self.left:
            raise self.fail(f"{what} would take {count} bytes, {self.left} are left")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, form: str, what: str) -> Any:
        return struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}"), what))[0]

    def text(self, length_form: str, what: str) -> str:
        raw = self.take(self.number(length_form, f"the length of {what}"), what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fail(f"{what} is not UTF-8") from error


def decode(data: bytes, path: str) -> Contents:
    """The contents of a file of either kind; `path` is for messages.

    Raises:
        InvalidArgument: damaged, empty, of another kind, or with negative or infinite statistics.
    """
    source = _Bytes(data, path)
    contents = _decode_gguf(source) if data.startswith(_MAGIC) else _decode_dat(source)
    if not contents.entries:
        raise source.fail("it has no entries")
    for name, entry in contents.entries.items():
        if not (np.isfinite(entry.mean).all() and (entry.mean >= 0).all()):
            raise source.fail(f"entry {name!r} has statistics that are negative or not finite")
    return contents


def _decode_dat(source: _Bytes) -> Contents:
    count = source.number("i", "the number of entries")
    if count < 1:
        raise source.fail(f"{count} entries")
    entries: dict[str, Entry] = {}
    for number in range(count):
        name = source.text("i", f"the name of entry {number}")
        if not name or name in entries:
            raise source.fail(f"the name of entry {number}, {name!r}, is empty or was there before")
        calls = source.number("i", f"the calls of {name!r}")
        size = source.number("i", f"the number of values of {name!r}")
        if calls < 1 or size < 1:
            raise source.fail(f"{name!r} has {calls} calls and {size} values")
        values = np.frombuffer(source.take(4 * size, f"the values of {name!r}"), "<f4")
        with np.errstate(invalid="ignore"):
            mean = (values.astype(np.float64) / calls).astype(np.float32)
        entries[name] = Entry(mean[None], np.array([calls * CHUNK_SIZE], np.int64))
    datasets = []
    if source.left:
        source.number("i", "the calls of the run")
        datasets = [source.text("i", "the name of the data set")]
    if source.left:
        raise source.fail(f"{source.left} bytes after the end")
    return Contents(entries, [name for name in datasets if name])


def encode_dat(contents: Contents) -> bytes:
    """A `.dat` file. Experts without a token are stored as ones, as llama.cpp does: the file has
    one count for a whole stack of experts."""
    names = sorted(name for name, entry in contents.entries.items() if entry.counts.max() > 0)
    parts = [struct.pack("<i", len(names))]
    most = 0
    for name in names:
        mean, counts = contents.entries[name]
        calls = -(-int(counts.max()) // contents.chunk_size)
        most = max(most, calls)
        values = np.where(counts[:, None] > 0, mean.astype(np.float64), 1.0) * calls
        raw = name.encode()
        parts += [struct.pack("<i", len(raw)), raw, struct.pack("<ii", calls, mean.size)]
        parts.append(values.astype("<f4").tobytes())
    last = (contents.datasets[-1] if contents.datasets else "").encode()
    parts += [struct.pack("<ii", most, len(last)), last]
    return b"".join(parts)


class _TensorInfo(NamedTuple):
    shape: tuple[int, ...]  # as GGUF has it: the contiguous dimension first
    kind: int
    offset: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def _decode_gguf(source: _Bytes) -> Contents:
    source.take(len(_MAGIC), "the magic number")
    version = source.number("I", "the version")
    if version not in _VERSIONS:
        raise source.fail(f"GGUF version {version}; known: 2 and 3, little-endian")
    tensor_count = source.number("Q", "the number of tensors")
    metadata_count = source.number("Q", "the number of metadata")
    metadata = {}
    # No list is allocated by these counts: an entry that isn't there ends the loop with an error.
    for number in range(metadata_count):
        key = source.text("Q", f"the name of metadata {number}")
        metadata[key] = _metadata_value(source, key, source.number("I", f"the type of {key!r}"))
    kind = metadata.get("general.type")
    if kind != "imatrix":
        raise source.fail(f"general.type is {kind!r}, expected 'imatrix'")
    infos: dict[str, _TensorInfo] = {}
    for number in range(tensor_count):
        name = source.text("Q", f"the name of tensor {number}")
        dims = source.number("I", f"the number of dimensions of {name!r}")
        if name in infos or not 1 <= dims <= _MAX_DIMS:
            raise source.fail(f"tensor {name!r} has {dims} dimensions, or was there before")
        shape = tuple(source.number("Q", f"the shape of {name!r}") for _ in range(dims))
        infos[name] = _TensorInfo(
            shape,
            source.number("I", f"the type of {name!r}"),
            source.number("Q", f"the offset of {name!r}"),
        )
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise source.fail(f"general.alignment is {alignment!r}, expected a power of two")
    start = -(-source.at // alignment) * alignment
    entries = dict(_gguf_entries(source, infos, start))
    datasets = metadata.get("imatrix.datasets", [])
    chunk_size = metadata.get("imatrix.chunk_size", CHUNK_SIZE)
    if not isinstance(datasets, list) or not all(isinstance(name, str) for name in datasets):
        raise source.fail("imatrix.datasets is not a list of texts")
    if not isinstance(chunk_size, int) or chunk_size < 0:
        raise source.fail(f"imatrix.chunk_size is {chunk_size!r}")
    return Contents(entries, datasets, chunk_size or CHUNK_SIZE)


def _metadata_value(source: _Bytes, key: str, kind: int) -> Any:
    if kind == _STRING:
        return source.text("Q", key)
    if kind in _SCALARS:
        return source.number(_SCALARS[kind], key)
    if kind != _ARRAY:
        raise source.fail(f"metadata {key!r} is of the unknown type {kind}")
    kind = source.number("I", f"the type of {key!r}")
    count = source.number("Q", f"the length of {key!r}")
    if kind == _STRING:
        # Each takes 8 bytes at least, so this many can't run away with the memory.
        return [source.text("Q", key) for _ in range(count)]
    if kind not in _SCALARS:
        raise source.fail(f"metadata {key!r} is an array of the unknown type {kind}")
    form = _SCALARS[kind]
    raw = source.take(count * struct.calcsize(f"<{form}"), key)
    return list(struct.unpack(f"<{count}{form}", raw))


def _gguf_entries(
    source: _Bytes, infos: Mapping[str, _TensorInfo], start: int
) -> Iterator[tuple[str, Entry]]:
    for full_name, info in infos.items():
        if full_name.endswith(_COUNTS) and full_name.removesuffix(_COUNTS) + _SUMS not in infos:
            raise source.fail(f"{full_name!r} has no {_SUMS}")
        if not full_name.endswith(_SUMS):
            continue
        name = full_name.removesuffix(_SUMS)
        counted = infos.get(name + _COUNTS)
        if not name or counted is None:
            raise source.fail(f"{full_name!r} has no {_COUNTS}")
        experts = counted.size
        if experts < 1 or info.size < 1 or info.size % experts:
            raise source.fail(f"{name!r} has sums {info.shape} and counts {counted.shape}")
        sums = _gguf_tensor(source, full_name, info, start).reshape(experts, -1)
        counts = _gguf_tensor(source, name + _COUNTS, counted, start).astype(np.float64)
        if not (np.isfinite(counts).all() and (counts >= 0).all() and (counts < 2**63).all()):
            raise source.fail(f"{name!r} has counts that are negative or not finite")
        mean = sums.astype(np.float64) / np.maximum(counts, 1)[:, None]
        with np.errstate(over="ignore", invalid="ignore"):
            yield name, Entry(mean.astype(np.float32), np.rint(counts).astype(np.int64))


def _gguf_tensor(source: _Bytes, name: str, info: _TensorInfo, start: int) -> NDArray[np.float32]:
    if info.kind != _F32:
        raise source.fail(f"tensor {name!r} is of GGUF type {info.kind}, expected float32")
    source.at = min(start + info.offset, len(source.data))
    return np.frombuffer(source.take(4 * info.size, f"tensor {name!r}"), "<f4")


def encode_gguf(contents: Contents) -> bytes:
    """A GGUF file. Counts are float32 there, as llama.cpp has it: exact up to 2^24 tokens."""
    tensors: dict[str, NDArray[Any]] = {}
    for name in sorted(contents.entries):
        mean, counts = contents.entries[name]
        sums = mean.astype(np.float64) * np.maximum(counts, 1)[:, None]
        tensors[name + _SUMS] = sums.astype("<f4")
        tensors[name + _COUNTS] = counts[:, None].astype("<f4")
    most = max((int(entry.counts.max()) for entry in contents.entries.values()), default=0)
    metadata = [
        _packed_text("general.type") + struct.pack("<I", _STRING) + _packed_text("imatrix"),
        _packed_text("imatrix.datasets")
        + struct.pack("<IIQ", _ARRAY, _STRING, len(contents.datasets))
        + b"".join(map(_packed_text, contents.datasets)),
        _packed_text("imatrix.chunk_count") + struct.pack("<II", _U32, most // contents.chunk_size),
        _packed_text("imatrix.chunk_size") + struct.pack("<II", _U32, contents.chunk_size),
    ]
    head = [_MAGIC, struct.pack("<IQQ", _VERSIONS[-1], len(tensors), len(metadata)), *metadata]
    data: list[bytes] = []
    offset = 0
    for name, tensor in tensors.items():
        rows, cols = tensor.shape
        head += [_packed_text(name), struct.pack("<IQQIQ", 2, cols, rows, _F32, offset)]
        data.append(_padded(tensor.tobytes()))
        offset += len(data[-1])
    return _padded(b"".join(head)) + b"".join(data)


def _packed_text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _padded(raw: bytes) -> bytes:
    return raw + bytes(-len(raw) % _ALIGNMENT)
