# SPDX-License-Identifier: Apache-2.0
"""An output folder that is there whole or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ..formats.files import replace_folder
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
    with replace_folder(target) as scratch:
        yield scratch


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
