# SPDX-License-Identifier: Apache-2.0
"""Files and folders that appear whole or not at all.

What is new is written beside what is old, flushed to the disk, and renamed over it; then the folder
that holds the names is flushed, too. If anything goes wrong before the renaming (a full disk,
Ctrl-C, a power cut), what was there is unchanged.

What is being written has a name with "-unfinished-" and is locked by its process. A process that is
killed leaves it behind without the lock, and the next one that writes to the same place removes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["PartlyReplaced", "flush", "replace_file", "replace_files_in", "replace_folder"]


class PartlyReplaced(OSError):
    """Writing failed when some files, or all of them, had their new contents already."""


@contextlib.contextmanager
def replace_file(target: Path) -> Iterator[Path]:
    """Yields the path to write to; what is there at the end becomes `target`."""
    with _scratch(target.parent, f".{target.name}-unfinished-", _touch) as scratch:
        yield scratch
        flush(scratch)
        os.replace(scratch, target)
    flush(target.parent)


@contextlib.contextmanager
def replace_files_in(
    folder: Path,
    order: Callable[[str], Any] | None = None,
    obsolete: Callable[[str], bool] | None = None,
) -> Iterator[Path]:
    """Yields a scratch folder; the files in it at the end replace those of their names in `folder`,
    sorted by `order` of their names: what makes the others valid goes last. Before the last one,
    files in `folder` that are not new and whose names are `obsolete` are removed. Others stay.

    Raises:
        PartlyReplaced: it failed while files were renamed.
    """
    # Inside the folder, so that renaming stays on one file system.
    with _scratch(folder, ".woq-unfinished-", Path.mkdir) as scratch:
        yield scratch
        names = sorted((path.name for path in scratch.iterdir() if path.is_file()), key=order)
        for name in names:
            flush(scratch / name)
        renamed = False
        try:
            for number, name in enumerate(names, 1):
                if number == len(names) and obsolete is not None:
                    _remove_obsolete(folder, obsolete, set(names))
                os.replace(scratch / name, folder / name)
                renamed = True
            flush(folder)
        except OSError as error:
            if not renamed:
                raise
            raise PartlyReplaced(error.errno, error.strerror, error.filename) from error


@contextlib.contextmanager
def replace_folder(target: Path) -> Iterator[Path]:
    """Yields a scratch folder beside `target` that becomes it at the end, with all that it holds.

    It is made before the work that fills it: a place that cannot be written to shows at once. If
    there is a folder at `target`, the two change their names in one step where the file system can
    do that (those of Linux can, network file systems cannot). Where it cannot, there are two steps,
    and a process that is killed between them leaves the old folder as `.NAME-old-*`.
    """
    made = _make_parents(target)
    try:
        with _scratch(target.parent, f".{target.name}-unfinished-", Path.mkdir) as scratch:
            yield scratch
            for path in [scratch, *scratch.rglob("*")]:
                flush(path)
            _move(scratch, target)
            flush(target.parent)
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        raise
    _remove_leftovers(target.parent, f".{target.name}-old-")


def flush(path: Path) -> None:
    """Have the disk hold what a file, or the names that a folder, has now."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _scratch(folder: Path, prefix: str, make: Callable[[Path], None]) -> Iterator[Path]:
    """A new locked file or folder whose name begins with `prefix`. Those that killed processes have
    left are removed before, and what is at its path is removed after."""
    _remove_leftovers(folder, prefix)
    path, handle = _make_locked(folder, prefix, make)
    try:
        yield path
    finally:
        _remove(path)
        os.close(handle)


def _make_locked(folder: Path, prefix: str, make: Callable[[Path], None]) -> tuple[Path, int]:
    while True:
        path = folder / f"{prefix}{uuid.uuid4().hex[:8]}"
        make(path)
        try:
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue
        _lock(handle, wait=True)
        if path.exists():
            return path, handle
        # Another process took it for a leftover before it was locked.
        os.close(handle)


def _lock(handle: int, *, wait: bool) -> bool:
    """Whether the lock is held now, until `handle` is closed or the process ends. A file system
    without locks gives none, so nothing is ever removed there."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _remove_leftovers(folder: Path, prefix: str) -> None:
    """Remove what processes that are gone have left under names that begin with `prefix`."""
    for path in folder.iterdir():
        if not path.name.startswith(prefix):
            continue
        try:
            handle = os.open(path, os.O_RDONLY)
        except OSError:
            continue  # just finished by its process, or another user's
        try:
            if _lock(handle, wait=False):
                _remove(path)
        finally:
            os.close(handle)


def _remove_obsolete(folder: Path, obsolete: Callable[[str], bool], new: set[str]) -> None:
    for path in folder.iterdir():
        if path.name not in new and obsolete(path.name):
            path.unlink()


def _touch(path: Path) -> None:
    path.touch(exist_ok=False)


def _remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it; what cannot be removed stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        path.unlink()


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
    """Give `scratch` the name `target`; a folder that has it gets the name of `scratch`, or is gone
    afterwards."""
    if not target.exists():
        os.rename(scratch, target)
        return
    if _exchange(scratch, target):
        return
    old = target.with_name(f".{target.name}-old-{uuid.uuid4().hex[:8]}")
    os.rename(target, old)
    try:
        os.rename(scratch, target)
    except BaseException:
        os.rename(old, target)
        raise
    _remove(old)


_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step; False where the C library or the file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    names = (os.fsencode(one), os.fsencode(other))
    if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))
