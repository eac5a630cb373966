# SPDX-License-Identifier: Apache-2.0
"""The one door through which woq loads a tokenizer: that of a GGUF file by woq's own reader, where
it knows the kind, all others by transformers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from transformers import AutoTokenizer as _AutoTokenizer
from transformers import PreTrainedTokenizerFast

from ..core import native
from ..core.extras import require
from ..formats.gguf_tokenizers import tokenizer_of
from .load import check_source
from .location import FILE_ARGUMENTS, find_gguf, gguf_argument

__all__ = ["AutoTokenizer", "load_tokenizer"]

logger = logging.getLogger("woq")


def load_tokenizer(path: Any, keywords: Mapping[str, Any] | None = None) -> Any:
    """What `AutoTokenizer.from_pretrained(path, **keywords)` returns; with a `gguf_file`, which
    transformers needs the package gguf for, without it if it can be.

    Raises:
        InvalidArgument: the file is damaged.
        ModuleNotFoundError: woq does not know the tokenizer's kind, and gguf is not installed.
    """
    keywords = dict(keywords or {})
    check_source(path, keywords)
    if keywords.get("gguf_file") is None:
        return _AutoTokenizer.from_pretrained(path, **keywords)
    found = _of_gguf(path, keywords)
    if found is not None:
        return found
    require("gguf", "this GGUF file's tokenizer")
    return _AutoTokenizer.from_pretrained(path, **keywords)


def _of_gguf(path: Any, keywords: Mapping[str, Any]) -> Any:
    """None, and a line in the log that says why, where transformers has to do it."""
    more = {k: v for k, v in keywords.items() if k not in ("gguf_file", *FILE_ARGUMENTS)}
    file = find_gguf(path, keywords)
    try:
        known = tokenizer_of(native.GgufModel(file).metadata)
    except native.InvalidArgument as error:
        raise native.InvalidArgument(f"{file} cannot be read: {error}") from error
    except native.Unsupported as error:
        logger.warning("the tokenizer of %s is read by transformers: %s", file, error)
        return None
    return PreTrainedTokenizerFast(
        tokenizer_object=known.tokenizer,
        name_or_path=str(path),
        clean_up_tokenization_spaces=False,
        **{**known.special, **known.adds, "chat_template": known.chat_template, **more},
    )


class AutoTokenizer:
    """`transformers.AutoTokenizer` that reads GGUF files without the package gguf."""

    def __init__(self) -> None:
        raise OSError("use AutoTokenizer.from_pretrained(...)")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Load a tokenizer.

        Args:
            kwargs: as transformers' own class takes them, and `model_file`, another name of
                `gguf_file`, as in `woq.AutoModelForCausalLM`.

        Raises:
            InvalidArgument: the file is damaged.
        """
        return load_tokenizer(pretrained_model_name_or_path, gguf_argument(kwargs))
