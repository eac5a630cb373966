# SPDX-License-Identifier: Apache-2.0
"""How well a model predicts a text, and how close it stays to the model it was made from.

One protocol, for the command line, the report and the benchmarks: the text is tokenized as a whole,
without special tokens; its first `windows` pieces of `length` tokens are scored on their own. All
figures are over the same predicted tokens, length - 1 of each window:

    perplexity = exp(mean of -log p(token))
    KL         = mean of KL(reference || model), in nats a token
    top-1      = share of positions where both models rank the same token first
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from ..core.native import InvalidArgument

__all__ = ["Evaluation", "evaluate", "log_probabilities", "score", "windows_of"]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Figures of one model over `windows` pieces of `length` tokens; the last three only beside a
    reference."""

    windows: int
    length: int
    tokens: int  # predicted ones: windows * (length - 1)
    perplexity: float
    reference_perplexity: float | None = None
    kl: float | None = None  # nats a token
    top1: float | None = None  # 0 to 1


def evaluate(
    model: Any,
    tokenizer: Any,
    text: str,
    *,
    reference: Any = None,
    windows: int = 16,
    length: int = 512,
    progress: bool | None = None,
) -> Evaluation:
    """Score `model` over `text`, and beside `reference` (the unquantized model) if that is given.

    Both models take each window in turn, so that one window's probabilities are in memory.

    Args:
        model: a decoder-only language model.
        windows, length: how many pieces of the text are scored, of how many tokens.
        progress: show a progress bar on stderr; None: on a terminal.

    Raises:
        InvalidArgument: the text is too short, a window is longer than the model's positions, or
            the two models have different vocabularies.
    """
    pieces = windows_of(tokenizer, text, windows, length)
    _check_model(model, length)
    shown = _with_bar(pieces, sys.stderr.isatty() if progress is None else progress)
    candidate = log_probabilities(model, shown)
    if reference is None:
        nll = sum(_nll(window, got) for window, got in zip(pieces, candidate, strict=True))
        tokens = pieces.numel() - len(pieces)
        return Evaluation(windows, length, tokens, perplexity=math.exp(nll / tokens))
    _check_model(reference, length)
    nll = 0.0

    def counted() -> Iterator[torch.Tensor]:
        nonlocal nll
        for window, expected in zip(pieces, log_probabilities(reference, pieces), strict=True):
            nll += _nll(window, expected)
            yield expected

    figures = score(pieces, counted(), candidate)
    tokens = pieces.numel() - len(pieces)
    return Evaluation(
        windows, length, tokens, reference_perplexity=math.exp(nll / tokens), **figures
    )


def windows_of(tokenizer: Any, text: str, count: int, length: int) -> torch.Tensor:
    """The first `count` pieces of the text as token ids [count, length].

    Raises:
        InvalidArgument: the text has fewer tokens.
    """
    if not text.strip():
        raise InvalidArgument("the text is empty: give one to score")
    if count < 1 or length < 2:
        raise InvalidArgument(
            f"at least 1 window of 2 tokens is needed, got {count} windows of {length}"
        )
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) < count * length:
        raise InvalidArgument(
            f"the text has {len(ids)} tokens, {count} windows of {length} need {count * length}: "
            "give a longer text, fewer windows or shorter ones"
        )
    return torch.tensor(ids[: count * length], dtype=torch.long).view(count, length)


@torch.inference_mode()
def log_probabilities(model: Any, windows: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """For each window [length], log p of the next token [length - 1, vocabulary]."""
    for window in windows:
        logits = model(input_ids=window[None]).logits[0, :-1]
        yield torch.log_softmax(logits.float(), dim=-1)


def score(
    windows: torch.Tensor, reference: Iterable[torch.Tensor], candidate: Iterable[torch.Tensor]
) -> dict[str, float]:
    """perplexity of the candidate, its kl and top1 beside the reference, from both models'
    `log_probabilities` of `windows` [count, length]."""
    nll = kl = same = 0.0
    for window, expected, got in zip(windows, reference, candidate, strict=True):
        if expected.shape != got.shape:
            raise InvalidArgument(
                f"the models have vocabularies of {expected.shape[-1]} and {got.shape[-1]} tokens: "
                "one is no quantized form of the other"
            )
        nll += _nll(window, got)
        kl += torch.sum(expected.exp() * (expected - got), dtype=torch.float64).item()
        same += (expected.argmax(-1) == got.argmax(-1)).sum().item()
    tokens = windows.numel() - len(windows)
    return {"perplexity": math.exp(nll / tokens), "kl": kl / tokens, "top1": same / tokens}


def _nll(window: torch.Tensor, got: torch.Tensor) -> float:
    return -got.gather(1, window[1:, None]).double().sum().item()


def _check_model(model: Any, length: int) -> None:
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise InvalidArgument(
            f"{type(model).__name__} is an encoder-decoder model: perplexity of a text is defined "
            "here for decoder-only ones"
        )
    limit = getattr(config, "max_position_embeddings", None)
    if isinstance(limit, int) and 0 < limit < length:
        raise InvalidArgument(f"windows of {length} tokens: the model has {limit} positions")


def _with_bar(windows: torch.Tensor, show: bool) -> Iterable[torch.Tensor]:
    if not show:
        return windows
    from tqdm import tqdm

    return tqdm(windows, desc="Scoring", unit="window", file=sys.stderr)
