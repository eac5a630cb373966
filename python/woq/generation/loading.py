# SPDX-License-Identifier: Apache-2.0
"""From a folder, a hub id or a loaded model to a `TextGenerator`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from os import PathLike
from typing import Any

from ..core.native import InvalidArgument
from ..hf.location import file_arguments, gguf_argument, hub_error, locate
from .generator import TextGenerator
from .options import check_options
from .tasks import Task, check_model, task_defaults


def load_generator(
    task: Task,
    model: Any,
    tokenizer: Any = None,
    *,
    options: Mapping[str, Any],
    quantization_config: Any = None,
    load_in_4bit: bool = False,
    load_in_8bit: bool = False,
    device: Any = None,
    device_map: Any = None,
    model_kwargs: Mapping[str, Any] | None = None,
    source_language: str | None = None,
    target_language: str | None = None,
) -> TextGenerator:
    """A generator for the task, with the defaults that the model's config has for it.

    `model` is a folder, a hub id or a loaded transformers model; see `woq.pipeline`.
    """
    check_device("device", device)
    check_device("device_map", device_map)
    check_options(options)  # before minutes of loading
    model_kwargs = gguf_argument(model_kwargs or {})
    if isinstance(model, str | PathLike):
        _check_kind(task, model, model_kwargs)
    model, tokenizer = load_model(
        task.auto_class,
        model,
        tokenizer,
        quantization_config=quantization_config,
        load_in_4bit=load_in_4bit,
        load_in_8bit=load_in_8bit,
        model_kwargs=model_kwargs,
    )
    check_model(task, getattr(model, "config", None), type(model).__name__)
    prefix, defaults = task_defaults(task, model)
    source = source_language or task.source_language
    target = target_language or task.target_language
    if hasattr(tokenizer, "src_lang"):
        tokenizer, defaults["forced_bos_token_id"] = _with_languages(tokenizer, source, target)
    elif source_language or target_language:
        raise InvalidArgument(
            f"src_lang and tgt_lang are for tokenizers with language codes, which "
            f"{type(tokenizer).__name__} is not: "
            "name the languages in the task ('translation_en_to_fr') or in the prompt"
        )
    generator = TextGenerator(model, tokenizer, defaults, prefix=prefix)
    return generator.with_options(options)


def _check_kind(task: Task, name: str | PathLike[str], model_kwargs: Mapping[str, Any]) -> None:
    """Before minutes of loading, and before the auto class lists all classes that it has."""
    import transformers

    located, gguf_file = locate(name)
    files = {**_files(model_kwargs), **gguf_file}
    if "gguf_file" in files:
        return  # reading its config alone takes seconds; `check_model` looks at the loaded one
    files.setdefault("trust_remote_code", False)  # None would ask at the terminal, and twice
    try:
        config = transformers.AutoConfig.from_pretrained(located, **files)
    except (OSError, ValueError, KeyError):
        return  # what loads the model says why
    check_model(task, config, str(name))


def load_model(
    auto_class: str,
    model: Any,
    tokenizer: Any = None,
    *,
    quantization_config: Any = None,
    load_in_4bit: bool = False,
    load_in_8bit: bool = False,
    model_kwargs: Mapping[str, Any],
) -> tuple[Any, Any]:
    """Model and tokenizer, loaded where they are given by name; `auto_class` is one of woq's.

    Raises:
        InvalidArgument: contradicting ways to quantize, or arguments for loading together with a
            loaded model, or a loaded model without a tokenizer.
    """
    loading = gguf_argument(model_kwargs)
    loading.update(
        (name, value)
        for name, value in (
            ("quantization_config", quantization_config),
            ("load_in_4bit", load_in_4bit),
            ("load_in_8bit", load_in_8bit),
        )
        if value
    )
    if not isinstance(model, str | PathLike):
        if loading:
            raise InvalidArgument(
                f"{', '.join(loading)} is for loading, but model is a loaded "
                f"{type(model).__name__}: pass its name, or quantize it with "
                "woq.quantize(model, config)"
            )
        if tokenizer is None:
            raise InvalidArgument(
                "tokenizer is missing: a loaded model has none, so pass "
                "tokenizer=AutoTokenizer.from_pretrained(...)"
            )
        if not isinstance(tokenizer, str | PathLike):
            return model, tokenizer
    if load_in_4bit and load_in_8bit:
        raise InvalidArgument("load_in_4bit and load_in_8bit exclude each other: give one of them")

    import woq

    if isinstance(model, str | PathLike):
        model, gguf_file = locate(model)
        loading.update(gguf_file)
    if tokenizer is None or isinstance(tokenizer, str | PathLike):
        files = _files(loading)
        name = model
        if tokenizer is not None:
            name, gguf_file = locate(tokenizer)
            files.update(gguf_file)
        tokenizer = _load_tokenizer(name, files)
    if isinstance(model, str | PathLike):
        try:
            model = getattr(woq, auto_class).from_pretrained(model, **loading)
        except TypeError as error:
            if not loading:
                raise
            raise InvalidArgument(
                f"{model!r} cannot be loaded with {', '.join(loading)}: {error}"
            ) from error
        model.eval()
    return model, tokenizer


def _files(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What locates the files is for the tokenizer, too; the rest (dtype, ...) is the model's."""
    files = file_arguments(arguments)
    return files | {"gguf_file": arguments["gguf_file"]} if "gguf_file" in arguments else files


def _load_tokenizer(name: Any, files: Mapping[str, Any]) -> Any:
    from ..hf.tokenizers import load_tokenizer

    try:
        return load_tokenizer(name, files)
    except (OSError, ValueError, ImportError) as error:
        if isinstance(error, InvalidArgument) or "woq[" in str(error):
            raise  # it says what to do
        raise InvalidArgument(
            f"no tokenizer could be loaded from {str(name)!r} "
            f"({hub_error(name, error, files) or error}): check the name, or pass tokenizer="
        ) from error


def check_device(name: str, value: Any) -> None:
    """Accept every way to say "CPU" that LangChain's older class and transformers have."""
    values = list(value.values()) if isinstance(value, Mapping) else [value]
    for item in values:
        if item is None or item == -1 or str(item) in ("cpu", "auto"):
            continue
        raise InvalidArgument(
            f"{name}={value!r} is not supported: woq computes on the CPU. "
            f'Leave {name} out, or pass "cpu" (device=-1 is accepted too).'
        )


def _with_languages(tokenizer: Any, source: str | None, target: str | None) -> tuple[Any, int]:
    """A copy of a tokenizer with language codes (NLLB, mBART, M2M100) that writes the source's, and
    the token that answers in the target's language begin with."""
    if source is None or target is None:
        raise InvalidArgument(
            f"{type(tokenizer).__name__} has language codes: pass src_lang= and tgt_lang="
        )
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.src_lang = source
    if callable(getattr(tokenizer, "get_lang_id", None)):
        return tokenizer, int(tokenizer.get_lang_id(target))
    token_id = tokenizer.convert_tokens_to_ids(target)
    if token_id is None or token_id == tokenizer.unk_token_id:
        raise InvalidArgument(
            f"tgt_lang={target!r} is none of the language codes of {type(tokenizer).__name__}"
        )
    return tokenizer, int(token_id)
