# SPDX-License-Identifier: Apache-2.0
"""Text generation: what `woq.pipeline`, the LangChain package and the command line share."""

from __future__ import annotations

from .chat import encode_chat
from .completion import Completion, TokenLogprob
from .generator import Prompt, TextGenerator, run_in_thread
from .loading import load_generator
from .options import check_options, options_of_pipeline
from .tasks import Task, find_task
from .text import RowText, TextStopping, normalize_stops

__all__ = [
    "Completion",
    "Prompt",
    "RowText",
    "Task",
    "TextGenerator",
    "TextStopping",
    "TokenLogprob",
    "check_options",
    "encode_chat",
    "find_task",
    "load_generator",
    "normalize_stops",
    "options_of_pipeline",
    "run_in_thread",
]
