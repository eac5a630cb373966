# SPDX-License-Identifier: Apache-2.0
"""Constructor arguments in a form that LangChain can write down and read back."""

from __future__ import annotations

from typing import Any


def plain_config(config: Any) -> dict[str, Any]:
    """The argument `quantization_config` as plain data, if it is an object or its class."""
    if config is None or isinstance(config, dict):
        return {}
    config = config() if isinstance(config, type) else config
    return {"quantization_config": config.to_dict()}
