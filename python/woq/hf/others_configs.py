# SPDX-License-Identifier: Apache-2.0
"""transformers' configs of other methods, where they ask to quantize a float model: woq's own."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

from ..config.algorithm_configs import AwqConfig, GPTQConfig
from ..config.quant_config import WeightOnlyQuantConfig
from ..core.native import Unsupported
from ..observe.samples import Examples

__all__ = ["own_config", "saying_what_is_idle"]

logger = logging.getLogger("woq")

# Arguments of transformers' GPTQConfig and AwqConfig, of this version or an older one, that are
# about kernels of GPUs or the steps of another library.
_IDLE = ("use_exllama", "disable_exllama", "exllama_config", "use_cuda_fp16", "do_fuse",
         "fuse_max_seq_len", "modules_to_fuse")  # fmt: skip


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


def saying_what_is_idle(initialise: Callable[..., None]) -> Callable[..., None]:
    """The `__init__` of transformers' GPTQConfig, which drops what it does not know without a word,
    with a word."""

    @functools.wraps(initialise)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        given = [f"{name}={kwargs[name]!r}" for name in _IDLE if kwargs.get(name) is not None]
        if given:
            logger.info(
                "%s: %s is about kernels of GPUs, and has no effect on a CPU",
                type(self).__name__,
                ", ".join(given),
            )
        initialise(self, *args, **kwargs)

    return __init__


def _gptq(given: Any, compute_dtype: str) -> WeightOnlyQuantConfig:
    names = ("bits", "tokenizer", "group_size", "damp_percent", "desc_act", "sym")
    layers = ("block_name_to_quantize", "modules_in_block_to_quantize")
    chosen = {name: getattr(given, name) for name in (*names, *layers)}
    # Older versions lack the second one.
    for name in ("true_sequential", "act_group_aware"):
        if hasattr(given, name):
            chosen[name] = getattr(given, name)
    if given.model_seqlen is not None:
        chosen["model_seqlen"] = given.model_seqlen
    return GPTQConfig(**chosen, dataset=_dataset(given.dataset), compute_dtype=compute_dtype)


def _awq(given: Any, compute_dtype: str) -> WeightOnlyQuantConfig:
    return AwqConfig(
        bits=given.bits,
        group_size=given.group_size,
        zero_point=given.zero_point,
        tokenizer=getattr(given, "tokenizer", None),
        # AutoAWQ joins texts, as woq does.
        dataset=getattr(given, "dataset", None),
        llm_int8_skip_modules=given.modules_to_not_convert,
        compute_dtype=compute_dtype,
    )


def _dataset(given: Any) -> Any:
    """optimum and GPTQModel take a list as samples as they are; a name is a data set."""
    return Examples(given) if isinstance(given, list | tuple) else given


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
    "AwqConfig": _awq,
    "BitsAndBytesConfig": _bitsandbytes,
}
