# SPDX-License-Identifier: Apache-2.0
"""Gives memory back while a checkpoint is being quantized.

safetensors maps a checkpoint into memory, and every page that was read counts as resident until the
file is closed: without this, quantizing while loading would hold the whole float model.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

__all__ = ["CheckpointPages", "HeapTrimmer", "release_file_pages"]

_MADV_DONTNEED = 4
_LINUX = sys.platform.startswith("linux")


class _Mapping(NamedTuple):
    start: int
    stop: int
    offset: int  # of `start` in the file
    path: str


class CheckpointPages:
    """Releases tensors of mapped safetensors files by their name in the checkpoint.

    For tensors that the loader has copied, to cast them: the copy does not tell where it came from.
    """

    def __init__(self, files: Iterable[str]) -> None:
        self._places: dict[str, tuple[str, int, int]] = {}  # key -> (file, first byte, end)
        if _LINUX:
            for file in files:
                self._read_header(os.path.realpath(file))

    def _read_header(self, file: str) -> None:
        if not file.endswith(".safetensors") and not _is_hub_blob(file):
            return
        try:
            with open(file, "rb") as stream:
                length = int.from_bytes(stream.read(8), "little")
                if length > os.path.getsize(file):
                    return
                header = json.loads(stream.read(length))
        except (OSError, ValueError):
            return  # the loader reads the same file, and says what is wrong with it
        for key, value in header.items():
            if key != "__metadata__":
                first, end = value["data_offsets"]
                self._places[key] = (file, 8 + length + first, 8 + length + end)

    def release(self, key: str) -> bool:
        """Drop the resident pages of tensor `key`, as `release_file_pages` does."""
        place = self._places.get(key)
        if place is None:
            return False
        file, first, end = place
        released = False
        for mapping in _checkpoint_mappings():
            start = mapping.start + first - mapping.offset
            if mapping.path == file and mapping.start <= start:
                stop = mapping.start + end - mapping.offset
                if stop <= mapping.stop:
                    released |= _drop(start, stop)
        return released


def release_file_pages(tensor: torch.Tensor) -> bool:
    """Drop the resident pages under `tensor` if it lies in a mapped safetensors file.

    They are read from the file again on the next access, so nothing is lost unless somebody wrote
    to them: the caller must own the tensor. Pages shared with neighbouring tensors stay. Returns
    whether anything was released; anonymous memory is never touched.
    """
    if not _LINUX or not tensor.is_contiguous():
        return False
    start = tensor.data_ptr()
    stop = start + tensor.numel() * tensor.element_size()
    inside = any(m.start <= start and stop <= m.stop for m in _checkpoint_mappings())
    return inside and _drop(start, stop)


class HeapTrimmer:
    """Returns free heap pages to the system (glibc) while large tensors come and go.

    Short-lived tensors of some megabytes leave holes below longer-lived ones, which the allocator
    keeps: they came to more than the quantized model.
    """

    _INTERVAL = 32 << 20  # bytes of tensors between two looks at the heap

    def __init__(self) -> None:
        self._untrimmed = 0

    def count(self, nbytes: int) -> None:
        """Note that a tensor of `nbytes` has been freed."""
        self._untrimmed += nbytes
        if self._untrimmed >= self._INTERVAL:
            self.trim()

    def trim(self) -> None:
        self._untrimmed = 0
        if _LINUX and hasattr(_libc(), "malloc_trim"):
            _libc().malloc_trim(ctypes.c_size_t(0))


def _drop(start: int, stop: int) -> bool:
    page = mmap.PAGESIZE
    start, stop = -(-start // page) * page, stop // page * page
    if stop <= start:
        return False
    address, size = ctypes.c_void_p(start), ctypes.c_size_t(stop - start)
    return bool(_libc().madvise(address, size, _MADV_DONTNEED) == 0)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def _checkpoint_mappings() -> Iterator[_Mapping]:
    """Mappings of regular safetensors files in this process."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
            for line in maps:
                # "7f0000000000-7f0000001000 rw-p 00000000 fe:00 1234   /path of the file"
                fields = line.rstrip("\n").split(maxsplit=5)
                if len(fields) < 6 or fields[4] == "0":
                    continue
                path = fields[5]
                if path.endswith(".safetensors") or _is_hub_blob(path):
                    low, _, high = fields[0].partition("-")
                    yield _Mapping(int(low, 16), int(high, 16), int(fields[2], 16), path)
    except OSError:
        return


def _is_hub_blob(path: str) -> bool:
    """Whether `path` is "blobs/<hash>" of the hub's cache (mappings show where links lead)."""
    parts = path.split(os.sep)
    return len(parts) > 1 and parts[-2] == "blobs" and len(parts[-1]) in (40, 64)
