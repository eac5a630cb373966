# SPDX-License-Identifier: Apache-2.0
"""`woq.pipeline`: text generation, summarization and translation in transformers' words.

transformers 5 has no pipeline for encoder-decoder models any more. Here all tasks run on
`woq.generation.TextGenerator`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..core.native import InvalidArgument
from .chat import encode_chat
from .completion import Completion
from .generator import TextGenerator
from .loading import load_generator
from .tasks import find_task

__all__ = ["TextPipeline", "pipeline"]

# Arguments of from_pretrained that transformers' pipeline() takes by name, too.
_LOADING = ("cache_dir", "dtype", "gguf_file", "model_file", "revision", "subfolder", "token",
            "torch_dtype", "trust_remote_code")  # fmt: skip


def pipeline(
    task: str,
    model: Any = None,
    tokenizer: Any = None,
    *,
    quantization_config: Any = None,
    load_in_4bit: bool = False,
    load_in_8bit: bool = False,
    device: Any = None,
    device_map: Any = None,
    model_kwargs: Mapping[str, Any] | None = None,
    batch_size: int = 8,
    src_lang: str | None = None,
    tgt_lang: str | None = None,
    **kwargs: Any,
) -> TextPipeline:
    """A model as a function from texts to texts, on the CPU.

    Args:
        task: "text-generation" for decoder-only models; "text2text-generation", "summarization",
            "translation" and "translation_xx_to_yy" for encoder-decoder ones. What the model's
            config has for a task (T5: prefix, beams, lengths) is applied.
        model: folder, hub id or loaded model.
        tokenizer: the same kinds; needed with a loaded model.
        quantization_config, load_in_4bit, load_in_8bit: quantize while loading, as
            `woq.AutoModelForCausalLM.from_pretrained` does. Without them a checkpoint is taken as
            it is, also one that woq saved.
        device, device_map: accepted for old code; anything but the CPU is refused.
        model_kwargs: further arguments of from_pretrained. dtype, revision, gguf_file (or
            model_file), trust_remote_code and their like may also be given by name.
        batch_size: how many texts of a list go through the model together.
        src_lang, tgt_lang: languages, for tokenizers with language codes (NLLB, mBART, M2M100).
        kwargs: options of every call, see `woq.generation.TextGenerator`.

    Raises:
        InvalidArgument: an unknown task or option, a model that does not fit the task, or a
            tokenizer that is missing.
    """
    found = find_task(task)
    if model is None:
        raise InvalidArgument("model is missing: pass a folder, a hub id or a loaded model")
    loading = {name: kwargs.pop(name) for name in _LOADING if name in kwargs}
    generator = load_generator(
        found,
        model,
        tokenizer,
        options=kwargs,
        quantization_config=quantization_config,
        load_in_4bit=load_in_4bit,
        load_in_8bit=load_in_8bit,
        device=device,
        device_map=device_map,
        model_kwargs={**loading, **(model_kwargs or {})},
        source_language=src_lang,
        target_language=tgt_lang,
    )
    return TextPipeline(task, generator, batch_size=batch_size)


class TextPipeline:
    """What `woq.pipeline` returns; it has the attributes of transformers' pipelines."""

    def __init__(self, task: str, generator: TextGenerator, *, batch_size: int = 8) -> None:
        if batch_size < 1:
            raise InvalidArgument(f"batch_size must be at least 1, got {batch_size}")
        self.task = task
        self.generator = generator
        self.batch_size = batch_size
        self._task = find_task(task)

    @property
    def model(self) -> Any:
        return self.generator.model

    @property
    def tokenizer(self) -> Any:
        return self.generator.tokenizer

    @property
    def device(self) -> Any:
        """The model's torch.device."""
        return self.model.device

    def __call__(
        self,
        inputs: Any,
        *,
        return_full_text: bool | None = None,
        return_details: bool = False,
        batch_size: int | None = None,
        truncation: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool | None = None,
        **options: Any,
    ) -> list[Any]:
        """Answers to a text or chat, or to a list of them.

        A chat is a list of {"role": ..., "content": ...}, for "text-generation" only.

        Args:
            return_full_text: the prompt before the answer ("text-generation" only, where it is the
                default). A chat's full text is its messages and the answer's.
            return_details: add "details" to each record: finish_reason, token counts, token_ids,
                time_to_first_token and seconds, tokens_per_second, logprobs if asked for.
            batch_size: instead of the pipeline's.
            truncation: cut texts (not chats) to what the model reads, with room for the answer; see
                `woq.generation.TextGenerator.encode`.
            tools, continue_final_message: for chats, see `woq.generation.encode_chat`.
            options: as `woq.generation.TextGenerator` takes them; they win over the pipeline's.

        Returns:
            One record {"generated_text": ...} per answer: for one input the list of its
            `num_return_sequences` records, for a list of inputs a list of such lists. The
            encoder-decoder tasks ("summary_text", "translation_text") leave out lists of one, as
            transformers 4 did.
        """
        single = isinstance(inputs, str) or _is_chat(inputs)
        prompts = [inputs] if single else self._listed(inputs)
        if return_full_text is not None and self._task.encoder_decoder:
            raise InvalidArgument(
                f"return_full_text is for 'text-generation': the answers of {self.task!r} never "
                "hold the input"
            )
        ids = [self._encode(p, truncation, tools, continue_final_message, options) for p in prompts]
        answers = self.generator.generate(
            ids, batch_size=self.batch_size if batch_size is None else batch_size, **options
        )
        full = not self._task.encoder_decoder and return_full_text is not False
        results: list[Any] = []
        for prompt, group in zip(prompts, answers, strict=True):
            records = []
            for completion in group:
                text = completion.text
                record = {
                    self._task.answer: _join(prompt, text, continue_final_message) if full else text
                }
                if return_details:
                    record["details"] = completion.details()
                records.append(record)
            results.append(records)
        if single:
            return list(results[0])
        if self._task.encoder_decoder and all(len(records) == 1 for records in results):
            return [records[0] for records in results]
        return results

    def _listed(self, inputs: Any) -> list[Any]:
        if isinstance(inputs, Iterable) and not isinstance(inputs, Mapping | bytes):
            return list(inputs)
        raise TypeError(f"{self.task!r} takes {self._kinds()}, or a list of them, got {inputs!r}")

    def _kinds(self) -> str:
        return "a string" + (
            "" if self._task.encoder_decoder else ", or a chat: a list of messages"
        )

    def stream(
        self,
        prompt: Any,
        *,
        return_full_text: bool | None = None,
        return_details: bool = False,
        truncation: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool | None = None,
        **options: Any,
    ) -> Iterator[Any]:
        """Pieces of the answer to a text or chat as they are generated.

        They join to the text that a call returns with return_full_text=False. With
        `return_details` the last item is the `woq.generation.Completion`. Closing the iterator ends
        the generation; the first token may take as long as it takes. `return_full_text` is there
        for calls' sake: the prompt is never streamed, so that True is refused.
        """
        if return_full_text:
            raise InvalidArgument(
                "return_full_text=True: a stream holds new text only; print the prompt before it"
            )
        ids = self._encode(prompt, truncation, tools, continue_final_message, options)
        pieces = self.generator.stream(ids, **options)
        return pieces if return_details else _texts(pieces)

    def _encode(
        self,
        prompt: Any,
        truncation: bool,
        tools: Sequence[Mapping[str, Any]] | None,
        continue_final_message: bool | None,
        options: Mapping[str, Any],
    ) -> list[int]:
        if isinstance(prompt, str):
            return self.generator.encode(prompt, truncation=truncation, **options)
        if not _is_chat(prompt):
            raise TypeError(
                f"an input of {self.task!r} is a {type(prompt).__name__}; needed is {self._kinds()}"
            )
        if self._task.encoder_decoder:
            raise TypeError(f"chats are for 'text-generation'; {self.task!r} takes strings")
        return encode_chat(
            self.tokenizer, prompt, tools=tools, continue_final_message=continue_final_message
        )


def _texts(pieces: Generator[str | Completion, None, None]) -> Iterator[str]:
    # Closed with this one, which ends the generation.
    with contextlib.closing(pieces):
        for piece in pieces:
            if isinstance(piece, str):
                yield piece


def _is_chat(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) > 0
        and all(isinstance(message, Mapping) and "role" in message for message in value)
    )


def _join(prompt: Any, text: str, continue_final_message: bool | None) -> Any:
    """The prompt with its answer."""
    if isinstance(prompt, str):
        return prompt + text
    messages = [dict(message) for message in prompt]
    if continue_final_message is None:
        continue_final_message = messages[-1]["role"] == "assistant"
    if continue_final_message:
        content = messages[-1]["content"]
        parts = [] if isinstance(content, str) else [*content, {"type": "text", "text": text}]
        messages[-1]["content"] = parts or content + text
        return messages
    return [*messages, {"role": "assistant", "content": text}]
