# SPDX-License-Identifier: Apache-2.0
"""Files and folders that appear whole or not at all.

What is new is written beside what is old, flushed to the disk, and renamed over it; then the folder
that holds the names is flushed, too. If anything goes wrong before the renaming (a full disk,
Ctrl-C, a power cut), what was there is unchanged.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["flush", "replace_file", "replace_files_in", "replace_folder"]


@contextlib.contextmanager
def replace_file(target: Path) -> Iterator[Path]:
    """Yields the path to write to; what is there at the end becomes `target`."""
    scratch = target.with_name(f".{target.name}-unfinished-{uuid.uuid4().hex[:8]}")
    try:
        yield scratch
        flush(scratch)
        os.replace(scratch, target)
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise
    flush(target.parent)


@contextlib.contextmanager
def replace_files_in(folder: Path, order: Callable[[str], Any] | None = None) -> Iterator[Path]:
    """Yields a scratch folder; the files in it at the end replace those of their names in `folder`,
    sorted by `order` of their names: what makes the others valid goes last. Other files stay."""
    # Inside the folder, so that renaming stays on one file system.
    scratch = Path(tempfile.mkdtemp(prefix=".woq-unfinished-", dir=folder))
    try:
        yield scratch
        files = [path for path in scratch.iterdir() if path.is_file()]
        for path in files:
            flush(path)
        for name in sorted((path.name for path in files), key=order):
            os.replace(scratch / name, folder / name)
        flush(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def replace_folder(target: Path) -> Iterator[Path]:
    """Yields a scratch folder beside `target` that becomes it at the end, with all that it holds.

    It is made before the work that fills it: a place that cannot be written to shows at once.
    """
    made = _make_parents(target)
    scratch: Path | None = None
    try:
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-unfinished-", dir=target.parent))
        yield scratch
        scratch.chmod(0o777 & ~_umask())
        for path in [scratch, *scratch.rglob("*")]:
            flush(path)
        _move(scratch, target)
    except BaseException:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
        for folder in made:
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        raise
    flush(target.parent)


def flush(path: Path) -> None:
    """Have the disk hold what a file, or the names that a folder, has now."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _make_parents(target: Path) -> list[Path]:
    """The folders above `target` that had to be made, the innermost first."""
    missing = []
    for folder in target.absolute().parents:
        if folder.exists():
            break
        missing.append(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    return missing


def _move(scratch: Path, target: Path) -> None:
    if not target.exists():
        os.rename(scratch, target)
        return
    # A folder, unlike a file, cannot be replaced in one step.
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
    try:
        os.rename(target, old)
    except BaseException:
        os.rmdir(old)
        raise
    try:
        os.rename(scratch, target)
    except BaseException:
        os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
