# SPDX-License-Identifier: Apache-2.0
"""Arguments of a call, by the names that the generator knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# OpenAI's names of generation arguments, which LangChain's models share.
_NAMES = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "n": "num_return_sequences",
    "timeout": "max_time",
}


def translated(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by the names that the generator knows; None leaves the field's value."""
    options: dict[str, Any] = {}
    for name, value in arguments.items():
        known = _NAMES.get(name, name)
        if value is None:
            continue
        if options.setdefault(known, value) != value:
            raise ValueError(
                f"{name}={value!r} and {known}={options[known]!r} mean the same: give one of them"
            )
    top = options.pop("top_logprobs", None)
    if top is not None and options.get("logprobs", True):
        options["logprobs"] = top
    return options
