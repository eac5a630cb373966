# SPDX-License-Identifier: Apache-2.0
"""Tokenize, generate, decode: one path for decoder-only and encoder-decoder models.

`woq.pipeline`, the LangChain package and the command line all generate here, so that they yield the
same tokens. Nothing here knows LangChain or quantization.
"""

from __future__ import annotations

import asyncio
import copy
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from ..core.native import InvalidArgument
from .chat import ChatIds
from .completion import Completion, TokenLogprob
from .grammar import GrammarProcessor
from .lengths import Positions, fit_answer, room_for_prompt
from .options import (
    DEFAULT_MAX_NEW_TOKENS,
    SplitOptions,
    check_options,
    imply_sampling,
    merge_options,
    split_options,
    unset_config,
)
from .step_threads import StepThreads
from .steps import Flag, LogprobRecorder, SeededDraw, StepWatch, decode_steps
from .text import RowText, TextStopping, normalize_stops
from .threads import run_in_thread, start_thread

# transformers writes 1e30 where a tokenizer has no limit.
_NO_LIMIT = 1 << 31
# A text, or the ids of its tokens.
Prompt = str | Sequence[int]


@dataclass(frozen=True)
class _Call:
    """All that `model.generate` needs for one batch of prompts."""

    inputs: dict[str, torch.Tensor]  # input_ids and attention_mask, both [batch, tokens]
    config: GenerationConfig
    options: SplitOptions
    stops: tuple[str, ...]
    end_ids: frozenset[int]
    start: int  # columns of the output that are not new text
    prompt_lengths: list[int]
    before: list[list[int]]  # the tokens that each answer's text goes on from


