# SPDX-License-Identifier: Apache-2.0
"""compressed-tensors ("pack-quantized"), vLLM's own format."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from ...core import native
from .form import ExportedLayer, ExportFormat, to_torch

__all__ = ["CompressedTensorsExport"]


class _Kind(NamedTuple):
    """What the layers of one config group have in common."""

    bits: int
    asym: bool
    group_size: int  # -1: channel


class CompressedTensorsExport(ExportFormat):
    """Every width from 2 to 8 bits, mixed as well. Scales have the model's dtype: readers keep no
    other."""

    name = "compressed-tensors"

    def tensors(self, layer: ExportedLayer, matrix: native.QuantizedMatrix) -> dict[str, Any]:
        return to_torch(
            native.write_compressed_packed(
                matrix, scales=self.model.dtype, round_scales=self.model.round_scales
            )
        )

    def scales(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        return tensors["weight_scale"]

    def settings(self) -> dict[str, Any]:
        kinds: dict[_Kind, list[str]] = collections.defaultdict(list)
        for layer in self.model.layers:
            kinds[self._kind(layer)].append(layer.name)
        # The most frequent one is that of the class; the others name their layers.
        frequent = sorted(kinds, key=lambda kind: -len(kinds[kind]))
        groups = {
            f"group_{number}": _config_group(kind, kinds[kind] if number else ["Linear"])
            for number, kind in enumerate(frequent)
        }
        return {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": list(self.model.floats),
            "kv_cache_scheme": None,
        }

    def loads_in(self) -> list[str]:
        layers = self.model.layers
        on_cpus = all(layer.bits == 4 and layer.by_words for layer in layers)
        places = ["vLLM, on CPUs and GPUs" if on_cpus else "vLLM, on GPUs only"]
        if self.model.dtype == "float32":
            places[0] += " (which computes in 16 bits and rounds the float32 scales to that)"
        if not self.model.asym:
            places.append("transformers, with compressed-tensors")
        return places

    def _kind(self, layer: ExportedLayer) -> _Kind:
        length = layer.group_length
        by_row = length == layer.cols and length != self.model.common_group_length
        return _Kind(layer.bits, layer.scheme.asym, -1 if by_row else length)


def _config_group(kind: _Kind, targets: list[str]) -> dict[str, Any]:
    by_row = kind.group_size == -1
    return {
        "targets": targets,
        "input_activations": None,
        "output_activations": None,
        "weights": {
            "num_bits": kind.bits,
            "type": "int",
            "symmetric": not kind.asym,
            "strategy": "channel" if by_row else "group",
            "group_size": None if by_row else kind.group_size,
            "dynamic": False,
        },
    }
