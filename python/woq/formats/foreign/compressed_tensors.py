# SPDX-License-Identifier: Apache-2.0
"""compressed-tensors (llm-compressor, vLLM)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...core import native
from .form import ForeignFormat, Tensors, bits_of, extent, group_size_of, refuse

__all__ = ["compressed_tensors"]


def compressed_tensors(settings: Mapping[str, Any]) -> ForeignFormat:
    method = "compressed-tensors"
    status = settings.get("quantization_status", "compressed")
    if status != "compressed":
        raise native.Unsupported(
            f"this {method} checkpoint has quantization_status {status!r}: its weights are stored "
            "in floating point; save it compressed"
        )
    refuse(
        method,
        settings,
        {
            "transform_config": "its weights are rotated, and the model's code is not",
            "sparsity_config": "sparse weights are not read",
        },
    )
    groups = list((settings.get("config_groups") or {}).values())
    weights = [group.get("weights") or {} for group in groups]
    formats = {settings.get("format"), *(group.get("format") for group in groups)}
    formats -= {None, "mixed-precision"}
    if formats not in ({"pack-quantized"}, {"int-quantized"}):
        raise native.Unsupported(
            f"this {method} checkpoint has format {', '.join(sorted(map(str, formats))) or 'none'}"
            "; woq reads pack-quantized and int-quantized"
        )

    def one(key: str) -> Any:
        values = {group.get(key) for group in weights}
        return values.pop() if len(values) == 1 else None

    def group_size(tensors: Tensors, cols: int) -> int:
        scale = tensors.get("weight_scale")
        if scale is not None and scale.dim() == 1:
            return -1
        return group_size_of(extent(tensors, "weight_scale", 1), cols, one("group_size"))

    def rule_of(matrix: native.QuantizedMatrix) -> str:
        rule = "zero points as stored" if matrix.scheme.asym else "symmetric"
        if any(group.get("input_activations") for group in groups):
            rule += "; activations are not quantized, though the settings say so"
        return rule

    def read_packed(tensors: Tensors, rows: int, cols: int) -> tuple[native.QuantizedMatrix, str]:
        shape = tensors.get("weight_shape")
        if shape is not None and shape.tolist() != [rows, cols]:
            raise native.InvalidArgument(
                f"weight_shape is {shape.tolist()}, the model's layer has [{rows}, {cols}]"
            )
        bits = bits_of(extent(tensors, "weight_packed", 1), cols, one("num_bits"))
        matrix = native.read_compressed_packed(tensors, rows, cols, bits, group_size(tensors, cols))
        return matrix, rule_of(matrix)

    def read_int(tensors: Tensors, rows: int, cols: int) -> tuple[native.QuantizedMatrix, str]:
        matrix = native.read_compressed_int(tensors, rows, cols, group_size(tensors, cols))
        return matrix, rule_of(matrix)

    common = {"weight_scale", "weight_zero_point"}
    if formats == {"int-quantized"}:
        names = frozenset({"weight", *common})
        return ForeignFormat(f"{method} (int-quantized)", "weight_scale", names, read_int)
    names = frozenset({"weight_packed", "weight_shape", "weight_g_idx", *common})
    return ForeignFormat(f"{method} (pack-quantized)", "weight_packed", names, read_packed)
