# SPDX-License-Identifier: Apache-2.0
"""From a model id to a `TextGenerator`: the device check, the model and its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_woq.generation import TextGenerator
from langchain_woq.options import check_options

# Task -> the class of `woq` that loads its models.
_AUTO_CLASSES = {
    "text-generation": "AutoModelForCausalLM",
    "text2text-generation": "AutoModelForSeq2SeqLM",
}
# What locates files is for the tokenizer too; the rest (dtype, ...) is the model's.
_FILE_KWARGS = (
    "cache_dir",
    "force_download",
    "gguf_file",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
    "trust_remote_code",
)


def load_generator(
    model_id: str,
    task: str,
    *,
    quantization_config: Any,
    load_in_4bit: bool,
    load_in_8bit: bool,
    device: Any,
    device_map: Any,
    model_kwargs: Mapping[str, Any],
    options: Mapping[str, Any],
) -> TextGenerator:
    if task not in _AUTO_CLASSES:
        raise ValueError(f"unknown task {task!r}; known are {', '.join(map(repr, _AUTO_CLASSES))}")
    check_device("device", device)
    check_device("device_map", device_map)
    _check_quantization(quantization_config, load_in_4bit, load_in_8bit)
    check_options(options)  # before minutes of loading

    import woq
    from transformers import AutoTokenizer

    keywords = dict(model_kwargs)
    # ITREX's documentation passes the class itself.
    if isinstance(quantization_config, type):
        quantization_config = quantization_config()
    for name, value in (
        ("quantization_config", quantization_config),
        ("load_in_4bit", load_in_4bit),
        ("load_in_8bit", load_in_8bit),
    ):
        if value:
            keywords[name] = value
    tokenizer = AutoTokenizer.from_pretrained(
        model_id, **{name: keywords[name] for name in _FILE_KWARGS if name in keywords}
    )
    model = getattr(woq, _AUTO_CLASSES[task]).from_pretrained(model_id, **keywords)
    model.eval()
    return TextGenerator(model, tokenizer, options)


def check_device(name: str, value: Any) -> None:
    """Accept every way to say "CPU" that LangChain's older class and transformers have."""
    values = list(value.values()) if isinstance(value, Mapping) else [value]
    for item in values:
        if item is None or item == -1 or str(item) in ("cpu", "auto"):
            continue
        raise ValueError(
            f"{name}={value!r} is not supported: woq computes on the CPU. "
            f'Leave {name} out, or pass "cpu" (device=-1 is accepted too).'
        )


def _check_quantization(config: Any, load_in_4bit: bool, load_in_8bit: bool) -> None:
    given = [
        name
        for name, value in (
            ("quantization_config", config is not None),
            ("load_in_4bit", load_in_4bit),
            ("load_in_8bit", load_in_8bit),
        )
        if value
    ]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} exclude each other: give one of them")
