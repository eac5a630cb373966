# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's Model Optimizer (ModelOpt): NVFP4."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...core import native
from .form import ForeignFormat, Tensors
from .fp4 import global_scale, read_fp4

__all__ = ["modelopt"]

# input_scale is of quantized activations, which woq leaves as they are.
_TENSORS = frozenset({"weight", "weight_scale", "weight_scale_2", "input_scale"})


def modelopt(settings: Mapping[str, Any]) -> ForeignFormat:
    # In a file of its own the settings are one level down.
    said = settings.get("quantization") or settings
    algorithm = str(said.get("quant_algo")).upper()
    if algorithm != "NVFP4":
        raise native.Unsupported(
            f"this ModelOpt checkpoint has quant_algo {said.get('quant_algo')!r}; woq reads NVFP4"
        )
    return ForeignFormat("ModelOpt (NVFP4)", "weight_scale_2", _TENSORS, _read)


def _read(tensors: Tensors, rows: int, cols: int) -> tuple[native.QuantizedMatrix, str]:
    rule = "nvfp4, its scales times weight_scale_2"
    if "input_scale" in tensors:
        rule += "; activations are not quantized, though the settings say so"
    multiplier = global_scale(tensors, "weight_scale_2")
    return read_fp4(
        tensors, rows, cols, weight="weight", scales="e4m3", multiplier=multiplier
    ), rule
