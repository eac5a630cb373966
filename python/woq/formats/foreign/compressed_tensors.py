# SPDX-License-Identifier: Apache-2.0
"""compressed-tensors (llm-compressor, vLLM).

A model may have layers of several formats; which one a layer has, its tensors say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...core import native
from .form import ForeignFormat, Tensors, bits_of, extent, group_size_of, refuse
from .fp4 import global_scale, read_fp4

__all__ = ["compressed_tensors"]

_METHOD = "compressed-tensors"
_FORMATS = ("pack-quantized", "int-quantized", "nvfp4-pack-quantized", "mxfp4-pack-quantized")

_TENSORS = frozenset(
    {
        "weight",
        "weight_packed",
        "weight_scale",
        "weight_zero_point",
        "weight_shape",
        "weight_g_idx",
        "weight_global_scale",
        "input_global_scale",  # of quantized activations, which woq leaves as they are
    }
)


def compressed_tensors(settings: Mapping[str, Any]) -> ForeignFormat:
    status = settings.get("quantization_status", "compressed")
    if status != "compressed":
        raise native.Unsupported(
            f"this {_METHOD} checkpoint has quantization_status {status!r}: its weights are stored "
            "in floating point; save it compressed"
        )
    refuse(
        _METHOD,
        settings,
        {
            "transform_config": "its weights are rotated, and the model's code is not",
            "sparsity_config": "sparse weights are not read",
        },
    )
    groups = list((settings.get("config_groups") or {}).values())
    formats = {settings.get("format"), *(group.get("format") for group in groups)}
    formats -= {None, "mixed-precision"}
    if not formats or not formats <= set(_FORMATS):
        raise native.Unsupported(
            f"this {_METHOD} checkpoint has format {', '.join(sorted(map(str, formats))) or 'none'}"
            f"; woq reads {', '.join(_FORMATS)}"
        )
    weights = [group.get("weights") or {} for group in groups]
    idle = any(group.get("input_activations") for group in groups)

    def one(key: str) -> Any:
        """What all groups say; None where they differ."""
        values = {group.get(key) for group in weights}
        return values.pop() if len(values) == 1 else None

    def read(tensors: Tensors, rows: int, cols: int) -> tuple[native.QuantizedMatrix, str]:
        matrix, rule = _read(tensors, rows, cols, one("num_bits"), one("group_size"))
        if idle or "input_global_scale" in tensors:
            rule += "; activations are not quantized, though the settings say so"
        return matrix, rule

    name = f"{_METHOD} ({', '.join(sorted(formats))})"
    return ForeignFormat(name, "weight_scale", _TENSORS, read)


def _read(
    tensors: Tensors, rows: int, cols: int, said_bits: Any, said_group_size: Any
) -> tuple[native.QuantizedMatrix, str]:
    shape = tensors.get("weight_shape")
    if shape is not None and shape.tolist() != [rows, cols]:
        raise native.InvalidArgument(
            f"weight_shape is {shape.tolist()}, the model's layer has [{rows}, {cols}]"
        )
    packed = tensors.get("weight_packed")
    if packed is not None and packed.dtype == torch.uint8:
        return _read_fp4(tensors, rows, cols)
    if packed is None and tensors.get("weight", torch.empty(0)).dtype != torch.int8:
        raise native.Unsupported(
            "it has scales, and neither a weight_packed nor a weight of int8: woq reads "
            f"{', '.join(_FORMATS)}"
        )
    scale = tensors.get("weight_scale")
    group_size = -1  # one scale for the matrix
    if scale is None or scale.dim() != 1:
        group_size = group_size_of(extent(tensors, "weight_scale", 1), cols, said_group_size)
    if packed is None:
        matrix = native.read_compressed_int(tensors, rows, cols, group_size)
    else:
        bits = bits_of(extent(tensors, "weight_packed", 1), cols, said_bits)
        matrix = native.read_compressed_packed(tensors, rows, cols, bits, group_size)
    return matrix, "zero points as stored" if matrix.scheme.asym else "symmetric"


def _read_fp4(tensors: Tensors, rows: int, cols: int) -> tuple[native.QuantizedMatrix, str]:
    """nvfp4 with a number of the matrix, which the scales are divided by; mxfp4 without one."""
    if "weight_global_scale" not in tensors:
        matrix = read_fp4(tensors, rows, cols, weight="weight_packed", scales="e8m0")
        return matrix, "mxfp4, its scales powers of 2"
    matrix = read_fp4(
        tensors,
        rows,
        cols,
        weight="weight_packed",
        scales="e4m3",
        divisor=global_scale(tensors, "weight_global_scale"),
    )
    return matrix, "nvfp4, its scales divided by weight_global_scale"
