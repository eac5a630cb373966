# SPDX-License-Identifier: Apache-2.0
"""The tasks of `woq.pipeline`: which models they take and what they call their answer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ..core.native import InvalidArgument


@dataclass(frozen=True)
class Task:
    name: str
    auto_class: str  # of woq
    encoder_decoder: bool
    answer: str  # key of the text in a pipeline's records
    source_language: str | None = None
    target_language: str | None = None


_TASKS = {
    task.name: task
    for task in (
        Task("text-generation", "AutoModelForCausalLM", False, "generated_text"),
        Task("text2text-generation", "AutoModelForSeq2SeqLM", True, "generated_text"),
        Task("summarization", "AutoModelForSeq2SeqLM", True, "summary_text"),
        Task("translation", "AutoModelForSeq2SeqLM", True, "translation_text"),
    )
}
_TRANSLATION = re.compile(r"translation_(\w+?)_to_(\w+)")


def find_task(name: str) -> Task:
    """The task of that name; "translation_en_to_fr" is a translation with its languages.

    Raises:
        InvalidArgument: no such task.
    """
    languages = _TRANSLATION.fullmatch(name) if isinstance(name, str) else None
    if languages:
        general = _TASKS["translation"]
        return Task(name, general.auto_class, True, general.answer, languages[1], languages[2])
    if name not in _TASKS:
        raise InvalidArgument(
            f"unknown task {name!r}; known are {', '.join(map(repr, _TASKS))} and "
            "'translation_xx_to_yy'"
        )
    return _TASKS[name]


def check_model(task: Task, config: Any, name: str) -> None:
    """Raises InvalidArgument where the model called `name`, of that config, cannot do the task."""
    if bool(getattr(config, "is_encoder_decoder", False)) == task.encoder_decoder:
        return
    needed, got, other = (
        ("an encoder-decoder model (T5, BART, ...)", "a decoder-only one", "text-generation")
        if task.encoder_decoder
        else ("a decoder-only model", "an encoder-decoder one", "text2text-generation")
    )
    raise InvalidArgument(
        f"task {task.name!r} needs {needed}, and {name} is {got}: use task "
        f"{other!r}, or another model"
    )


def task_defaults(task: Task, model: Any) -> tuple[str, dict[str, Any]]:
    """The prefix and the generation arguments that the model's config has for the task.

    `task_specific_params` of T5 and BART hold {"summarization": {"prefix": "summarize: ",
    "num_beams": 4, ...}, "translation_en_to_fr": {...}}.
    """
    per_task = getattr(model.config, "task_specific_params", None) or {}
    values = dict(per_task.get(task.name) or {})
    prefix = values.pop("prefix", None)
    if prefix is None:
        prefix = getattr(model.config, "prefix", None)
    return prefix or "", values
