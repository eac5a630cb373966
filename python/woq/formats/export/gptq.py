# SPDX-License-Identifier: Apache-2.0
"""GPTQ, for GPTQModel, transformers and vLLM."""

from __future__ import annotations

import re
from typing import Any

from ...core import native
from .form import WORDS, ExportedLayer, ExportFormat, to_torch

__all__ = ["GptqExport"]


class GptqExport(ExportFormat):
    """Symmetric models as "gptq" (v1), which all engines know; others as "gptq_v2", which has a
    number for every zero point."""

    name = "gptq"
    holds_head = True

    @property
    def _v2(self) -> bool:
        return self.model.asym

    @property
    def _act_order(self) -> bool:
        return any(layer.act_order for layer in self.model.layers)

    def tensors(self, layer: ExportedLayer, matrix: native.QuantizedMatrix) -> dict[str, Any]:
        return to_torch(
            native.write_gptq(
                matrix, v2=self._v2, scales="float16", round_scales=self.model.round_scales
            )
        )

    def refusals(self) -> list[str]:
        return [*self.one_scheme(), *super().refusals()]

    def refusals_of(self, layer: ExportedLayer) -> list[str]:
        if layer.by_words:
            return []
        return [
            f"it is {layer.rows} x {layer.cols}, and GPTQModel and vLLM take multiples of {WORDS}: "
            "write compressed-tensors, or leave it in floating point (modules_to_not_convert)"
        ]

    def settings(self) -> dict[str, Any]:
        form = "gptq_v2" if self._v2 else "gptq"
        version = native.build_info()["version"]
        return {
            "quant_method": "gptq",
            "bits": self.model.layers[0].bits,
            "group_size": self.model.group_size,
            "desc_act": self._act_order,
            "sym": not self._v2,
            "checkpoint_format": form,
            "format": form,
            "pack_dtype": "int32",
            "lm_head": any(layer.is_head for layer in self.model.layers),
            # GPTQModel's and vLLM's way to say that a layer is not quantized.
            "dynamic": {f"-:^{re.escape(name)}$": {} for name in self.model.floats},
            "meta": {"quantizer": [f"woq:{version}"]},
        }

    def loads_in(self) -> list[str]:
        bits = self.model.layers[0].bits
        places = ["transformers, with gptqmodel"]
        if not self._v2 and bits == 4 and not self._act_order:
            places += ["vLLM, on CPUs and GPUs", "SGLang"]
        elif not self._v2 and bits in (4, 8):
            places += ["vLLM, on GPUs only"]
        return places
