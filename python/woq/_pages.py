# SPDX-License-Identifier: Apache-2.0
"""Gives back the file pages of checkpoint tensors that have been quantized.

safetensors maps a checkpoint into memory, and every page that was read counts as resident until the
file is closed: without this, quantizing while loading would hold the whole float model.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["release_file_pages"]

_MADV_DONTNEED = 4


def release_file_pages(tensor: torch.Tensor) -> bool:
    """Drop the resident pages under `tensor` if it lies in a mapped .safetensors file.

    They are read from the file again on the next access, so nothing is lost unless somebody wrote
    to them: the caller must own the tensor. Pages shared with neighbouring tensors stay. Returns
    whether anything was released; anonymous memory is never touched.
    """
    if not sys.platform.startswith("linux") or not tensor.is_contiguous():
        return False
    page = mmap.PAGESIZE
    start = tensor.data_ptr()
    stop = start + tensor.numel() * tensor.element_size()
    start, stop = -(-start // page) * page, stop // page * page
    if stop <= start or not _is_checkpoint_mapping(start, stop):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return bool(libc.madvise(start, stop - start, _MADV_DONTNEED) == 0)


def _is_checkpoint_mapping(start: int, stop: int) -> bool:
    """Whether [start, stop) lies inside one mapping of a regular .safetensors file."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
            for line in maps:
                # "7f0000000000-7f0000001000 rw-p 00000000 fe:00 1234   /path of the file"
                fields = line.rstrip("\n").split(maxsplit=5)
                low, _, high = fields[0].partition("-")
                if int(low, 16) <= start and stop <= int(high, 16):
                    inode, path = fields[4], fields[5] if len(fields) > 5 else ""
                    # The hub's cache holds files by hash, with links of the real name: the mapping
                    # shows the name it was opened by after links are resolved.
                    return inode != "0" and _is_checkpoint_path(path)
    except OSError:
        return False
    return False


def _is_checkpoint_path(path: str) -> bool:
    if path.endswith(".safetensors"):
        return True
    # "blobs/<sha256>" of the hub's cache.
    parts = path.split(os.sep)
    return len(parts) > 1 and parts[-2] == "blobs" and len(parts[-1]) in (40, 64)
