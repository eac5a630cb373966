# SPDX-License-Identifier: Apache-2.0
"""Where the user says that a model is: a checkpoint folder, a GGUF file, or an id on the hub."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from ..core.native import InvalidArgument

__all__ = ["FILE_ARGUMENTS", "file_arguments", "gguf_argument", "locate"]

# Arguments of from_pretrained that say where a repository's files are: as good for its config and
# its tokenizer as for its model.
FILE_ARGUMENTS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
    "trust_remote_code",
)


def file_arguments(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Those of them that `keywords` have."""
    return {name: keywords[name] for name in FILE_ARGUMENTS if name in keywords}


def gguf_argument(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords with `model_file`, ITREX's name of `gguf_file`, under that name.

    Raises:
        InvalidArgument: both are there, and differ.
    """
    rest = dict(keywords)
    model_file = rest.pop("model_file", None)
    if model_file is not None:
        if rest.get("gguf_file") not in (None, model_file):
            raise InvalidArgument(
                f"model_file={model_file!r} and gguf_file={rest['gguf_file']!r} contradict each "
                "other; they are two names of one argument"
            )
        rest["gguf_file"] = model_file
    return rest


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
