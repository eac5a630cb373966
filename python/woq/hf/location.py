# SPDX-License-Identifier: Apache-2.0
"""Where the user says that a model is: a checkpoint folder, a GGUF file, or an id on the hub."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from ..core.native import InvalidArgument

__all__ = ["locate"]


def locate(name: str | PathLike[str]) -> tuple[str, dict[str, str]]:
    """Folder or hub id, and from_pretrained's argument `gguf_file` if `name` is such a file.

    Raises:
        InvalidArgument: another file, or what looks like a path and leads nowhere.
    """
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise InvalidArgument(f"{path} is neither a checkpoint folder nor a GGUF file")
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir():
        return str(path), {}
    text = str(name)
    parts = text.split("/")
    if path.is_absolute() or len(parts) > 2 or text[:1] in (".", "~") or path.suffix == ".gguf":
        raise InvalidArgument(f"no such folder or file: {text}")
    return text, {}
