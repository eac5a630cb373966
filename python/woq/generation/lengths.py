# SPDX-License-Identifier: Apache-2.0
"""Prompt and answer together within what the model reads.

A decoder-only model reads prompt and answer in one sequence; the last token of an answer is not
read any more. An encoder reads the prompt, its decoder a start token and the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig

from ..core.native import InvalidArgument
from .options import SplitOptions
from .positions import position_limit


@dataclass(frozen=True)
class Positions:
    """How many tokens the parts of a model have positions for; None: no limit."""

    prompt: int | None
    answer: int | None  # of a decoder-only model: the prompt's, for both together
    together: bool

    @classmethod
    def of(cls, model: Any) -> Positions:
        if not getattr(model.config, "is_encoder_decoder", False):
            limit = position_limit(model)
            return cls(limit, limit, together=True)
        return cls(
            position_limit(model.get_encoder()),
            position_limit(model.get_decoder()),
            together=False,
        )


def fit_answer(
    config: GenerationConfig,
    options: SplitOptions,
    positions: Positions,
    rows: Sequence[Sequence[int]],
) -> None:
    """Shorten the answer in `config` to the positions, where its length is nobody's wish.

    Raises:
        InvalidArgument: a prompt, or the length that `options` ask for, goes beyond them.
    """
    longest = 0
    for index, row in enumerate(rows):
        longest = max(longest, len(row))
        if positions.prompt is not None and len(row) > positions.prompt:
            raise InvalidArgument(
                f"prompt {index} has {len(row)} tokens, and the model has {positions.prompt} "
                "positions: shorten it (truncation=True of a woq.pipeline cuts texts)"
            )
    if positions.answer is None:
        return
    read = longest if positions.together else 1
    new = config.max_new_tokens
    if new is None:
        new = (config.max_length or 0) - read
    room = positions.answer - read + 1
    if new <= room:
        return
    if _length_is_asked_for(options):
        beside = f" behind a prompt of {longest}" if positions.together else ""
        raise InvalidArgument(
            f"an answer of {new} tokens{beside} needs {read + new - 1} positions, and the model "
            f"has {positions.answer}: pass max_new_tokens={room} at most"
            + (", or a shorter prompt" if positions.together else "")
        )
    config.max_new_tokens, config.max_length = room, None


def room_for_prompt(config: GenerationConfig, options: SplitOptions, limit: int) -> int:
    """Tokens of a prompt, where it and its answer may have `limit` together.

    Raises:
        InvalidArgument: the answer alone may have as many.
    """
    if config.max_new_tokens is None:  # max_length counts the prompt, too
        return max(1, min(limit, config.max_length or limit) - 1)
    new = config.max_new_tokens
    if not _length_is_asked_for(options):
        new = min(new, limit // 2)
    if new >= limit:
        raise InvalidArgument(
            f"truncation=True: prompt and answer may have {limit} tokens together, so that "
            f"max_new_tokens={new} leaves none for the prompt: pass fewer"
        )
    return limit - new


def _length_is_asked_for(options: SplitOptions) -> bool:
    """By the caller, not by the model's generation config or a default."""
    base = options.base.to_diff_dict() if options.base is not None else {}
    names = ("max_new_tokens", "max_length")
    return any(given.get(name) is not None for given in (base, options.fields) for name in names)
