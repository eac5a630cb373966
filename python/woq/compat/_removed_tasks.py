# SPDX-License-Identifier: Apache-2.0
"""The tasks of encoder-decoder models for transformers' own `pipeline()`, which lost them in
version 5; they run on `woq.pipeline`.

transformers looks a task up in two tables: one of tasks that were removed, which raises KeyError
first, and the registry, where anybody may add a task. So a name leaves the first and enters the
second, and all else of `pipeline()` (loading, default arguments) works as for any task. Whole
families of names cannot be registered: "translation_xx_to_yy" is for `woq.pipeline` alone.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

__all__ = ["TASKS", "remove", "restore"]

logger = logging.getLogger("woq")

TASKS = ("text2text-generation", "summarization", "translation")

# What was taken out of transformers' table of removed tasks.
_taken: dict[str, str] = {}


class _WoqTask:
    """In the place of a pipeline class: what transformers asks of one before it is called."""

    _load_processor = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = True

    def __new__(cls, model: Any, task: str, tokenizer: Any = None, **kwargs: Any) -> Any:
        from ..generation.pipeline import pipeline

        for name in ("dtype", "torch_dtype"):  # transformers has loaded the model with it
            kwargs.pop(name, None)
        return pipeline(task, model=model, tokenizer=tokenizer, **kwargs)


def restore() -> None:
    """Add the tasks that transformers lacks. Tasks that it has, or that somebody else registered,
    are left alone."""
    from transformers import AutoModelForSeq2SeqLM, pipelines

    registry = pipelines.PIPELINE_REGISTRY
    added = [task for task in TASKS if task not in registry.get_supported_tasks()]
    for task in added:
        # A class of its own for each: the registry writes the task into it.
        task_class = type("WoqTask", (_WoqTask,), {})
        registry.register_pipeline(task, task_class, pt_model=AutoModelForSeq2SeqLM, type="text")
        removed: dict[str, str] = getattr(pipelines, "REMOVED_TASKS", {})
        if task in removed:
            _taken[task] = removed.pop(task)
    if added:
        logger.info("transformers.pipeline() has the tasks %s again", ", ".join(added))


def remove() -> None:
    """Undo `restore`."""
    pipelines = sys.modules.get("transformers.pipelines")
    if pipelines is None:
        return
    supported = pipelines.PIPELINE_REGISTRY.supported_tasks
    for task in TASKS:
        added = supported.get(task, {}).get("impl")
        if isinstance(added, type) and issubclass(added, _WoqTask):
            del supported[task]
    if _taken:
        pipelines.REMOVED_TASKS.update(_taken)
        _taken.clear()
