# SPDX-License-Identifier: Apache-2.0
"""The methods of other libraries whose checkpoints are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .awq import awq
from .bitsandbytes import bitsandbytes
from .compressed_tensors import compressed_tensors
from .form import ForeignFormat
from .gptq import auto_round, gptq
from .hqq import hqq
from .modelopt import modelopt
from .mxfp4 import mxfp4

__all__ = ["FOREIGN_METHODS", "ForeignFormat", "foreign_format"]


def foreign_format(settings: Mapping[str, Any]) -> ForeignFormat | None:
    """The format of a checkpoint with these settings (its `quantization_config`); None where the
    method is not one that woq reads.

    Raises:
        Unsupported: the method is known, and this form of it is not read.
    """
    method = settings.get("quant_method", "")
    # Configs of transformers' own have an enumeration there.
    make = FOREIGN_METHODS.get(str(getattr(method, "value", method)).lower())
    return None if make is None else make(settings)


# The one list of methods, by transformers' `quant_method`.
FOREIGN_METHODS: Mapping[str, Callable[[Mapping[str, Any]], ForeignFormat]] = {
    "gptq": gptq,
    "awq": awq,
    "auto-round": auto_round,
    "intel/auto-round": auto_round,
    "bitsandbytes": bitsandbytes,
    "compressed-tensors": compressed_tensors,
    "hqq": hqq,
    "modelopt": modelopt,
    "mxfp4": mxfp4,
}
