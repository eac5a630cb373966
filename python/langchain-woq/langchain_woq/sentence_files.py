# SPDX-License-Identifier: Apache-2.0
"""The files that sentence-transformers puts beside a model: pooling, normalisation, prompts.

modules.json lists the steps; 1_Pooling/config.json, sentence_bert_config.json and
config_sentence_transformers.json hold their settings (https://sbert.net).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from woq.generation import position_limit

POOLINGS = ("mean", "cls", "max", "last")
_POOLING_KEYS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
}
# transformers writes 1e30 where a tokenizer has no limit.
_NO_LIMIT = 1 << 31
_LOCATING = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


@dataclass(frozen=True)
class SentenceSettings:
    """How a text becomes a vector."""

    pooling: str = "mean"
    normalize: bool = True
    max_length: int | None = None  # tokens
    query_prefix: str = ""
    document_prefix: str = ""

    def with_overrides(self, **values: Any) -> SentenceSettings:
        """With those values that are not None.

        Raises:
            ValueError: an unknown pooling.
        """
        settings = replace(self, **{k: v for k, v in values.items() if v is not None})
        if settings.pooling not in POOLINGS:
            raise ValueError(
                f"unknown pooling {settings.pooling!r}; known are {', '.join(map(repr, POOLINGS))}"
            )
        return settings


def read_settings(
    model: str, locating: Mapping[str, Any], *, pooling: str | None = None
) -> SentenceSettings:
    """The settings of a folder or hub id; the defaults where it has no such files.

    `pooling` is taken instead of what the files say.

    Raises:
        ValueError: the files ask for a step or a pooling that is not supported.
    """
    found = {name: locating[name] for name in _LOCATING if name in locating}
    modules = _read(model, "modules.json", found)
    length = (_read(model, "sentence_bert_config.json", found) or {}).get("max_seq_length")
    settings = SentenceSettings(max_length=length)
    if modules is not None:
        kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
        unknown = [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]
        if unknown:
            raise ValueError(
                f"modules.json of {model!r} has steps that WoqEmbeddings does not know: "
                f"{', '.join(unknown)}"
            )
        settings = replace(settings, normalize="Normalize" in kinds)
        for module, kind in zip(modules, kinds, strict=True):
            if kind == "Pooling" and pooling is None:
                config = _read(model, f"{module['path']}/config.json", found) or {}
                settings = replace(settings, pooling=_pooling(model, config))
    prompts = (_read(model, "config_sentence_transformers.json", found) or {}).get("prompts") or {}
    return replace(
        settings,
        query_prefix=prompts.get("query") or "",
        document_prefix=prompts.get("document") or prompts.get("passage") or "",
    )


def _pooling(model: str, config: Mapping[str, Any]) -> str:
    chosen = [key for key, on in config.items() if key.startswith("pooling_mode") and on is True]
    if len(chosen) != 1 or chosen[0] not in _POOLING_KEYS:
        raise ValueError(
            f"1_Pooling/config.json of {model!r} asks for {' and '.join(chosen) or 'no pooling'}: "
            f"known is one of {', '.join(map(repr, POOLINGS))}; pass pooling="
        )
    return _POOLING_KEYS[chosen[0]]


def longest_text(settings: SentenceSettings, model: Any, tokenizer: Any) -> int | None:
    """Tokens of a text that are read: what the files say (max_seq_length of
    sentence_bert_config.json), or else the tokenizer, and never more than the model has positions
    for. RoBERTa's config and tokenizers may count the padding's two rows, too."""
    limits = [settings.max_length, getattr(tokenizer, "model_max_length", None)]
    known = [n for n in limits if isinstance(n, int) and 0 < n < _NO_LIMIT][:1]
    positions = position_limit(model)
    return min([*known, *([] if positions is None else [positions])], default=None)


def _read(model: str, name: str, found: Mapping[str, Any]) -> Any:
    """A JSON file of the model; None if it has none of that name."""
    from transformers.utils import cached_file

    path = cached_file(
        model,
        name,
        _raise_exceptions_for_missing_entries=False,
        **found,
    )
    if path is None:
        return None
    with open(path, encoding="utf-8") as file:
        return json.load(file)
