# SPDX-License-Identifier: Apache-2.0
"""What other LangChain classes call the fields: HuggingFacePipeline, ChatHuggingFace and
HuggingFaceEmbeddings. Each is taken where it has a meaning here, or answered by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from woq.generation import check_device

# Of HuggingFacePipeline; the others run on something else than transformers and torch.
_BACKENDS = ("default", "pt", "torch")


def take(
    values: Mapping[str, Any], synonyms: Mapping[str, str], answers: Mapping[str, str]
) -> dict[str, Any]:
    """Constructor arguments by this package's names.

    Args:
        synonyms: name -> the field that it means.
        answers: name -> what to say instead of taking its value.

    Raises:
        ValueError: a value for a name that `answers` has, a synonym beside its field, or another
            backend.
    """
    taken = dict(values)
    for name, field in synonyms.items():
        if name not in taken:
            continue
        value = taken.pop(name)
        if field in taken and taken[field] != value:
            raise ValueError(
                f"{name}={value!r} and {field}={taken[field]!r} mean the same: give one of them"
            )
        taken[field] = value
    for name, answer in answers.items():
        if taken.pop(name, None):  # what is off, or nothing, asks for nothing
            raise ValueError(f"{name} has no meaning here: {answer}")
    backend = taken.pop("backend", None)
    if backend is not None and backend not in _BACKENDS:
        raise ValueError(f"backend={backend!r}: woq runs on transformers and torch; leave it out")
    for name in ("device", "device_map"):
        check_device(name, taken.pop(name, None))
    return taken


def take_cache_folder(values: dict[str, Any]) -> None:
    """`cache_folder` is an argument of from_pretrained, and `device` among those is none here."""
    folder = values.pop("cache_folder", None)
    loading = dict(values.get("model_kwargs") or {})
    check_device("model_kwargs['device']", loading.pop("device", None))
    if folder is not None:
        loading.setdefault("cache_dir", folder)
    if loading or values.get("model_kwargs"):
        values["model_kwargs"] = loading
