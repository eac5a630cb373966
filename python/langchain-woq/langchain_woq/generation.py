# SPDX-License-Identifier: Apache-2.0
"""Tokenize, generate, decode: one path for decoder-only and encoder-decoder models.

transformers 5 has no "text2text-generation" pipeline any more, and its "text-generation" pipeline
leaves stop texts in the output, so this package brings its own. Nothing here knows LangChain or
quantization.
"""

from __future__ import annotations

import copy
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteriaList

from langchain_woq.options import (
    DEFAULT_MAX_NEW_TOKENS,
    check_options,
    imply_sampling,
    split_options,
    unset_config,
)
from langchain_woq.text import RowText, TextStopping, normalize_stops


@dataclass(frozen=True)
class Completion:
    """The answer to one prompt: new text only, without the stop text."""

    text: str
    finish_reason: str  # "stop": end token or stop text; "length": a limit on length or time
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class _Call:
    """All that `model.generate` needs for one batch of prompts."""

    inputs: dict[str, torch.Tensor]  # input_ids and attention_mask, both [batch, tokens]
    config: GenerationConfig
    objects: dict[str, Any]
    stops: tuple[str, ...]
    end_ids: frozenset[int]
    start: int  # columns of the output that are not new text
    prompt_lengths: list[int]


class TextGenerator:
    """A model and its tokenizer as a function from prompts to new text.

    `options` are generation arguments that hold for each call unless the call gives its own.
    Without a limit on length, at most 256 tokens are generated. Nothing is sampled unless the
    options or the model's generation config say so.
    """

    def __init__(
        self, model: Any, tokenizer: Any, options: Mapping[str, Any] | None = None
    ) -> None:
        if not callable(getattr(model, "generate", None)):
            raise TypeError(
                f"model is a {type(model).__name__} without generate(): a transformers model "
                "with a language modelling head is needed "
                "(AutoModelForCausalLM, AutoModelForSeq2SeqLM)"
            )
        if not callable(getattr(tokenizer, "decode", None)):
            raise TypeError(
                f"tokenizer is a {type(tokenizer).__name__} without decode(): "
                "pass the model's transformers tokenizer"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.options = dict(options or {})
        check_options(self.options)
        self._config(self.options)  # wrong values fail here and not at the first call

    @property
    def is_encoder_decoder(self) -> bool:
        return bool(getattr(self.model.config, "is_encoder_decoder", False))

    def generate(
        self,
        prompts: Sequence[str],
        *,
        stop: str | Sequence[str] | None = None,
        batch_size: int = 8,
        **options: Any,
    ) -> list[list[Completion]]:
        """One list per prompt, with `num_return_sequences` completions each.

        Up to `batch_size` prompts go through the model together.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        answers: list[list[Completion]] = []
        for first in range(0, len(prompts), batch_size):
            call = self._prepare(prompts[first : first + batch_size], stop, options)
            answers += self._run(call)
        return answers

    def stream(
        self, prompt: str, *, stop: str | Sequence[str] | None = None, **options: Any
    ) -> Iterator[str | Completion]:
        """Pieces of new text as they become certain, then the `Completion`.

        The model runs in a thread of its own. There is no time limit on the first token, an
        exception in the thread is raised here, and closing the iterator ends the thread after the
        current token.
        """
        call = self._prepare([prompt], stop, options)
        for name in ("num_beams", "num_return_sequences"):
            value = getattr(call.config, name, None)
            if value not in (None, 1):
                raise ValueError(f"streaming needs {name}=1, got {value}")

        events: queue.SimpleQueue[str | Completion | BaseException] = queue.SimpleQueue()
        cancelled = threading.Event()

        def run() -> None:
            emitted = 0

            def on_text(piece: str) -> None:
                nonlocal emitted
                emitted += len(piece)
                events.put(piece)

            try:
                completion = self._run(call, on_text=on_text, cancelled=cancelled)[0][0]
                if len(completion.text) > emitted:  # held back until no token followed
                    events.put(completion.text[emitted:])
                events.put(completion)
            except BaseException as error:
                events.put(error)

        thread = threading.Thread(target=run, name="langchain-woq-stream", daemon=True)
        thread.start()
        try:
            while True:
                event = events.get()
                if isinstance(event, BaseException):
                    raise event
                yield event
                if isinstance(event, Completion):
                    return
        finally:
            cancelled.set()
            thread.join()

    # One batch

    def _prepare(
        self,
        prompts: Sequence[str],
        stop: str | Sequence[str] | None,
        options: Mapping[str, Any],
    ) -> _Call:
        check_options(options)
        merged = dict(self.options)
        if options.get("max_length") is not None and options.get("max_new_tokens") is None:
            merged.pop("max_new_tokens", None)  # the call's limit, not both
        merged.update(options)
        config, objects = self._config(merged)
        stops = normalize_stops(stop)
        stops += tuple(text for text in normalize_stops(config.stop_strings) if text not in stops)
        config.stop_strings = None  # done by TextStopping

        rows = [self._encode(prompt, index) for index, prompt in enumerate(prompts)]
        inputs = self._pad(rows, config.pad_token_id)
        return _Call(
            inputs=inputs,
            config=config,
            objects=objects,
            stops=stops,
            end_ids=self._end_ids(config, stops),
            start=1 if self.is_encoder_decoder else inputs["input_ids"].shape[1],
            prompt_lengths=[len(row) for row in rows],
        )

    def _run(
        self,
        call: _Call,
        *,
        on_text: Any = None,
        cancelled: threading.Event | None = None,
    ) -> list[list[Completion]]:
        def make_row() -> RowText:
            return RowText(self.tokenizer, call.stops, call.end_ids)

        objects = dict(call.objects)
        criteria = StoppingCriteriaList(objects.pop("stopping_criteria", None) or [])
        # End tokens that are the model's own are transformers' business; without stop texts and
        # without a stream there is nothing to watch.
        if call.stops or on_text is not None:
            criteria.append(
                TextStopping(make_row, call.start, on_text=on_text, cancelled=cancelled)
            )
        if self.model.generation_config.stop_strings:
            objects["tokenizer"] = self.tokenizer  # generate() fills unset fields from there again
        output = self.model.generate(
            **call.inputs, generation_config=call.config, stopping_criteria=criteria, **objects
        )
        completions = []
        for ids in output[:, call.start :].tolist():
            row = make_row()
            row.advance(ids)
            reason = "stop" if row.finished else "length"
            row.flush()
            completions.append((row.text, reason, len(row.ids)))
        per_prompt = len(completions) // len(call.prompt_lengths)
        return [
            [
                Completion(text, reason, prompt_tokens, tokens)
                for text, reason, tokens in completions[i * per_prompt : (i + 1) * per_prompt]
            ]
            for i, prompt_tokens in enumerate(call.prompt_lengths)
        ]

    def _config(self, options: Mapping[str, Any]) -> tuple[GenerationConfig, dict[str, Any]]:
        """The model's generation config with the options on top, and objects for generate()."""
        values, objects = split_options(options)
        config = copy.deepcopy(self.model.generation_config)
        config.update(**imply_sampling(values))
        config.return_dict_in_generate = False
        # transformers' default of 20 tokens, prompt included, cuts nearly every answer. Before
        # version 5 an unset max_length reads as that default.
        if config.max_new_tokens is None and config.max_length in (
            None,
            unset_config().max_length,
        ):
            config.max_new_tokens = DEFAULT_MAX_NEW_TOKENS
        if config.max_new_tokens is not None and (
            not isinstance(config.max_new_tokens, int) or config.max_new_tokens < 1
        ):
            raise ValueError(
                f"max_new_tokens must be an integer of at least 1, got {config.max_new_tokens!r}"
            )
        if config.pad_token_id is None:
            config.pad_token_id = self._pad_id(config)
        return config, objects

    def _pad_id(self, config: GenerationConfig) -> int:
        pad = self.tokenizer.pad_token_id
        if pad is not None:
            return int(pad)
        ends = _as_ids(config.eos_token_id)
        return ends[0] if ends else 0  # masked, so that any token will do

    def _end_ids(self, config: GenerationConfig, stops: Sequence[str]) -> frozenset[int]:
        """End tokens, and the special tokens (never decoded) that a stop text names."""
        ids = set(_as_ids(config.eos_token_id))
        special = dict(
            zip(self.tokenizer.all_special_tokens, self.tokenizer.all_special_ids, strict=True)
        )
        ids.update(special[text] for text in stops if text in special)
        return frozenset(ids)

    def _encode(self, prompt: str, index: int) -> list[int]:
        if not isinstance(prompt, str):
            raise TypeError(f"prompt {index} is a {type(prompt).__name__}, a string is needed")
        ids: list[int] = list(self.tokenizer(prompt)["input_ids"])
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            del ids[0]  # a chat template wrote it already
        if not ids:
            if bos is None:
                raise ValueError(
                    f"prompt {index} ({prompt!r}) has no tokens, and the tokenizer has no "
                    "beginning-of-sequence token to start from"
                )
            ids = [bos]
        return ids

    def _pad(self, rows: Sequence[Sequence[int]], pad_id: int) -> dict[str, torch.Tensor]:
        """Decoders continue at the right end, so their padding is on the left; encoders' on the
        right.

        Done here because a tokenizer's own padding needs a pad token and a side, which would have
        to be changed in the caller's object.
        """
        width = max(len(row) for row in rows)
        input_ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
        attention_mask = torch.zeros((len(rows), width), dtype=torch.long)
        for i, row in enumerate(rows):
            columns = (
                slice(0, len(row)) if self.is_encoder_decoder else slice(width - len(row), width)
            )
            input_ids[i, columns] = torch.tensor(row, dtype=torch.long)
            attention_mask[i, columns] = 1
        device = self.model.device
        return {"input_ids": input_ids.to(device), "attention_mask": attention_mask.to(device)}


def _as_ids(value: Any) -> list[int]:
    if value is None:
        return []
    if isinstance(value, int):
        return [value]
    return [int(item) for item in value]