class TextGenerator:
    """A model and its tokenizer as a function from prompts to new text.

    Options of a call, or of all calls when they are given here:

    - the fields of transformers.GenerationConfig (`max_new_tokens`, `temperature`, ...), or a whole
      `generation_config`; `logits_processor`, `stopping_criteria`, `assistant_model`,
      `prefix_allowed_tokens_fn`;
    - `stop` (or `stop_strings`, `stop_sequence`): literal texts that end an answer; they are looked
      for in new text only, and are not part of the answer;
    - `seed`: draw from random numbers of the call's own. torch's global generator is neither read
      nor written, and answer j to a prompt depends on its tokens and `seed + j` alone, whatever
      else is in the batch. One answer is what `torch.manual_seed(seed)` and `model.generate` yield.
      Without a seed torch's global generator is used;
    - `logprobs`: True for the log-probability of each token, n for the n likeliest tokens too;
    - `grammar`: a `woq.generation.Grammar` that the answer must follow.

    Without a limit on length, at most 256 tokens are generated; fewer where the model has no
    positions for more (GPT-2, OPT: their positions are rows of a table). A prompt, or a limit that
    was asked for, beyond those is refused. Nothing is sampled unless the options or the model's
    generation config say so.

    `prefix` is put before each text prompt (T5's "summarize: ").
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        options: Mapping[str, Any] | None = None,
        *,
        prefix: str = "",
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
        self.prefix = prefix
        self.options = dict(options or {})
        self._positions = Positions.of(model)
        check_options(self.options)
        self._config(split_options(self.options))  # wrong values fail now, not at the first call

    @property
    def is_encoder_decoder(self) -> bool:
        return bool(getattr(self.model.config, "is_encoder_decoder", False))

    @property
    def context_length(self) -> int | None:
        """Tokens of a prompt and its answer that the model has positions for, or was trained on."""
        trained = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return self._positions.prompt or (trained if isinstance(trained, int) else None)

    def with_options(self, options: Mapping[str, Any]) -> TextGenerator:
        """The same model with more defaults, which win over those it has."""
        merged = merge_options(self.options, options)
        return TextGenerator(self.model, self.tokenizer, merged, prefix=self.prefix)

    def encode(self, prompt: str, *, truncation: bool = False, **options: Any) -> list[int]:
        """Token ids of a text prompt, as `generate` makes them.

        `truncation` cuts it to the tokenizer's model_max_length and the model's positions. A prompt
        that the answer goes on from loses its beginning, and so much of it that the answer has room
        (`options` are the call's); what an encoder reads loses its end.

        Raises:
            InvalidArgument: `truncation`, but there is no limit, or the answer may fill it.
        """
        if not truncation:
            return self._tokenize(prompt)
        limit = self._limit()
        if self.is_encoder_decoder:
            return self._tokenize(prompt, truncation=True, max_length=limit)
        check_options(options)
        split = split_options(merge_options(self.options, options))
        room = room_for_prompt(self._config(split), split, limit)
        ids = self._tokenize(prompt)
        if len(ids) <= room:
            return ids
        kept = 1 if room > 1 and ids[0] == self.tokenizer.bos_token_id else 0
        return ids[:kept] + ids[len(ids) - room + kept :]

    def _tokenize(self, prompt: str, **settings: Any) -> list[int]:
        ids: list[int] = list(self.tokenizer(self.prefix + prompt, **settings)["input_ids"])
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            del ids[0]  # a chat template wrote it already
        return ids

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        batch_size: int = 8,
        cancelled: Flag | None = None,
        **options: Any,
    ) -> list[list[Completion]]:
        """One list per prompt, with `num_return_sequences` completions each.

        Up to `batch_size` prompts go through the model together. Once `cancelled` is set, the
        generation ends after the current token, and what is unfinished has the finish reason
        "cancelled".

        Raises:
            InvalidArgument: unknown or contradicting options, a prompt without tokens, or more
                tokens than the model has positions for.
            TypeError: a prompt is neither a text nor token ids.
        """
        if batch_size < 1:
            raise InvalidArgument(f"batch_size must be at least 1, got {batch_size}")
        if isinstance(prompts, str):
            raise TypeError("prompts is a string; a list of prompts is needed")
        answers: list[list[Completion]] = []
        for first in range(0, len(prompts), batch_size):
            call = self._prepare(prompts[first : first + batch_size], options)
            if cancelled is not None and cancelled.is_set():
                answers += [[Completion("", "cancelled", n, 0)] for n in call.prompt_lengths]
            else:
                answers += self._run(call, cancelled=cancelled)
        return answers

    async def agenerate(self, prompts: Sequence[Prompt], **options: Any) -> list[list[Completion]]:
        """`generate` in a thread of its own, which cancelling the task ends after its token."""
        return await run_in_thread(
            lambda cancelled: self.generate(prompts, cancelled=cancelled, **options)
        )

    def stream(self, prompt: Prompt, **options: Any) -> Generator[str | Completion, None, None]:
        """Pieces of new text as they become certain, then the `Completion`.

        The model runs in a thread of its own. There is no time limit on the first token, an
        exception in the thread is raised here, and closing the iterator ends the thread after the
        current token.
        """
        return self._events(self._prepare_stream(prompt, options))

    def _events(self, call: _Call) -> Generator[str | Completion, None, None]:
        events: queue.SimpleQueue[str | Completion | BaseException] = queue.SimpleQueue()
        cancelled = threading.Event()
        thread = self._start_stream(call, events.put, cancelled)
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

    def astream(self, prompt: Prompt, **options: Any) -> AsyncGenerator[str | Completion, None]:
        """`stream` that never blocks the event loop; closing it does not wait for the thread."""
        return self._aevents(self._prepare_stream(prompt, options))

    async def _aevents(self, call: _Call) -> AsyncGenerator[str | Completion, None]:
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[str | Completion | BaseException] = asyncio.Queue()
        cancelled = threading.Event()

        def emit(event: str | Completion | BaseException) -> None:
            if not cancelled.is_set():  # nobody listens any more; the loop may be closed
                loop.call_soon_threadsafe(events.put_nowait, event)

        self._start_stream(call, emit, cancelled)
        try:
            while True:
                event = await events.get()
                if isinstance(event, BaseException):
                    raise event
                yield event
                if isinstance(event, Completion):
                    return
        finally:
            cancelled.set()

    def _limit(self) -> int:
        """Tokens that truncation cuts to. A tokenizer without a limit has a huge one."""
        own = getattr(self.tokenizer, "model_max_length", None)
        trained = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        limits = [n for n in (own, trained) if isinstance(n, int) and 0 < n < _NO_LIMIT]
        if self._positions.prompt is not None:
            return min(self._positions.prompt, *limits[:1])
        if not limits:
            raise InvalidArgument(
                "truncation=True, but neither the tokenizer nor the model's config says how many "
                "tokens a prompt may have: set tokenizer.model_max_length"
            )
        return limits[0]

    # Streams

    @property
    def can_stream(self) -> bool:
        """Whether the generator's own options give one answer, token after token: no beams."""
        return not _not_streamed(self._config(split_options(self.options)))

    def _prepare_stream(self, prompt: Prompt, options: Mapping[str, Any]) -> _Call:
        call = self._prepare([prompt], options)
        if several := _not_streamed(call.config):
            raise InvalidArgument(
                f"streaming needs {several}=1, got {getattr(call.config, several)}"
            )
        return call

    def _start_stream(
        self,
        call: _Call,
        emit: Callable[[str | Completion | BaseException], None],
        cancelled: threading.Event,
    ) -> threading.Thread:
        def run() -> None:
            emitted = 0

            def on_text(piece: str) -> None:
                nonlocal emitted
                emitted += len(piece)
                emit(piece)

            try:
                completion = self._run(call, on_text=on_text, cancelled=cancelled)[0][0]
                if len(completion.text) > emitted:  # held back until no token followed
                    emit(completion.text[emitted:])
                emit(completion)
            except BaseException as error:  # noqa: BLE001 (raised again by who listens)
                emit(error)

        return start_thread(run, cancelled)

    # One batch

    def _prepare(self, prompts: Sequence[Prompt], options: Mapping[str, Any]) -> _Call:
        check_options(options)
        split = split_options(merge_options(self.options, options))
        config = self._config(split)
        own = normalize_stops(config.stop_strings)  # the model's
        stops = split.stops + tuple(text for text in own if text not in split.stops)
        config.stop_strings = None  # done by TextStopping

        rows = [self._ids(prompt, index) for index, prompt in enumerate(prompts)]
        fit_answer(config, split, self._positions, rows)
        own_texts = [self.is_encoder_decoder or isinstance(each, ChatIds) for each in prompts]
        inputs = self._pad(rows, config.pad_token_id)
        return _Call(
            inputs=inputs,
            config=config,
            options=split,
            stops=stops,
            end_ids=self._end_ids(config, stops),
            start=1 if self.is_encoder_decoder else inputs["input_ids"].shape[1],
            prompt_lengths=[len(row) for row in rows],
            before=[[] if own else row for row, own in zip(rows, own_texts, strict=True)],
        )

    def _run(
        self,
        call: _Call,
        *,
        on_text: Callable[[str], None] | None = None,
        cancelled: Flag | None = None,
    ) -> list[list[Completion]]:
        def make_row(index: int, rows: int) -> RowText:
            before = call.before[index * len(call.before) // rows]  # beams and answers of a prompt
            return RowText(self.tokenizer, call.stops, call.end_ids, before)

        watch, threads = StepWatch(cancelled), StepThreads()
        objects = dict(call.options.objects)
        own = objects.pop("stopping_criteria", None) or []
        criteria = StoppingCriteriaList([watch, threads, *own])
        # End tokens that are the model's own are transformers' business; without stop texts and
        # without a stream there is no text to watch.
        if call.stops or on_text is not None:
            criteria.append(TextStopping(make_row, call.start, on_text=on_text))
        if call.options.grammar is not None:
            ends = sorted(_as_ids(call.config.eos_token_id))
            constraint = GrammarProcessor(call.options.grammar, self.tokenizer, ends, call.start)
            processors = objects.pop("logits_processor", None) or []
            objects["logits_processor"] = LogitsProcessorList([*processors, constraint])
        recorder = self._add_decode_steps(call, objects)
        with threads:
            output = self._model_without_stops().generate(
                **call.inputs, generation_config=call.config, stopping_criteria=criteria, **objects
            )
        completions = []
        for index, ids in enumerate(output[:, call.start :].tolist()):
            row = make_row(index, len(output))
            row.advance(ids)
            reason = "stop" if row.finished else "cancelled" if watch.was_cancelled else "length"
            row.flush()
            completions.append((index, row, reason))
        per_prompt = len(completions) // len(call.prompt_lengths)
        return [
            [
                Completion(
                    text=row.text,
                    finish_reason=reason,
                    prompt_tokens=prompt_tokens,
                    completion_tokens=len(row.ids),
                    token_ids=tuple(row.ids),
                    logprobs=None if recorder is None else self._logprobs(recorder, index, row),
                    time_to_first_token=watch.seconds_until(1),
                    seconds=watch.seconds_until(len(row.ids)),
                )
                for index, row, reason in completions[i * per_prompt : (i + 1) * per_prompt]
            ]
            for i, prompt_tokens in enumerate(call.prompt_lengths)
        ]

    def _model_without_stops(self) -> Any:
        """generate() fills unset fields from the model's generation config; stop texts are ours."""
        if not self.model.generation_config.stop_strings:
            return self.model
        model = copy.copy(self.model)  # the same weights
        model.generation_config = copy.deepcopy(self.model.generation_config)
        model.generation_config.stop_strings = None
        return model

    def _add_decode_steps(self, call: _Call, objects: dict[str, Any]) -> LogprobRecorder | None:
        """Put what `seed` and `logprobs` need among the arguments of generate()."""
        seed, logprobs = call.options.seed, call.options.logprobs
        draws = seed is not None and bool(call.config.do_sample)
        if not draws and logprobs is None:
            return None
        mode = call.config.get_generation_mode(objects.get("assistant_model")).value
        if mode not in ("greedy_search", "sample"):
            name = "seed" if draws else "logprobs"
            raise InvalidArgument(
                f"{name} works with greedy search and plain sampling, not with {mode}: leave "
                f"{name} out, or pass num_beams=1 and no assistant model"
            )
        draw = None
        vocabulary = self.model.config.get_text_config().vocab_size
        if logprobs is not None and logprobs > vocabulary:
            raise InvalidArgument(
                f"logprobs={logprobs}: the model's vocabulary has {vocabulary} tokens"
            )
        if draws:
            assert seed is not None
            answers = call.config.num_return_sequences or 1
            draw = SeededDraw([seed + j for _ in call.prompt_lengths for j in range(answers)])
        recorder = None if logprobs is None else LogprobRecorder(logprobs)
        objects["custom_generate"] = decode_steps(draw, recorder)
        return recorder

    def _logprobs(
        self, recorder: LogprobRecorder, index: int, row: RowText
    ) -> tuple[TokenLogprob, ...]:
        entries = []
        steps = recorder.row(index, len(row.ids))
        for place, (token_id, (logprob, top)) in enumerate(zip(row.ids, steps, strict=True)):
            before = row.before(place)
            likeliest = ((self._token_text(other, before), other, value) for other, value in top)
            text = self._token_text(token_id, before)
            entries.append(TokenLogprob(text, token_id, logprob, tuple(likeliest)))
        return tuple(entries)

    def _token_text(self, token_id: int, before: int | None) -> str:
        """As it stands in the text, where a vocabulary's mark of a word's beginning is a blank."""
        if before is not None:
            known, whole = (self._decode(ids) for ids in ([before], [before, token_id]))
            if whole.startswith(known):
                return whole[len(known) :]
        return self._decode([token_id])  # within a character

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def _config(self, options: SplitOptions) -> GenerationConfig:
        """The model's generation config with the options on top."""
        config = copy.deepcopy(self.model.generation_config)
        if options.base is not None:
            config.update(**options.base.to_diff_dict())
        try:
            config.update(**imply_sampling(options.fields))
        except (TypeError, ValueError) as error:
            given = ", ".join(f"{name}={value!r}" for name, value in options.fields.items())
            raise InvalidArgument(f"transformers refuses {given}: {error}") from error
        config.return_dict_in_generate = False
        # transformers' default of 20 tokens, prompt included, cuts nearly every answer. Before
        # version 5 an unset max_length reads as that default.
        if config.max_new_tokens is None and config.max_length in (
            None,
            unset_config().max_length,
        ):
            config.max_new_tokens = DEFAULT_MAX_NEW_TOKENS
        if config.pad_token_id is None:
            config.pad_token_id = self._pad_id(config)
        return config

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

    def _ids(self, prompt: Prompt, index: int) -> list[int]:
        if isinstance(prompt, str):
            ids = self.encode(prompt)
        elif isinstance(prompt, Sequence) and all(type(item) is int for item in prompt):
            ids = [int(item) for item in prompt]
        else:
            raise TypeError(
                f"prompt {index} is a {type(prompt).__name__}, a string or token ids are needed"
            )
        if ids:
            return ids
        bos = self.tokenizer.bos_token_id
        if bos is None:
            raise InvalidArgument(
                f"prompt {index} ({prompt!r}) has no tokens, and the tokenizer has no "
                "beginning-of-sequence token to start from"
            )
        return [int(bos)]

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


def _not_streamed(config: GenerationConfig) -> str | None:
    """The field by which a generation has several answers or beams under way."""
    fields = ("num_beams", "num_return_sequences")
    return next((name for name in fields if getattr(config, name, None) not in (None, 1)), None)


def _as_ids(value: Any) -> list[int]:
    if value is None:
        return []
    if isinstance(value, int):
        return [value]
    return [int(item) for item in value]
