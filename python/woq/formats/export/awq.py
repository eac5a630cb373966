# SPDX-License-Identifier: Apache-2.0
"""AWQ ("gemm"), for vLLM, SGLang and transformers."""

from __future__ import annotations

from typing import Any

from ...core import native
from .form import ExportedLayer, ExportFormat, to_torch

__all__ = ["AwqExport"]


class AwqExport(ExportFormat):
    """Always with zero points: those of a symmetric layer are 8."""

    name = "awq"

    def tensors(self, layer: ExportedLayer, matrix: native.QuantizedMatrix) -> dict[str, Any]:
        rounded = self.model.round_scales
        return to_torch(native.write_awq(matrix, scales="float16", round_scales=rounded))

    def refusals(self) -> list[str]:
        return [*self.one_scheme(), *super().refusals()]

    def settings(self) -> dict[str, Any]:
        return {
            "quant_method": "awq",
            "bits": 4,
            "group_size": self.model.group_size,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": list(self.model.floats) or None,
        }

    def loads_in(self) -> list[str]:
        by_words = all(layer.by_words for layer in self.model.layers)
        vllm = "vLLM, on CPUs and GPUs" if by_words else "vLLM, on GPUs only"
        return [vllm, "SGLang", "transformers, with gptqmodel"]
