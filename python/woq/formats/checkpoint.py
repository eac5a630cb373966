# SPDX-License-Identifier: Apache-2.0
"""What the files of a checkpoint say of themselves, read before a loader reads the tensors.

A checkpoint is several files that can come from different saves, or be changed one by one. So each
file of weights has the digest of all tensors of its save in its metadata, config.json has it, too,
and the two are compared. What woq writes also has a digest of all names, types and shapes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..core import native
from .safetensors import DTYPE_NAMES, Entry, as_bytes
from .stored_tensors import MARKER, StoredForm

__all__ = [
    "Header",
    "Stored",
    "check_folder",
    "check_inside",
    "check_save",
    "digest_of",
    "metadata_of_digest",
    "metadata_of_tensors",
    "problems_of_layer",
    "read_header",
    "read_marker",
]

_DIGEST = "woq_digest"
_TENSORS = "woq_tensors"

_INDICES = ("*.safetensors.index.json", "*.bin.index.json")

# Headers of safetensors files may have 100 MB.
_LONGEST_HEADER = 100_000_000


# Bytes of an element of the types that woq writes; the format has more.
_WIDTHS = {name: dtype.itemsize for dtype, name in DTYPE_NAMES.items()}


class Stored(NamedTuple):
    """A tensor in a safetensors file."""

    dtype: str  # as the format calls it: F32, U8, ...
    shape: tuple[int, ...]
    start: int  # first byte in the file
    stop: int

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


class Header(NamedTuple):
    """What a safetensors file says of its contents."""

    file: str
    metadata: dict[str, str]
    tensors: dict[str, Stored]


def read_header(file: str) -> Header:
    """The header of a safetensors file.

    Raises:
        InvalidArgument: it is damaged, or the file is shorter than it says.
    """
    try:
        size = os.path.getsize(file)
        with open(file, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            start = 8 + length
            if size < 8 or length > _LONGEST_HEADER or start > size:
                raise ValueError(f"the header has {length} bytes, the file {size}")
            fields = json.loads(stream.read(length), object_pairs_hook=_without_doubles)
        metadata = fields.pop("__metadata__", {})
        tensors = {name: _stored(value, start) for name, value in fields.items()}
        _check_places(tensors, start, size)
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its metadata are not strings")
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise native.InvalidArgument(
            f"{file} is damaged or incomplete ({error}): download or save it again"
        ) from error
    return Header(file, metadata, tensors)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a name occurs twice in its header")
    return fields


def _check_places(tensors: Mapping[str, Stored], start: int, size: int) -> None:
    """Raise ValueError unless the tensors fill the file from `start` on, without a gap."""
    end = start
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1][2:]):
        if tensor.start != end:
            raise ValueError(f"{name} begins at byte {tensor.start}, expected {end}")
        end = tensor.stop
        width = _WIDTHS.get(tensor.dtype)
        nbytes = tensor.stop - tensor.start
        if width is not None and math.prod(tensor.shape) * width != nbytes:
            raise ValueError(f"{name} is {tensor} and has {nbytes} bytes")
    if end != size:
        raise ValueError(f"its tensors end at byte {end}, the file has {size}")


def _stored(value: Mapping[str, Any], start: int) -> Stored:
    first, end = value["data_offsets"]
    if not 0 <= first <= end:
        raise ValueError(f"a tensor begins at byte {first} and ends at {end}")
    return Stored(str(value["dtype"]), tuple(value["shape"]), start + first, start + end)


def read_marker(header: Header, layer: str) -> bytes | None:
    """The bytes of the marker of `layer` in the file; None: the layer is not stored by woq."""
    stored = header.tensors.get(f"{layer}.{MARKER}")
    if stored is None or stored.dtype != "U8" or len(stored.shape) != 1:
        return None
    with open(header.file, "rb") as file:
        file.seek(stored.start)
        return file.read(stored.stop - stored.start)


def problems_of_layer(layer: str, form: StoredForm, tensors: Mapping[str, Stored]) -> list[str]:
    """What is wrong with the tensors of a stored layer: `tensors` are all those below its name."""
    problems = []
    specs = form.specs()
    for name, (shape, dtype) in specs.items():
        expected = f"{DTYPE_NAMES[dtype]} {list(shape)}"
        stored = tensors.get(name)
        if stored is None:
            problems.append(f"{layer}.{name} is missing")
        elif str(stored) != expected:
            problems.append(f"{layer}.{name} is {stored}, expected {expected}")
    left = sorted(tensors.keys() - specs.keys() - {MARKER, "bias"})
    problems.extend(f"{layer}.{name} does not belong to the layer" for name in left)
    return problems


def digest_of(entries: Mapping[str, Entry]) -> str:
    """SHA-256 of the names, types, shapes and CRC-32 of all tensors: which save it is.

    CRC-32 because reading it is no bottleneck (1 to 3 GB/s; SHA-256 has 0.5 GB/s on a CPU without
    instructions for it). It tells saves apart; it is no protection against forgery.
    """
    lines = []
    for name, entry in entries.items():
        checksum = zlib.crc32(as_bytes(entry.make()))
        lines.append(f"{_line(name, DTYPE_NAMES[entry.dtype], entry.shape)} {checksum:08x}")
    return _hash(lines)


def metadata_of_digest(digest: str | None) -> dict[str, str]:
    """The digest of a save for the metadata of its files."""
    return {} if digest is None else {_DIGEST: digest}


def metadata_of_tensors(entries: Mapping[str, Entry]) -> dict[str, str]:
    """The digest of the names, types and shapes of all tensors, for the metadata of all files."""
    lines = [_line(name, DTYPE_NAMES[each.dtype], each.shape) for name, each in entries.items()]
    return {_TENSORS: _hash(lines)}


def _line(name: str, dtype: str, shape: Iterable[int]) -> str:
    return f"{json.dumps(name)} {dtype} {list(shape)}"


def _hash(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def check_save(headers: Sequence[Header], format_version: int, digest: str | None) -> None:
    """Raise InvalidArgument if the files are not of the save that config.json is of, or their
    tensors are not those that were saved. `digest` is that of config.json; None: it has none, and
    which save it is of cannot be told, except that format 1 never had one."""
    for header in headers:
        found = header.metadata.get(_DIGEST)
        if format_version == 1 and found is not None:
            raise native.InvalidArgument(_other_save(header.file, "config.json is older"))
        if digest is not None and found != digest:
            what = "they have different digests" if found else "it has no digest"
            raise native.InvalidArgument(_other_save(header.file, what))
    announced = {header.metadata.get(_TENSORS) for header in headers}
    if announced in (set(), {None}):
        return
    lines = [
        _line(name, stored.dtype, stored.shape)
        for header in headers
        for name, stored in header.tensors.items()
    ]
    if announced != {_hash(lines)}:
        folder = os.path.dirname(headers[0].file)
        raise native.InvalidArgument(
            f"{folder}: names, types or shapes of the tensors are not those that were saved: a "
            "file is missing, damaged or of another save; save or download the model again"
        )


def _other_save(file: str, reason: str) -> str:
    folder = os.path.dirname(file) or "."
    advice = "save or download the model again"
    left = [path.name for path in Path(folder).glob(".woq-unfinished-*")]
    if left:
        advice += f"; files of an interrupted save are in {', '.join(sorted(left))}"
    return (
        f"{file} and config.json are not of the same save ({reason}): {advice}. If you have put "
        'them together on purpose, remove "digest" from the quantization_config'
    )


def check_inside(folder: str, files: Iterable[str]) -> None:
    """Raise InvalidArgument for a file that is outside of `folder` by its name, or is no file (a
    device, say, which would be read for ever)."""
    base = os.path.abspath(folder)
    for file in files:
        path = os.path.abspath(os.path.join(base, file))
        if os.path.commonpath([base, path]) != base:
            raise native.InvalidArgument(
                f"{folder}: its index names the file {file!r}, which is outside of the folder"
            )
        if os.path.exists(path) and not os.path.isfile(path):
            raise native.InvalidArgument(f"{path} is no file")


def check_folder(folder: str | os.PathLike[str]) -> None:
    """`check_inside` for all files that an index in the folder, or its config.json, names."""
    indices = (file for kind in _INDICES for file in Path(folder).glob(kind))
    for index in sorted(indices):
        weight_map = _json(index).get("weight_map", {})
        if not isinstance(weight_map, dict) or not all(
            isinstance(name, str) for name in weight_map.values()
        ):
            raise native.InvalidArgument(f"{index}: weight_map has no names of files")
        check_inside(str(folder), sorted(set(weight_map.values())))
    config = Path(folder) / "config.json"
    if not config.is_file():
        return
    try:
        weights = _json(config).get("transformers_weights")
    except native.InvalidArgument:
        return  # transformers says what is wrong with it
    if isinstance(weights, str):
        check_inside(str(folder), [weights])


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text("utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it is no object")
    except (ValueError, RecursionError) as error:
        raise native.InvalidArgument(
            f"{path} is damaged ({error}): download or save it again"
        ) from error
    return values
