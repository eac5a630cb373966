# SPDX-License-Identifier: Apache-2.0
"""`ChatWoq`: a LangChain chat model over a weight-only quantized model."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import woq
from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models import LangSmithParams, LanguageModelInput, ModelProfile
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import get_config_list, get_executor_for_config
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import Field, PrivateAttr, SecretStr, field_validator, model_validator
from typing_extensions import Self
from woq.generation import Completion, Flag, TextGenerator, run_in_thread

from langchain_woq._version import __version__
from langchain_woq.arguments import translated
from langchain_woq.batching import BatchGroup, Seat, current_seat
from langchain_woq.loaded_model import ModelFields
from langchain_woq.messages import encode_messages
from langchain_woq.other_names import take, take_cache_folder
from langchain_woq.serialization import plain_config
from langchain_woq.structured import bind_schema, response_grammar, response_term
from langchain_woq.tools import TextBeforeCalls, call_grammar, chosen_tools, read_calls


@dataclass(frozen=True)
class _Request:
    """One conversation, ready for the generator."""

    ids: list[int]
    options: dict[str, Any]
    reads_calls: bool


class ChatWoq(BaseChatModel, ModelFields):
    """A chat model with weight-only quantized weights on a CPU.

    From a folder or a hub id, quantized while loading::

        from langchain_woq import ChatWoq
        from woq import WeightOnlyQuantConfig

        chat = ChatWoq(
            model="HuggingFaceTB/SmolLM2-135M-Instruct",
            quantization_config=WeightOnlyQuantConfig(weight_dtype="nf4"),
            temperature=0.2,
            max_tokens=100,
        )
        chat.invoke("Why is the sky blue?")

    Over a loaded model: ``ChatWoq(model=model, tokenizer=tokenizer)``.

    Messages go through the model's chat template. `stop` texts end an answer where they are
    complete and are cut off. `batch` runs `batch_size` conversations through the model together.
    Arguments of a call or of `bind` win over the fields; besides the fields' names those of
    transformers' generation config are taken.

    Forced tool calls and structured output are held to their schema token by token, so that any
    model can do them; whether it chooses wisely is up to the model. Tools are listed by the chat
    template where it has the <tool_call> form (Qwen, Hermes), otherwise in the system message.
    """

    temperature: float | None = Field(default=None, ge=0)
    """0: always the likeliest token. None: as the model's generation config says."""
    top_p: float | None = None
    top_k: int | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    """New tokens at most; 256 if neither this nor the model's generation config has a limit."""
    stop: list[str] | None = None
    seed: int | None = None
    """Reproducible sampling, see `woq.generation.TextGenerator`."""
    n: int = Field(default=1, ge=1)
    """Answers per conversation; `generate` returns all, `invoke` the first."""
    logprobs: bool = False
    """Put the tokens' log-probabilities into response_metadata."""
    top_logprobs: int | None = Field(default=None, ge=0)
    """And those of so many of the likeliest tokens."""
    timeout: float | None = Field(default=None, gt=0)
    """Seconds after which an answer ends (finish reason "length"). The first token has no limit."""
    generation_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Other generation arguments, such as repetition_penalty."""
    max_string_length: int | None = Field(default=None, ge=1)
    """Characters of a string in tool calls and structured output, where the schema has no limit.
    Small models repeat themselves until `max_tokens` cuts them otherwise."""
    max_retries: int | None = Field(default=None, exclude=True, repr=False)
    """Accepted for other models' sake: no request is sent that could be sent again."""
    api_key: SecretStr | None = Field(default=None, exclude=True, repr=False)
    """Likewise."""
    profile: ModelProfile | None = Field(default=None, exclude=True)
    """What agents and middleware ask of a model. None: that it takes tools and response formats,
    and how many tokens it reads."""
    streaming: bool = False
    """Stream internally, so that callbacks get each token of `invoke`, too."""
    batch_size: int = Field(default=8, ge=1)
    """How many conversations of a `batch` go through the model together."""

    _generator: TextGenerator = PrivateAttr()

    # Making and describing one

    @model_validator(mode="before")
    @classmethod
    def _take_other_names(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        taken = take(values, _SYNONYMS, _ANSWERS)
        take_cache_folder(taken)
        return taken

    @field_validator("stop", mode="before")
    @classmethod
    def _list_stops(cls, stop: Any) -> Any:
        return [stop] if isinstance(stop, str) else stop

    @model_validator(mode="after")
    def _load(self) -> Self:
        pipeline = woq.pipeline(
            "text-generation",
            self._model_or_name(),
            self.tokenizer,
            **self._loading(),
            **self._own_options(),
        )
        self._generator = pipeline.generator
        if self.profile is None:
            self.profile = _profile(self._generator)
        self._add_version("langchain-woq", __version__)
        return self

    def _own_options(self) -> dict[str, Any]:
        fields = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "max_tokens": self.max_tokens,
            "stop": self.stop,
            "seed": self.seed,
            "n": self.n if self.n > 1 else None,
            "logprobs": self.logprobs or None,
            "top_logprobs": self.top_logprobs,
            "timeout": self.timeout,
        }
        given = {name: value for name, value in fields.items() if value is not None}
        return translated({**self.generation_kwargs, **given})

    @property
    def _llm_type(self) -> str:
        return "woq-chat"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        config = getattr(self._generator.model.config, "quantization_config", None)
        if config is not None and not isinstance(config, dict):
            config = config.to_dict()
        return {
            "model": self.model,
            "quantization_config": config,
            "model_kwargs": self.model_kwargs,
            **self._generator.options,
        }

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop or self.stop, **kwargs)
        params["ls_provider"] = "woq"
        return params

    @classmethod
    def is_lc_serializable(cls) -> bool:
        return True

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        return ["langchain_woq", "chat_models"]

    @property
    def lc_attributes(self) -> dict[str, Any]:
        return plain_config(self.quantization_config)

    def to_json(self) -> Any:
        # What exists in memory only cannot be read back from the model's name.
        if self.loaded_model is not None or self.tokenizer is not None:
            return self.to_json_not_implemented()
        return super().to_json()

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        # Of caches. Models in memory may have the same name and be different all the same.
        loaded = None if self.loaded_model is None else id(self.loaded_model)
        params = {**self.asdict(), **kwargs, "stop": stop, "loaded_model": loaded}
        return str(sorted(params.items()))

    def get_token_ids(self, text: str) -> list[int]:
        """Ids by the model's own tokenizer."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return self._generator.encode(text)

    # Tools and structured output

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | bool | Mapping[str, Any] | None = None,
        parallel_tool_calls: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Tools that the model may call, or with `tool_choice` must.

        Args:
            tools: functions, pydantic classes, LangChain tools or OpenAI-style dicts.
            tool_choice: None or "auto": the model decides; "any", "required" or True: it must call
                one; a name: it must call that one; "none": it must not.
            parallel_tool_calls: allow several calls in one answer.
            strict: accepted for other models' sake: arguments always follow the tool's schema.

        Raises:
            ValueError: `tool_choice` names no tool.
        """
        described = [convert_to_openai_tool(tool, strict=strict) for tool in tools]
        chosen_tools(described, tool_choice)  # a wrong name fails here and not at the first call
        if tool_choice is not None:
            kwargs["tool_choice"] = tool_choice
        if parallel_tool_calls:
            kwargs["parallel_tool_calls"] = True
        return self.bind(tools=described, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        method: str = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Answers as objects of a schema.

        Args:
            schema: pydantic class, TypedDict, JSON schema or OpenAI-style function.
            method: "json_schema" (the answer itself is held to the schema while it is generated),
                "function_calling" (a forced tool call), or "json_mode" (any JSON object, validated
                afterwards; the prompt has to say which).
            include_raw: return {"raw": message, "parsed": ..., "parsing_error": ...}.
            strict: False ignores keywords of the schema that cannot be enforced; otherwise they are
                an error.

        Raises:
            ValueError: an unknown method, or further arguments.
        """
        if kwargs:
            raise ValueError(f"unknown arguments of with_structured_output: {', '.join(kwargs)}")
        return bind_schema(self, schema, method=method, include_raw=include_raw, strict=strict)

    # One call

    def _request(
        self, messages: list[BaseMessage], stop: list[str] | None, kwargs: Mapping[str, Any]
    ) -> _Request:
        arguments = dict(kwargs)
        self._check_model_argument(arguments.pop("model", None))
        arguments.pop("stream", None)  # BaseChatModel's
        tools = arguments.pop("tools", None) or []
        tool_choice = arguments.pop("tool_choice", None)
        several = arguments.pop("parallel_tool_calls", False)
        response_format = arguments.pop("response_format", None)
        grammar, instruction = response_grammar(response_format, self.max_string_length)
        tools, forced = chosen_tools(tools, tool_choice)
        if tools:
            # Both, as an agent asks for them: the answer is a call, or follows the response format.
            grammar = call_grammar(
                tools,
                forced=forced,
                several=several,
                max_string_length=self.max_string_length,
                answer=response_term(response_format, self.max_string_length),
            )
        options = translated(arguments)
        if stop is not None:
            options["stop"] = stop
        if grammar is not None:
            options["grammar"] = grammar
        ids = encode_messages(
            self._generator.tokenizer, messages, tools=tools, instruction=instruction
        )
        return _Request(ids, options, reads_calls=bool(tools))

    def _check_model_argument(self, name: Any) -> None:
        if name is not None and name != self.model:
            raise ValueError(
                f"model={name!r} for one call: {self.model!r} is the model that is loaded; make "
                "another ChatWoq"
            )

    def _complete(self, request: _Request, cancelled: Flag) -> list[Completion]:
        """Alone, or together with the other calls of a `batch`."""
        seat = current_seat.get()
        if seat is not None and seat.is_open:
            return cast("list[Completion]", seat.submit(request, cancelled))
        return self._complete_all([request], cancelled)[0]

    def _complete_all(self, requests: list[_Request], cancelled: Flag) -> list[list[Completion]]:
        first = requests[0].options
        if any(request.options != first for request in requests):
            return [self._complete_all([request], cancelled)[0] for request in requests]
        return self._generator.generate(
            [request.ids for request in requests],
            batch_size=self.batch_size,
            cancelled=cancelled,
            **first,
        )

    def _answer(
        self, messages: list[BaseMessage], stop: Any, kwargs: Mapping[str, Any], cancelled: Flag
    ) -> ChatResult:
        request = self._request(messages, stop, kwargs)
        completions = self._complete(request, cancelled)
        usages = [_usage(completion) for completion in completions]
        return ChatResult(
            generations=[
                ChatGeneration(
                    message=self._message(completion, usage, request.reads_calls),
                    generation_info=_info(completion),
                )
                for completion, usage in zip(completions, usages, strict=True)
            ],
            llm_output={"model_name": self.model},
        )

    def _message(
        self, completion: Completion, usage: UsageMetadata, reads_calls: bool
    ) -> AIMessage:
        metadata = {"model_name": self.model, "model_provider": "woq"}
        if not reads_calls:
            return AIMessage(
                content=completion.text, usage_metadata=usage, response_metadata=metadata
            )
        answer = read_calls(completion.text, completion.finish_reason)
        return AIMessage(
            content=answer.text,
            tool_calls=answer.calls,
            invalid_tool_calls=answer.invalid,
            usage_metadata=usage,
            response_metadata=metadata,
        )

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return self._answer(messages, stop, kwargs, threading.Event())

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return await run_in_thread(
            lambda cancelled: self._answer(messages, stop, kwargs, cancelled)
        )

    # Streams

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        request = self._request(messages, stop, kwargs)
        chunks = _Chunks(self.model, request.reads_calls)
        for piece in self._generator.stream(request.ids, **request.options):
            for chunk in chunks.of(piece):
                if run_manager is not None:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        request = self._request(messages, stop, kwargs)
        chunks = _Chunks(self.model, request.reads_calls)
        stream = self._generator.astream(request.ids, **request.options)
        try:
            async for piece in stream:
                for chunk in chunks.of(piece):
                    if run_manager is not None:
                        await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk
        finally:
            await stream.aclose()

    # Batches

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """`invoke` for each input, `batch_size` of them together in one call of the model."""
        results: list[Any] = []
        configs = get_config_list(config, len(inputs))
        for chunk in self._chunks(len(inputs), configs):
            group: BatchGroup[Any, Any] = BatchGroup(self._complete_all, len(chunk))

            def run(index: int, seat: Seat) -> Any:
                token = current_seat.set(seat)
                try:
                    return self.invoke(inputs[index], configs[index], **kwargs)
                except Exception as error:
                    if return_exceptions:
                        return error
                    raise
                finally:
                    seat.close()
                    current_seat.reset(token)

            # Each member waits in a thread of its own.
            settings: RunnableConfig = {**configs[chunk[0]], "max_concurrency": len(chunk)}
            with get_executor_for_config(settings) as executor:
                seats = [Seat(group) for _ in chunk]
                results += list(executor.map(run, chunk, seats))
        return results

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """`ainvoke` for each input, `batch_size` of them together in one call of the model."""
        results: list[Any] = []
        configs = get_config_list(config, len(inputs))
        for chunk in self._chunks(len(inputs), configs):
            group: BatchGroup[Any, Any] = BatchGroup(self._complete_all, len(chunk))

            async def run(index: int, seat: Seat) -> Any:
                current_seat.set(seat)  # of this task's own context
                try:
                    return await self.ainvoke(inputs[index], configs[index], **kwargs)
                except Exception as error:
                    if return_exceptions:
                        return error
                    raise
                finally:
                    seat.close()

            results += await asyncio.gather(*(run(index, Seat(group)) for index in chunk))
        return results

    def _chunks(self, count: int, configs: Sequence[RunnableConfig]) -> Iterator[range]:
        if count == 0:
            return
        size = min(self.batch_size, configs[0].get("max_concurrency") or self.batch_size)
        for first in range(0, count, size):
            yield range(first, min(first + size, count))


# Names of ChatHuggingFace and HuggingFacePipeline.
_SYNONYMS = {
    "model_id": "model",
    "model_name": "model",
    "max_new_tokens": "max_tokens",
    "pipeline_kwargs": "generation_kwargs",
}
_ANSWERS = {
    "llm": "ChatWoq needs no other model below it; pass model=",
    "pipeline": "pass the pipeline's model= and tokenizer=",
    "base_url": "the model runs in this process; pass model=, a folder or a hub id",
}


def _profile(generator: TextGenerator) -> ModelProfile:
    """What LangChain's agents and middleware ask before they use a model."""
    profile = ModelProfile(
        text_inputs=True,
        text_outputs=True,
        image_inputs=False,
        audio_inputs=False,
        video_inputs=False,
        image_outputs=False,
        audio_outputs=False,
        video_outputs=False,
        tool_calling=True,
        tool_choice=True,
        structured_output=True,
    )
    if generator.context_length is not None:
        profile["max_input_tokens"] = generator.context_length
    return profile


class _Chunks:
    """From a generator's pieces to LangChain's chunks. A tool call arrives whole, at the end."""

    def __init__(self, model_name: str, reads_calls: bool) -> None:
        self._model_name = model_name
        self._before_calls = TextBeforeCalls() if reads_calls else None

    def of(self, piece: str | Completion) -> Iterator[ChatGenerationChunk]:
        if isinstance(piece, Completion):
            yield from self._last(piece)
            return
        text = piece if self._before_calls is None else self._before_calls.push(piece)
        if text:
            yield ChatGenerationChunk(message=AIMessageChunk(content=text))

    def _last(self, completion: Completion) -> Iterator[ChatGenerationChunk]:
        calls = []
        if self._before_calls is not None:
            text = self._before_calls.flush()
            if text:
                yield ChatGenerationChunk(message=AIMessageChunk(content=text))
            answer = read_calls(completion.text, completion.finish_reason)
            calls = [
                tool_call_chunk(
                    name=call["name"],
                    args=json.dumps(call["args"], ensure_ascii=False),
                    id=call["id"],
                    index=index,
                )
                for index, call in enumerate(answer.calls)
            ]
            calls += [
                tool_call_chunk(name=None, args=bad["args"], id=bad["id"], index=len(calls) + index)
                for index, bad in enumerate(answer.invalid)
            ]
        yield ChatGenerationChunk(
            message=AIMessageChunk(
                content="",
                tool_call_chunks=calls,
                usage_metadata=_usage(completion),
                response_metadata={"model_name": self._model_name, "model_provider": "woq"},
                chunk_position="last",
            ),
            generation_info=_info(completion),
        )


def _usage(completion: Completion) -> UsageMetadata:
    return UsageMetadata(
        input_tokens=completion.prompt_tokens,
        output_tokens=completion.completion_tokens,
        total_tokens=completion.prompt_tokens + completion.completion_tokens,
    )


def _info(completion: Completion) -> dict[str, Any]:
    info: dict[str, Any] = {
        "finish_reason": completion.finish_reason,
        "time_to_first_token": completion.time_to_first_token,
        "tokens_per_second": completion.tokens_per_second,
    }
    if completion.logprobs is not None:
        info["logprobs"] = {"content": [entry.to_dict() for entry in completion.logprobs]}
    return info
