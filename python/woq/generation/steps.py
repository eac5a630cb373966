# SPDX-License-Identifier: Apache-2.0
"""What happens at each step of a generation beside the model: the clock, cancellation, draws of a
seed's own, log-probabilities."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from transformers import LogitsProcessor, StoppingCriteria

from ..core import transformers_private


class Flag(Protocol):
    """The part of threading.Event that cancellation needs."""

    def is_set(self) -> bool: ...


class StepWatch(StoppingCriteria):
    """Notes when each step ended, and ends all rows once `cancelled` is set."""

    def __init__(self, cancelled: Flag | None = None) -> None:
        self._cancelled = cancelled
        self._start = time.perf_counter()
        self._ends: list[float] = []
        self.was_cancelled = False

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        self._ends.append(time.perf_counter() - self._start)
        if self._cancelled is not None and self._cancelled.is_set():
            self.was_cancelled = True
        done = torch.full((len(input_ids),), self.was_cancelled, device=input_ids.device)
        return cast(torch.BoolTensor, done)

    def seconds_until(self, tokens: int) -> float:
        """Until a row had that many tokens. Assisted generation takes several in one step."""
        if not self._ends or tokens < 1:
            return 0.0
        return self._ends[min(tokens, len(self._ends)) - 1]


class SeededDraw(LogitsProcessor):
    """Draws the next token of each row [1 of vocab] from that row's own random numbers.

    Leaves the drawn token as the only one, for the caller to take by argmax. So neither is torch's
    global generator touched nor does a row's answer depend on the rows beside it. One row draws
    what `torch.manual_seed(seed)` and transformers' sampling would.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        probabilities = torch.softmax(scores, dim=-1).cpu()  # [rows, vocab]
        drawn = torch.cat(
            [
                torch.multinomial(row[None], num_samples=1, generator=generator)
                for row, generator in zip(probabilities, self._generators, strict=True)
            ]
        )
        only = torch.full_like(scores, -torch.inf)
        return cast(torch.FloatTensor, only.scatter_(1, drawn.to(scores.device), 0.0))


class ScoreTap(LogitsProcessor):
    """As the first processor: keeps the log-probabilities [rows, vocab] of the step under way."""

    logprobs: torch.Tensor

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self.logprobs = torch.log_softmax(scores.float(), dim=-1)
        return scores


class LogprobRecorder(StoppingCriteria):
    """Log-probabilities of the chosen tokens, and of the `top` most likely ones; stops nothing."""

    def __init__(self, top: int) -> None:
        self.tap = ScoreTap()
        self._top = top
        self._steps: list[tuple[list[float], list[list[int]], list[list[float]]]] = []

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        chosen = self.tap.logprobs.gather(1, input_ids[:, -1:])[:, 0]
        best = self.tap.logprobs.topk(self._top, dim=-1)
        self._steps.append((chosen.tolist(), best.indices.tolist(), best.values.tolist()))
        done = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        return cast(torch.BoolTensor, done)

    def row(self, index: int, tokens: int) -> list[tuple[float, list[tuple[int, float]]]]:
        """Of a row's first `tokens` tokens: its logprob, and id and logprob of the likeliest."""
        return [
            (chosen[index], list(zip(ids[index], values[index], strict=True)))
            for chosen, ids, values in self._steps[:tokens]
        ]


def decode_steps(draw: SeededDraw | None, recorder: LogprobRecorder | None) -> Any:
    """A `custom_generate` for `model.generate`: transformers' own loop with our parts in it.

    Arguments of generate() would do, but transformers puts processors that it is given between its
    own: after penalties, before temperature.
    """

    def run(
        model: Any,
        input_ids: Any,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **kwargs: Any,
    ) -> Any:
        if recorder is not None:
            logits_processor.insert(0, recorder.tap)
            stopping_criteria.append(recorder)
        if draw is not None:
            logits_processor.append(draw)
            generation_config.do_sample = False
        return transformers_private.sample(
            model,
            input_ids,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            generation_config=generation_config,
            **kwargs,
        )

    return run
