# SPDX-License-Identifier: Apache-2.0
"""An output folder that is there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ._command import Failure

__all__ = ["whole_folder"]


@contextlib.contextmanager
def whole_folder(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """A scratch folder beside `target` that becomes it at the end. If anything goes wrong before
    that, Ctrl-C included, what was at `target` is unchanged and the scratch folder is gone.

    Made before the work that fills it: a place that can't be written to shows at once.

    Raises:
        Failure: there is something at `target`, and not (a model that is) to be overwritten.
        OSError: the folder cannot be made.
    """
    _check(target, overwrite)
    made = _make_parents(target)
    scratch: Path | None = None
    try:
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-unfinished-", dir=target.parent))
        yield scratch
        scratch.chmod(0o777 & ~_umask())
        _publish(scratch, target)
    except BaseException:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _check(target: Path, overwrite: bool) -> None:
    if not target.exists() and not target.is_symlink():
        return
    if not target.is_dir():
        raise Failure(f"{target} exists and is no folder")
    if not any(target.iterdir()):
        return
    if not overwrite:
        raise Failure(f"{target} exists: name another folder, or add --overwrite")
    if not (target / "config.json").is_file():
        raise Failure(f"{target} holds no model (no config.json): it is not overwritten")


def _make_parents(target: Path) -> list[Path]:
    """The folders above `target` that had to be made, the innermost first."""
    missing = []
    for folder in target.absolute().parents:
        if folder.exists():
            break
        missing.append(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    return missing


def _publish(scratch: Path, target: Path) -> None:
    if not target.exists():
        os.rename(scratch, target)
        return
    # A folder is no file: it can't be replaced in one step.
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
    os.rename(target, old)
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
