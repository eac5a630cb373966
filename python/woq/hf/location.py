# SPDX-License-Identifier: Apache-2.0
"""Where the user says that a model is: a checkpoint folder, a GGUF file, or an id on the hub."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from ..core.native import InvalidArgument

__all__ = [
    "FILE_ARGUMENTS",
    "file_arguments",
    "find_files",
    "find_gguf",
    "gguf_argument",
    "hub_error",
    "locate",
]

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


def find_files(
    path: Any, names: Sequence[str], keywords: Mapping[str, Any], *, required: bool = True
) -> list[str]:
    """Files of a folder, or of a repository of the hub, which are downloaded; those that there are
    unless they are required. `keywords` are from_pretrained's.

    Raises:
        OSError: as transformers raises it where a file is missing or cannot be had.
    """
    from transformers.utils.hub import cached_file

    files = file_arguments(keywords)
    files.pop("trust_remote_code", None)
    found = [
        cached_file(path, name, **files, _raise_exceptions_for_missing_entries=required)
        for name in names
    ]
    return [str(file) for file in found if file is not None]


_FIRST_OF_SPLITS = re.compile(r"(.*-)00001-of-(\d{5})(\.gguf)")


def find_gguf(path: Any, keywords: Mapping[str, Any]) -> str:
    """The GGUF file that is named in from_pretrained's `keywords`; of a split model the first one,
    and the others beside it.

    Raises:
        OSError: there is none.
    """
    name = str(keywords["gguf_file"])
    file = os.path.join(str(path), keywords.get("subfolder") or "", name)
    if os.path.isfile(file):
        return file  # what reads it looks for the others
    splits = _FIRST_OF_SPLITS.fullmatch(name)
    names = [name]
    if splits is not None:
        start, count, end = splits.groups()
        names += [f"{start}{i:05d}-of-{count}{end}" for i in range(2, int(count) + 1)]
    return find_files(path, names, keywords)[0]


def hub_error(path: Any, error: BaseException, keywords: Mapping[str, Any]) -> OSError | None:
    """One sentence on why a model of the hub cannot be had, in place of transformers' several.
    None: `error` is about something else."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    causes: list[BaseException] = []
    at: BaseException | None = None if os.path.exists(path) else error
    while at is not None and at not in causes:
        causes.append(at)
        at = at.__cause__ or at.__context__
    for cause in causes:
        if isinstance(cause, GatedRepoError):
            return OSError(
                f"{path} is a gated model of the hub: ask for access on its page there, and log in "
                "(hf auth login) or pass token="
            )
        if isinstance(cause, RepositoryNotFoundError):
            return OSError(
                f"there is no folder {path}, and no such model on the hub, or it is private: check "
                "the name, and for a private one log in (hf auth login) or pass token="
            )
        if isinstance(cause, RevisionNotFoundError):
            return OSError(
                f"{path} has no revision {keywords.get('revision')!r} on the hub: name a branch, a "
                "tag or a commit"
            )
        if isinstance(cause, LocalEntryNotFoundError | OfflineModeIsEnabled):
            offline = keywords.get("local_files_only") or constants.HF_HUB_OFFLINE
            why = (
                "local_files_only or HF_HUB_OFFLINE keeps it from being downloaded"
                if offline
                else f"{constants.ENDPOINT} cannot be reached: check the network"
            )
            return OSError(f"{path} is not in the hub's cache on this machine, and {why}")
    return None


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
