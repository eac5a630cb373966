# SPDX-License-Identifier: Apache-2.0
"""Constrained generation: only tokens that keep the answer a beginning of what a grammar allows.

The grammars are llguidance's (https://github.com/guidance-ai/llguidance), which is loaded on first
use.
"""

from __future__ import annotations

import importlib
import json
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import LogitsProcessor

from ..core.native import InvalidArgument

# Spaces as people and models write JSON, and no others: a model must not fill lines with blanks.
_JSON_STYLE = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}


@dataclass(frozen=True)
class Grammar:
    """What an answer may look like; the option `grammar` of `TextGenerator`.

    The end token comes when the grammar allows no more text, and no earlier than it allows an end.
    A limit on length still cuts: look at the finish reason.
    """

    source: str  # in llguidance's own serialization

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any], *, lenient: bool = False) -> Grammar:
        """JSON that the schema describes; `lenient` ignores keywords that cannot be enforced.

        Raises:
            InvalidArgument: the schema is wrong, or has a keyword that cannot be enforced.
        """
        source = _llguidance().LLMatcher.grammar_from_json_schema(
            json.dumps(dict(schema)), overrides={**_JSON_STYLE, "lenient": lenient}
        )
        return cls(source)._checked("the JSON schema")

    @classmethod
    def lark(cls, text: str) -> Grammar:
        """Text that the rule `start` of a Lark grammar in llguidance's dialect describes."""
        return cls(_llguidance().LLMatcher.grammar_from_lark(text))._checked("the grammar")

    def _checked(self, what: str) -> Grammar:
        error = _llguidance().LLMatcher.validate_grammar(self.source)
        if error and not error.startswith("WARNING"):
            raise InvalidArgument(f"{what} cannot be enforced while generating: {error}")
        return self


def json_fragment(schema: Mapping[str, Any], *, lenient: bool = False) -> str:
    """The schema as a term of a Lark grammar; `lenient` as in `Grammar.json_schema`."""
    style = {**_JSON_STYLE, **({"lenient": True} if lenient else {})}
    return "%json " + json.dumps({**schema, "x-guidance": style})


class GrammarProcessor(LogitsProcessor):
    """Rules out tokens by a matcher for each row; new text begins at column `start`."""

    def __init__(
        self, grammar: Grammar, tokenizer: Any, end_ids: Sequence[int], start: int
    ) -> None:
        self._matcher = _llguidance().LLMatcher(
            _wrapped(tokenizer, tuple(end_ids)), grammar.source, log_level=0
        )
        self._start = start
        self._end_ids = tuple(end_ids)
        self._rows: list[tuple[list[int], Any]] = []  # consumed ids, matcher

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        masked = scores.clone()
        for index, ids in enumerate(input_ids[:, self._start :].tolist()):
            if index == len(self._rows):
                self._rows.append(([], self._matcher.deep_copy()))
            matcher = self._advance(index, ids)
            if matcher.is_stopped():
                if not ids or ids[-1] not in self._end_ids:  # complete, but not ended yet
                    masked[index] = -torch.inf
                    masked[index, self._end_ids[0]] = 0.0
                continue
            # One byte per token of the tokenizer, 0 for a token that is ruled out. The model may
            # have more rows of logits than there are tokens.
            allowed = torch.frombuffer(bytearray(matcher.compute_logit_bias()), dtype=torch.uint8)
            count = min(len(allowed), masked.shape[1])
            masked[index, :count].masked_fill_(allowed[:count] == 0, -torch.inf)
            masked[index, count:] = -torch.inf
            if masked[index].max() == -torch.inf:
                # Others (no_repeat_ngram_size, bad words) ruled out all of it: the grammar wins.
                masked[index, :count].masked_fill_(allowed[:count] != 0, 0.0)
        return cast(torch.FloatTensor, masked)

    def _advance(self, index: int, ids: list[int]) -> Any:
        consumed, matcher = self._rows[index]
        if ids[: len(consumed)] != consumed:  # beams swap rows
            matcher.reset()
            consumed = []
        for token_id in ids[len(consumed) :]:
            if matcher.is_stopped():
                break  # the end token, then padding
            matcher.consume_token(token_id)
        if matcher.is_error():
            raise RuntimeError(f"the grammar failed while generating: {matcher.get_error()}")
        self._rows[index] = (ids, matcher)
        return matcher


_cache: weakref.WeakKeyDictionary[Any, dict[tuple[int, ...], Any]] = weakref.WeakKeyDictionary()
_cache_lock = threading.Lock()


def _wrapped(tokenizer: Any, end_ids: tuple[int, ...]) -> Any:
    """llguidance's form of a tokenizer; it takes a second for a large vocabulary, so it is kept."""
    if not end_ids:
        raise InvalidArgument(
            "grammar needs a token that ends the answer: eos_token_id is None for this model"
        )
    with _cache_lock:
        kept = _cache.setdefault(tokenizer, {})
        if end_ids not in kept:
            _llguidance()
            build = importlib.import_module("llguidance.hf").from_tokenizer
            try:
                kept[end_ids] = build(tokenizer, eos_token=list(end_ids))
            except ValueError as error:
                raise InvalidArgument(
                    f"grammar needs a fast tokenizer, not a {type(tokenizer).__name__}: {error}"
                ) from error
        return kept[end_ids]


def _llguidance() -> Any:
    try:
        return importlib.import_module("llguidance")
    except ImportError as error:
        raise ImportError(
            "constrained generation (grammar=, structured output, forced tool calls) needs "
            "llguidance: pip install 'woq[grammar]'"
        ) from error
