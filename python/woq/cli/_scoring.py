# SPDX-License-Identifier: Apache-2.0
"""Perplexity and its companions on the command line: options, protocol, words."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ._command import Failure, Output
from ._options import apply, option

__all__ = ["Protocol", "score", "scoring_options", "text_of"]

Function = TypeVar("Function", bound=Callable[..., Any])


def scoring_options(function: Function) -> Function:
    """What is scored, and in which pieces."""
    of_score = functools.partial(option, group="Scoring")
    return apply(
        function,
        [
            of_score(
                "--text",
                type=click.Path(dir_okay=False, path_type=Path),
                metavar="FILE",
                help="UTF-8 text to score.",
            ),
            of_score(
                "--windows",
                type=click.IntRange(1),
                metavar="N",
                default=16,
                show_default=True,
                help="Pieces of the text that are scored, each on its own.",
            ),
            of_score(
                "--length",
                type=click.IntRange(2),
                metavar="N",
                default=512,
                show_default=True,
                help="Tokens of a window.",
            ),
        ],
    )


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What is scored, and how."""

    text: str
    windows: int
    length: int

    @classmethod
    def from_options(cls, path: Path | None, windows: int, length: int) -> Protocol | None:
        """None without a text.

        Raises:
            Failure: the file cannot be read, or is empty.
        """
        if path is None:
            return None
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise Failure(f"{path} is not UTF-8 text: {error}") from error
        except OSError as error:
            raise Failure(f"--text {path}: {error.strerror}") from error
        if not text.strip():
            raise Failure(f"--text {path}: the file has no text")
        return cls(text, windows, length)


def score(
    protocol: Protocol, model: Any, tokenizer: Any, output: Output, *, reference: Any = None
) -> Any:
    """The woq.Evaluation of `model`."""
    import woq

    return woq.evaluate(
        model,
        tokenizer,
        protocol.text,
        reference=reference,
        windows=protocol.windows,
        length=protocol.length,
        progress=output.progress,
    )


def text_of(figures: Any) -> str:
    lines = [f"perplexity       {figures.perplexity:.4f}"]
    if figures.reference_perplexity is not None:
        change = 100 * (figures.perplexity / figures.reference_perplexity - 1)
        lines += [
            f"unquantized      {figures.reference_perplexity:.4f} ({change:+.2f} %)",
            f"KL divergence    {figures.kl:.5f} nats a token",
            f"same first token {100 * figures.top1:.2f} %",
        ]
    lines.append(
        f"over {figures.tokens:,} tokens: {figures.windows} windows of {figures.length}, each on "
        "its own, without special tokens"
    )
    return "\n".join(lines)
