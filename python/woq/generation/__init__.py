# SPDX-License-Identifier: Apache-2.0
"""Text generation: what `woq.pipeline`, the LangChain package and the command line share."""

from __future__ import annotations

from ..core import extras

with extras.needed_by("woq.generation"):
    from .chat import ChatIds, chat_template, encode_chat
    from .completion import Completion, TokenLogprob
    from .generator import Prompt, TextGenerator
    from .grammar import Grammar, json_fragment
    from .loading import check_device, load_generator, load_model
    from .options import check_options, options_of_pipeline
    from .positions import position_limit
    from .steps import Flag
    from .tasks import Task, find_task
    from .text import RowText, TextStopping, normalize_stops
    from .threads import run_in_thread

__all__ = [
    "ChatIds",
    "Completion",
    "Flag",
    "Grammar",
    "Prompt",
    "RowText",
    "Task",
    "TextGenerator",
    "TextStopping",
    "TokenLogprob",
    "chat_template",
    "check_device",
    "check_options",
    "encode_chat",
    "find_task",
    "json_fragment",
    "load_generator",
    "load_model",
    "normalize_stops",
    "options_of_pipeline",
    "position_limit",
    "run_in_thread",
]
