# SPDX-License-Identifier: Apache-2.0
"""Which model, and how it is loaded: the fields that `ChatWoq` and `WoqEmbeddings` share."""

from __future__ import annotations

from os import PathLike
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ModelFields(BaseModel):
    """A model by name, quantized while loading if asked, or a loaded one.

    As a base it comes after LangChain's class: the later base's `model_config` wins.
    """

    model: str = ""
    """Folder, hub id, or (in the constructor) a loaded model."""
    loaded_model: Any = Field(default=None, exclude=True, repr=False)
    tokenizer: Any = Field(default=None, exclude=True, repr=False)
    """The tokenizer of a loaded model; by default the one beside the model."""
    quantization_config: Any = None
    load_in_4bit: bool = False
    load_in_8bit: bool = False
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of from_pretrained."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), arbitrary_types_allowed=True)

    @model_validator(mode="before")
    @classmethod
    def _take_loaded_model(cls, values: Any) -> Any:
        """`model` is a name from here on, and a loaded model is in `loaded_model`."""
        if not isinstance(values, dict) or isinstance(values.get("model"), str):
            return values
        model = values.get("model")
        if model is None:
            return values
        if isinstance(model, PathLike):
            return {**values, "model": str(model)}
        return {**values, "model": str(getattr(model, "name_or_path", "")), "loaded_model": model}

    def _model_or_name(self) -> Any:
        """
        Raises:
            ValueError: neither was given.
        """
        if self.loaded_model is None and not self.model:
            raise ValueError("model is missing: pass a folder, a hub id or a loaded model")
        return self.model if self.loaded_model is None else self.loaded_model

    def _loading(self) -> dict[str, Any]:
        """The arguments of woq's functions that load a model."""
        return {
            "quantization_config": self.quantization_config,
            "load_in_4bit": self.load_in_4bit,
            "load_in_8bit": self.load_in_8bit,
            "model_kwargs": self.model_kwargs,
        }
