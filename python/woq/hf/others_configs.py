# SPDX-License-Identifier: Apache-2.0
"""transformers' configs of other methods, where they ask to quantize a float model: woq's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..config.algorithm_configs import GPTQConfig
from ..config.quant_config import WeightOnlyQuantConfig
from ..core.native import Unsupported

__all__ = ["own_config"]


def own_config(given: Any, compute_dtype: str) -> WeightOnlyQuantConfig:
    """Woq's config that says what `given` does.

    Raises:
        Unsupported: it has no counterpart, or asks for what woq does not do.
    """
    name = type(given).__name__
    make = _MAKERS.get(name)
    if make is None:
        raise Unsupported(
            f"woq.install() does not quantize by a {name}: pass a config of woq's (woq.GPTQConfig, "
            "woq.AwqConfig, woq.AutoRoundConfig, woq.HqqConfig, woq.WeightOnlyQuantConfig), or "
            f"call woq.uninstall() to leave it to the library that {name} is of"
        )
    return make(given, compute_dtype)


def _gptq(given: Any, compute_dtype: str) -> WeightOnlyQuantConfig:
    names = ("bits", "tokenizer", "dataset", "group_size", "damp_percent", "desc_act", "sym")
    layers = ("block_name_to_quantize", "modules_in_block_to_quantize")
    chosen = {name: getattr(given, name) for name in (*names, *layers)}
    if given.model_seqlen is not None:
        chosen["model_seqlen"] = given.model_seqlen
    return GPTQConfig(**chosen, compute_dtype=compute_dtype)


def _bitsandbytes(given: Any, compute_dtype: str) -> WeightOnlyQuantConfig:
    eight = given.load_in_8bit
    dtype = "int8" if eight else {"fp4": "fp4_e2m1_bnb"}.get(given.bnb_4bit_quant_type, "nf4")
    return WeightOnlyQuantConfig(
        weight_dtype=dtype,
        group_size=-1 if eight else 64,
        use_double_quant=not eight and given.bnb_4bit_use_double_quant,
        modules_to_not_convert=given.llm_int8_skip_modules,
        compute_dtype=compute_dtype,
    )


_MAKERS: Mapping[str, Callable[[Any, str], WeightOnlyQuantConfig]] = {
    "GPTQConfig": _gptq,
    "BitsAndBytesConfig": _bitsandbytes,
}
