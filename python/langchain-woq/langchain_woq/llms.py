# SPDX-License-Identifier: Apache-2.0
"""`WeightOnlyQuantPipeline`: a LangChain LLM over a weight-only quantized model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import woq
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models.llms import BaseLLM
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from pydantic import ConfigDict, Field, PrivateAttr, model_validator
from typing_extensions import Self
from woq.generation import Completion, TextGenerator, check_device, options_of_pipeline
from woq.generation.pipeline import TextPipeline

from langchain_woq._version import __version__
from langchain_woq.arguments import translated
from langchain_woq.other_names import take, take_cache_folder
from langchain_woq.serialization import plain_config

# Names of ChatWoq and HuggingFacePipeline.
_SYNONYMS = {"model": "model_id", "model_name": "model_id", "generation_kwargs": "pipeline_kwargs"}
_ANSWERS = {"tokenizer": "pass pipeline=woq.pipeline(task, model, tokenizer)"}
# Generation arguments that may stand beside pipeline_kwargs.
_GENERATION = ("max_new_tokens", "max_tokens", "temperature", "top_p", "top_k", "seed", "stop")


class WeightOnlyQuantPipeline(BaseLLM):
    """Text generation with weight-only quantized weights on a CPU.

    From a folder or a hub id, quantized while loading::

        from langchain_woq import WeightOnlyQuantPipeline
        from woq import WeightOnlyQuantConfig

        llm = WeightOnlyQuantPipeline.from_model_id(
            model_id="google/flan-t5-large",
            task="text2text-generation",
            quantization_config=WeightOnlyQuantConfig(weight_dtype="nf4"),
            pipeline_kwargs={"max_new_tokens": 10},
        )

    Over a loaded model: ``WeightOnlyQuantPipeline(pipeline=...)`` with a `woq.pipeline`, a
    transformers text-generation pipeline or a `TextGenerator`.

    The text is new text only. `stop` texts are literal, end the generation where they are complete
    and are cut off. `batch` runs `batch_size` prompts through the model together. Generation
    arguments (`max_new_tokens`, `temperature`, ...) given to a call or by `bind` win over
    `pipeline_kwargs`.
    """

    pipeline: Any = Field(default=None, exclude=True)
    """A `TextGenerator`, or a pipeline: an object with a `model` and its `tokenizer`."""
    model_id: str = ""
    """Folder or hub id; taken from the model when only a pipeline is given."""
    task: str = "text-generation"
    quantization_config: Any = None
    load_in_4bit: bool = False
    load_in_8bit: bool = False
    model_kwargs: dict[str, Any] | None = None
    """Keyword arguments that the model is loaded with."""
    pipeline_kwargs: dict[str, Any] | None = None
    """Generation arguments of every call; `max_tokens` and `max_new_tokens` may stand beside it."""
    batch_size: int = Field(default=8, ge=1)
    """How many prompts of a `batch` go through the model together."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), arbitrary_types_allowed=True)

    _generator: TextGenerator = PrivateAttr()
    _loaded_here: bool = PrivateAttr(default=False)

    @classmethod
    def from_model_id(
        cls,
        model_id: str,
        task: str = "text-generation",
        *,
        quantization_config: Any = None,
        load_in_4bit: bool = False,
        load_in_8bit: bool = False,
        device: int | str | None = None,
        device_map: str | Mapping[str, Any] | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        pipeline_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load (and quantize, if asked) a model and its tokenizer.

        `task` is "text-generation" (decoder-only models) or, for encoder-decoder models such as T5,
        "text2text-generation", "summarization", "translation" or "translation_xx_to_yy". Without a
        `quantization_config` and `load_in_4bit` (nf4) or `load_in_8bit` (int8), the checkpoint is
        loaded as it is, which may well be one that woq saved. `device` and `device_map` exist for
        old code: anything but the CPU is refused. `model_kwargs` go to `from_pretrained`; `kwargs`
        are fields of this class, such as `callbacks` or `batch_size`.
        """
        check_device("device", device)
        check_device("device_map", device_map)
        return cls(
            model_id=model_id,
            task=task,
            quantization_config=quantization_config,
            load_in_4bit=load_in_4bit,
            load_in_8bit=load_in_8bit,
            model_kwargs=dict(model_kwargs) if model_kwargs is not None else None,
            pipeline_kwargs=dict(pipeline_kwargs) if pipeline_kwargs is not None else None,
            **kwargs,
        )

    @model_validator(mode="before")
    @classmethod
    def _take_other_names(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        taken = take(values, _SYNONYMS, _ANSWERS)
        take_cache_folder(taken)
        named = {name: taken.pop(name) for name in _GENERATION if name in taken}
        if named:
            arguments = {**(taken.get("pipeline_kwargs") or {}), **named}
            taken["pipeline_kwargs"] = translated(arguments)
        return taken

    @model_validator(mode="after")
    def _set_woq_generator(self) -> Self:
        if self.pipeline is None and self.model_id:
            self.pipeline = woq.pipeline(
                self.task,
                self.model_id,
                quantization_config=self.quantization_config,
                load_in_4bit=self.load_in_4bit,
                load_in_8bit=self.load_in_8bit,
                model_kwargs=self.model_kwargs,
                **(self.pipeline_kwargs or {}),
            )
            self._loaded_here = True
        _check_pipeline(self.pipeline)
        self._generator = _generator_of(self.pipeline).with_options(self.pipeline_kwargs or {})
        if not self.model_id:
            self.model_id = str(getattr(self.pipeline.model, "name_or_path", ""))
        self._add_version("langchain-woq", __version__)
        return self

    @classmethod
    def is_lc_serializable(cls) -> bool:
        return True

    @property
    def lc_attributes(self) -> dict[str, Any]:
        return plain_config(self.quantization_config)

    def to_json(self) -> Any:
        # A pipeline that was passed in cannot be read back.
        return super().to_json() if self._loaded_here else self.to_json_not_implemented()

    @property
    def _llm_type(self) -> str:
        return "weight_only_quantization"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        config = getattr(self.pipeline.model.config, "quantization_config", None)
        if config is not None and not isinstance(config, dict):
            config = config.to_dict()
        return {
            "model_id": self.model_id,
            "model_kwargs": self.model_kwargs,
            "pipeline_kwargs": self._generator.options,
            "quantization_config": config,
        }

    def get_token_ids(self, text: str) -> list[int]:
        """Ids by the model's own tokenizer."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return list(self.pipeline.tokenizer(text)["input_ids"])

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        options = translated(kwargs)
        answers = self._generator.generate(
            prompts, stop=stop, batch_size=self.batch_size, **options
        )
        return self._result(answers)

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        return self._result(
            await self._generator.agenerate(
                prompts, stop=stop, batch_size=self.batch_size, **translated(kwargs)
            )
        )

    def _result(self, answers: list[list[Completion]]) -> LLMResult:
        prompt_tokens = sum(group[0].prompt_tokens for group in answers)
        completion_tokens = sum(c.completion_tokens for group in answers for c in group)
        return LLMResult(
            generations=[
                [Generation(text=c.text, generation_info=_info(c)) for c in group]
                for group in answers
            ],
            llm_output={
                "model_name": self.model_id,
                "token_usage": {
                    "prompt_tokens": prompt_tokens,
                    "completion_tokens": completion_tokens,
                    "total_tokens": prompt_tokens + completion_tokens,
                },
            },
        )

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        for piece in self._generator.stream(prompt, stop=stop, **translated(kwargs)):
            chunk = _chunk(piece)
            if run_manager is not None and isinstance(piece, str):
                run_manager.on_llm_new_token(piece, chunk=chunk)
            yield chunk

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        stream = self._generator.astream(prompt, stop=stop, **translated(kwargs))
        try:
            async for piece in stream:
                chunk = _chunk(piece)
                if run_manager is not None and isinstance(piece, str):
                    await run_manager.on_llm_new_token(piece, chunk=chunk)
                yield chunk
        finally:
            await stream.aclose()


def _chunk(piece: str | Completion) -> GenerationChunk:
    if isinstance(piece, str):
        return GenerationChunk(text=piece)
    # LangChain refuses a stream without chunks, and an answer may be empty.
    return GenerationChunk(text="", generation_info=_info(piece))


def _check_pipeline(pipeline: Any) -> None:
    missing = [name for name in ("model", "tokenizer") if getattr(pipeline, name, None) is None]
    if missing:
        raise ValueError(
            f"pipeline is a {type(pipeline).__name__} without {' and '.join(missing)}: pass a "
            "woq.pipeline or a transformers text-generation pipeline, or use "
            "WeightOnlyQuantPipeline.from_model_id(model_id=..., task=...)"
        )


def _generator_of(pipeline: Any) -> TextGenerator:
    if isinstance(pipeline, TextGenerator):
        return pipeline
    if isinstance(pipeline, TextPipeline):
        return pipeline.generator
    return TextGenerator(pipeline.model, pipeline.tokenizer, options_of_pipeline(pipeline))


def _info(completion: Completion) -> dict[str, Any]:
    info: dict[str, Any] = {
        "finish_reason": completion.finish_reason,
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": completion.completion_tokens,
    }
    if completion.logprobs is not None:
        info["logprobs"] = {"content": [entry.to_dict() for entry in completion.logprobs]}
    return info
