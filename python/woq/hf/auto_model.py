# SPDX-License-Identifier: Apache-2.0
"""Auto classes with what transformers 5 dropped or refuses: `load_in_4bit=True`,
`load_in_8bit=True`, `gguf_file=` without a conversion to floats, or with a quantization config.

They return ordinary transformers models. Everything else is passed on unchanged.
"""

from __future__ import annotations

import logging
from typing import Any

import transformers

from ..config.quant_config import WeightOnlyQuantConfig
from ..core.native import InvalidArgument
from .load import load_model
from .location import gguf_argument

__all__ = ["AutoModel", "AutoModelForCausalLM", "AutoModelForSeq2SeqLM"]

logger = logging.getLogger("woq")

# Arguments of ITREX that chose its runtime, which woq does not have.
_ITREX_ARGUMENTS = ("use_llm_runtime", "use_neural_speed", "use_cpu", "use_xpu")


class _AutoModel:
    _transformers_class: Any

    def __init__(self) -> None:
        raise OSError(f"use {type(self).__name__}.from_pretrained(...)")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *model_args: Any,
        quantization_config: Any = None,
        load_in_4bit: bool = False,
        load_in_8bit: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load a model, quantized if asked, on the CPU.

        Args:
            quantization_config: a `WeightOnlyQuantConfig` (or its class, or a dict of its fields).
            load_in_4bit: nf4 in groups of 32, unless `quantization_config` says which 4-bit dtype.
            load_in_8bit: int8 in groups of 32.
            kwargs: as transformers' own class takes them. A `gguf_file` (ITREX's name of it is
                `model_file`) runs packed, its weights as they are; with a quantization config that
                names more than a compute dtype it is loaded in floating point first, then
                quantized layer by layer.

        Raises:
            InvalidArgument: the arguments contradict each other, a weight has NaN or Inf, or a
                safetensors file is damaged.
            Unsupported: `device_map` asks for another device than the CPU.
        """
        config = _config(quantization_config, load_in_4bit, load_in_8bit)
        kwargs = gguf_argument(kwargs)
        for name in _ITREX_ARGUMENTS:
            if kwargs.pop(name, None):
                logger.warning("%s=True is ignored: woq runs transformers' model code", name)
        return load_model(
            cls._transformers_class,
            pretrained_model_name_or_path,
            model_args,
            kwargs,
            quantization_config=config,
        )

    @classmethod
    def from_config(cls, config: Any, **kwargs: Any) -> Any:
        """A model with random weights, as transformers' own class makes it."""
        return cls._transformers_class.from_config(config, **kwargs)


class AutoModel(_AutoModel):
    """`transformers.AutoModel` (encoders, models without a head) with the same."""

    _transformers_class = transformers.AutoModel


class AutoModelForCausalLM(_AutoModel):
    """`transformers.AutoModelForCausalLM` with `load_in_4bit`, `load_in_8bit` and GGUF sources."""

    _transformers_class = transformers.AutoModelForCausalLM


class AutoModelForSeq2SeqLM(_AutoModel):
    """`transformers.AutoModelForSeq2SeqLM` with `load_in_4bit` and `load_in_8bit`."""

    _transformers_class = transformers.AutoModelForSeq2SeqLM


def _config(given: Any, load_in_4bit: bool, load_in_8bit: bool) -> Any:
    """The quantization config that the arguments amount to; None for none."""
    if load_in_4bit and load_in_8bit:
        raise InvalidArgument("load_in_4bit and load_in_8bit exclude each other")
    bits = 4 if load_in_4bit else 8 if load_in_8bit else None
    if given is None:
        if bits is None:
            return None
        return WeightOnlyQuantConfig(weight_dtype="nf4" if bits == 4 else "int8")
    if isinstance(given, type) and issubclass(given, WeightOnlyQuantConfig):
        # Examples in the wild pass the class where they mean an instance of it.
        given = given()
    elif isinstance(given, dict) and given.get("quant_method", "woq") == "woq":
        given = WeightOnlyQuantConfig.from_dict(given)
    if isinstance(given, str):
        raise InvalidArgument(
            f"quantization_config={given!r} is a string: pass "
            f"WeightOnlyQuantConfig(weight_dtype={given!r}), or load_in_4bit=True"
        )
    if not isinstance(given, WeightOnlyQuantConfig):
        if bits is not None:
            raise InvalidArgument(
                f"load_in_{bits}bit works with a WeightOnlyQuantConfig, got {type(given).__name__}"
            )
        return given
    if bits is not None and given.bits != bits:
        raise InvalidArgument(
            f"load_in_{bits}bit=True, but quantization_config.weight_dtype is "
            f"{given.weight_dtype!r} ({given.bits} bits); leave one of them out"
        )
    return given.canonical()
