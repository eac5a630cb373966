# SPDX-License-Identifier: Apache-2.0
"""Constructor arguments in a form that LangChain can write down and read back."""

from __future__ import annotations

from os import PathLike
from typing import Any


def plain_config(config: Any) -> dict[str, Any]:
    """The argument `quantization_config` as plain data, if it is an object or its class."""
    if config is None or isinstance(config, dict):
        return {}
    config = config() if isinstance(config, type) else config
    return {"quantization_config": config.to_dict()}


def split_model(values: Any) -> Any:
    """Constructor arguments whose `model` is a path or a loaded model: a name, and the model."""
    if not isinstance(values, dict) or isinstance(values.get("model"), str):
        return values
    model = values.get("model")
    if model is None:
        return values
    if isinstance(model, PathLike):
        return {**values, "model": str(model)}
    return {**values, "model": str(getattr(model, "name_or_path", "")), "loaded_model": model}
