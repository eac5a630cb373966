# SPDX-License-Identifier: Apache-2.0
"""bitsandbytes, 4 bits, for transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from ...core import native
from .form import ExportedLayer, ExportFormat, to_torch

__all__ = ["BitsandbytesExport"]

# Our name of a table of codes -> its.
_TABLES = {"nf4": "nf4", "fp4_e2m1_bnb": "fp4"}
_BLOCKS = (64, 128, 256, 512, 1024, 2048, 4096)


class BitsandbytesExport(ExportFormat):
    """nf4 and fp4. Doubly quantized scales stay so."""

    name = "bitsandbytes"
    fuses = False

    def tensors(self, layer: ExportedLayer, matrix: native.QuantizedMatrix) -> dict[str, Any]:
        parts = to_torch(native.write_bitsandbytes4(matrix))
        table = _TABLES[matrix.scheme.dtype]
        state = {
            "quant_type": table,
            "blocksize": layer.group_length,
            "dtype": self.model.dtype,
            "shape": [layer.rows, layer.cols],
        }
        if "nested_absmax" in parts:
            state |= {
                "nested_blocksize": 256,
                "nested_dtype": "float32",
                "nested_offset": float(matrix.tensors()["scales_offset"][0]),
            }
        named = {
            name if name == "weight" else f"weight.{name}": each for name, each in parts.items()
        }
        text = bytearray(json.dumps(state).encode())
        named[f"weight.quant_state.bitsandbytes__{table}"] = torch.frombuffer(
            text, dtype=torch.uint8
        )
        return named

    def scales(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        return None

    def refusals(self) -> list[str]:
        dtypes = sorted({layer.scheme.dtype for layer in self.model.layers})
        nested = {layer.scheme.scales == "double" for layer in self.model.layers}
        problems = []
        if len(dtypes) > 1:
            problems.append(f"layers have the dtypes {', '.join(dtypes)}, and bitsandbytes one")
        if len(nested) > 1:
            problems.append("some layers' scales are doubly quantized: quantize them alike")
        return problems

    def refusals_of(self, layer: ExportedLayer) -> list[str]:
        if layer.group_length in _BLOCKS:
            return []
        return [
            f"it has groups of {layer.group_length}, and bitsandbytes blocks of "
            f"{', '.join(map(str, _BLOCKS))}: quantize with group_size=64"
        ]

    def settings(self) -> dict[str, Any]:
        first = self.model.layers[0].scheme
        return {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "load_in_8bit": False,
            "_load_in_4bit": True,
            "_load_in_8bit": False,
            "bnb_4bit_quant_type": _TABLES[first.dtype],
            "bnb_4bit_use_double_quant": first.scales == "double",
            "bnb_4bit_compute_dtype": self.model.dtype,
            "bnb_4bit_quant_storage": "uint8",
            "llm_int8_skip_modules": list(self.model.floats) or None,
        }

    def loads_in(self) -> list[str]:
        return ["transformers, with bitsandbytes (vLLM reads it no longer)"]
