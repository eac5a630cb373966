# SPDX-License-Identifier: Apache-2.0
"""ITREX's auto classes: woq's, with the arguments that only ITREX has."""

from __future__ import annotations

import logging
from typing import Any

from ..config.quant_config import dtype_name
from ..core.native import Unsupported
from ..hf import auto_model
from ._itrex_configs import RtnConfig

__all__ = ["AutoModel", "AutoModelForCausalLM", "AutoModelForSeq2SeqLM"]

logger = logging.getLogger("woq")


class _ItrexArguments(auto_model._AutoModel):
    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *model_args: Any,
        quantization_config: Any = None,
        load_in_4bit: bool = False,
        load_in_8bit: bool = False,
        model_file: str | None = None,
        model_type: str | None = None,
        use_embedding_runtime: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load a model, quantized if asked, on the CPU; a transformers model in any case.

        Args:
            quantization_config: a configuration of this package or of woq, or its class.
            load_in_4bit, load_in_8bit: nf4 or int8 in groups of 32, computed with in `torch_dtype`
                (fp32 without one), unless `quantization_config` says more.
            model_file: a GGUF file of the folder or hub repository. It runs packed, its weights as
                they are; `quantization_config` quantizes it again.
            model_type: what ITREX needs to run a GGUF file; the file itself says it.
            kwargs: as transformers' own class takes them. use_llm_runtime and use_neural_speed are
                logged and ignored.

        Raises:
            InvalidArgument: the arguments contradict each other.
            Unsupported: another device than the CPU, or `use_embedding_runtime`.
        """
        if use_embedding_runtime:
            raise Unsupported(
                "use_embedding_runtime: woq has no runtime for ONNX graphs; load the model's "
                "safetensors checkpoint without it"
            )
        if model_type is not None:
            logger.info("model_type=%r is not needed: the model's files say it", model_type)
        if quantization_config is None and load_in_4bit != load_in_8bit:
            dtype = dtype_name(kwargs.get("torch_dtype") or kwargs.get("dtype"))
            quantization_config = RtnConfig(
                bits=4 if load_in_4bit else 8,
                weight_dtype="nf4" if load_in_4bit else "int8",
                compute_dtype=dtype if dtype in ("fp32", "bf16") else "fp32",
            )
        return super().from_pretrained(
            pretrained_model_name_or_path,
            *model_args,
            quantization_config=quantization_config,
            load_in_4bit=load_in_4bit,
            load_in_8bit=load_in_8bit,
            model_file=model_file,
            **kwargs,
        )


class AutoModel(_ItrexArguments, auto_model.AutoModel):
    """`woq.AutoModel` with ITREX's arguments."""


class AutoModelForCausalLM(_ItrexArguments, auto_model.AutoModelForCausalLM):
    """`woq.AutoModelForCausalLM` with ITREX's arguments."""


class AutoModelForSeq2SeqLM(_ItrexArguments, auto_model.AutoModelForSeq2SeqLM):
    """`woq.AutoModelForSeq2SeqLM` with ITREX's arguments."""
