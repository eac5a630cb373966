# SPDX-License-Identifier: Apache-2.0
"""From token ids to text, one row at a time, cut at the first stop text.

Streams, batches and the stopping rule all use `RowText`, so that the pieces of a stream always
join to exactly the text that a plain call returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, cast

import torch
from transformers import StoppingCriteria

from ..core.native import InvalidArgument

# What a decoder puts where bytes don't make a character (yet).
_REPLACEMENT = "\ufffd"
# Of the tokens before an answer: more than the bytes of a character.
_TOKENS_BEFORE = 8


class Decodes(Protocol):
    """The part of a transformers tokenizer that turning ids into text needs."""

    def decode(self, token_ids: Any, /, **kwargs: Any) -> Any: ...


def normalize_stops(stop: str | Iterable[str] | None) -> tuple[str, ...]:
    """Stop texts without repetitions; a lone string is one stop, not its characters."""
    if stop is None:
        return ()
    if not isinstance(stop, (str, Iterable)):
        raise InvalidArgument(f"stop must be a string or a list of strings, got {stop!r}")
    stops = [stop] if isinstance(stop, str) else list(stop)
    for text in stops:
        if not isinstance(text, str) or not text:
            raise InvalidArgument(f"stop must hold non-empty strings, got {text!r} in {stops!r}")
    return tuple(dict.fromkeys(stops))


class RowText:
    """The text of one sequence while its tokens arrive.

    `push` returns the text that is certain: a character whose bytes are incomplete and a possible
    beginning of a stop text are held back. A stop text is literal. The stop text that is complete
    first wins; if one token completes several, the leftmost of them wins.

    `before` are the tokens that the sequence goes on from. Vocabularies that mark the beginnings of
    words (Llama 2, Mistral, Gemma) drop the first mark of what they decode: without a token before
    it, "the sea" and its answer "is deep" would join to "the seais deep".
    """

    def __init__(
        self,
        tokenizer: Decodes,
        stops: Sequence[str],
        end_ids: frozenset[int],
        before: Sequence[int] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._end_ids = end_ids
        self._before = list(before[-_TOKENS_BEFORE:])
        if self._decode(self._before).endswith(_REPLACEMENT):
            self._before = []  # the first new token may complete the character
        self.reset()

    def reset(self) -> None:
        self.ids: list[int] = []
        self._seen = [*self._before]  # and ids, those that have text
        self.finished = False
        self._emitted: list[str] = []
        self._held = ""
        # Decoding a token alone loses its leading space in SentencePiece vocabularies and splits
        # characters in byte-level ones. So the window [window, len) is decoded with and without
        # its new part [read, len), and the difference is the new text.
        self._window = 0
        self._read = len(self._before)

    @property
    def text(self) -> str:
        """All text that was emitted so far."""
        return "".join(self._emitted)

    def before(self, place: int) -> int | None:
        """The token that stands before `ids[place]`; None where the text begins."""
        if place:
            return self.ids[place - 1]
        return self._before[-1] if self._before else None

    def push(self, token_id: int) -> str:
        if self.finished:
            return ""
        if token_id in self._end_ids:
            # Flushed first: an end token that isn't special has text, which is not part of the
            # answer.
            piece = self.flush()
            self.ids.append(token_id)
            self.finished = True
            return piece
        self.ids.append(token_id)
        self._seen.append(token_id)
        return self._release(self._decode_new(final=False), final=False)

    def advance(self, ids: Sequence[int]) -> str:
        """Bring the row to `ids`; with another history (beams swap rows) it starts anew."""
        if list(ids[: len(self.ids)]) != self.ids:
            self.reset()
        return "".join([self.push(token_id) for token_id in ids[len(self.ids) :]])

    def flush(self) -> str:
        """What was held back, once no token will follow."""
        if self.finished:
            return ""
        return self._release(self._decode_new(final=True), final=True)

    def _decode_new(self, *, final: bool) -> str:
        known = self._decode(self._seen[self._window : self._read])
        whole = self._decode(self._seen[self._window :])
        if len(whole) <= len(known) or (whole.endswith(_REPLACEMENT) and not final):
            return ""
        self._window, self._read = self._read, len(self._seen)
        return whole[len(known) :]

    def _decode(self, ids: list[int]) -> str:
        # Clean-up would join "word ," across tokens that were already emitted.
        text = self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text

    def _release(self, new_text: str, *, final: bool) -> str:
        text = self._held + new_text
        positions = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        if positions:
            self.finished = True
            self._held = ""
            return self._emit(text[: min(positions)])
        keep = 0 if final else self._partial_stop(text)
        self._held = text[len(text) - keep :]
        return self._emit(text[: len(text) - keep])

    def _emit(self, text: str) -> str:
        if text:
            self._emitted.append(text)
        return text

    def _partial_stop(self, text: str) -> int:
        """Length of the longest end of `text` that is a proper beginning of a stop text."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            end = text[-length:]
            if any(len(stop) > length and stop.startswith(end) for stop in self._stops):
                return length
        return 0


class TextStopping(StoppingCriteria):
    """Ends each row at its stop text.

    `start` is the width of the prompt: stop texts count in new text only. transformers' own
    `stop_strings` also match text that begins in the prompt, and leave the stop text in the output.
    `make_row` makes row i of n.
    """

    def __init__(
        self,
        make_row: Callable[[int, int], RowText],
        start: int,
        *,
        on_text: Callable[[str], None] | None = None,
    ) -> None:
        self._make_row = make_row
        self._start = start
        self._on_text = on_text
        self._rows: list[RowText] = []

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        sequences = input_ids[:, self._start :].tolist()
        while len(self._rows) < len(sequences):
            self._rows.append(self._make_row(len(self._rows), len(sequences)))
        for row, ids in zip(self._rows, sequences, strict=False):
            piece = row.advance(ids)
            if piece and self._on_text is not None:
                self._on_text(piece)
        done = [row.finished for row in self._rows[: len(sequences)]]
        return cast(torch.BoolTensor, torch.tensor(done, device=input_ids.device))
