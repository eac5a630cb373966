# SPDX-License-Identifier: Apache-2.0
"""What a generation returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class TokenLogprob:
    """One generated token and the logarithm of the probability that the model gave it.

    Probabilities are the model's own: before temperature, top_k, penalties and grammars.
    """

    token: str
    token_id: int
    logprob: float
    top: tuple[tuple[str, int, float], ...] = ()  # most likely first: token, its id, its logprob

    def to_dict(self) -> dict[str, Any]:
        """In OpenAI's words, with the ids beside them."""
        return {
            "token": self.token,
            "token_id": self.token_id,
            "logprob": self.logprob,
            "top_logprobs": [
                {"token": token, "token_id": token_id, "logprob": logprob}
                for token, token_id, logprob in self.top
            ],
        }


@dataclass(frozen=True)
class Completion:
    """The answer to one prompt: new text only, without the stop text."""

    text: str
    finish_reason: str
    """"stop": end token or stop text; "length": a limit on length or time; "cancelled"."""
    prompt_tokens: int
    completion_tokens: int
    """End token and tokens of the stop text included."""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    """One per token, when asked for."""
    time_to_first_token: float = field(default=0.0, compare=False)
    """Seconds from the call of the model to the first new token; of the whole batch."""
    seconds: float = field(default=0.0, compare=False)
    """From the call of the model to this answer's last token."""

    @property
    def tokens_per_second(self) -> float | None:
        """Of the decode: tokens after the first; None for fewer than two."""
        decode = self.seconds - self.time_to_first_token
        if self.completion_tokens < 2 or decode <= 0:
            return None
        return (self.completion_tokens - 1) / decode

    def details(self) -> dict[str, Any]:
        """Everything but the text, ready for JSON."""
        details: dict[str, Any] = {
            "finish_reason": self.finish_reason,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "token_ids": list(self.token_ids),
            "time_to_first_token": self.time_to_first_token,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
        }
        if self.logprobs is not None:
            details["logprobs"] = [entry.to_dict() for entry in self.logprobs]
        return details
