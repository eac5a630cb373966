# SPDX-License-Identifier: Apache-2.0
"""compressed-tensors, vLLM's own format: "pack-quantized" for weights of any width, and
"int-quantized" for those of 8 bits that are multiplied as integers."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch

from ...core import native
from .form import ExportedLayer, ExportFormat, to_torch

__all__ = ["CompressedInt8Export", "CompressedTensorsExport"]


class _Kind(NamedTuple):
    """What the layers of one config group have in common."""

    bits: int
    asym: bool
    group_size: int  # -1: channel


class CompressedTensorsExport(ExportFormat):
    """Every width from 2 to 8 bits, mixed as well. Scales have the model's dtype: readers keep no
    other."""

    name = "compressed-tensors"
    _form: ClassVar[str] = "pack-quantized"
    _activations: ClassVar[dict[str, Any] | None] = None

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
            f"group_{number}": _config_group(
                kind, kinds[kind] if number else ["Linear"], self._activations
            )
            for number, kind in enumerate(frequent)
        }
        return {
            "quant_method": "compressed-tensors",
            "format": self._form,
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


class CompressedInt8Export(CompressedTensorsExport):
    """Symmetric weights of 8 bits with one scale a row, which engines multiply with inputs that
    they round to 8 bits as well, token by token (W8A8). Whoever reads the weights only, as woq
    does, has the model as it is."""

    name = "compressed-tensors-int8"
    _form = "int-quantized"
    _activations: ClassVar[dict[str, Any] | None] = {
        "num_bits": 8,
        "type": "int",
        "symmetric": True,
        "strategy": "token",
        "dynamic": True,
    }

    def tensors(self, layer: ExportedLayer, matrix: native.QuantizedMatrix) -> dict[str, Any]:
        return to_torch(
            native.write_compressed_int(
                matrix, scales=self.model.dtype, round_scales=self.model.round_scales
            )
        )

    def refusals_of(self, layer: ExportedLayer) -> list[str]:
        problems = []
        if layer.bits != 8:
            problems.append(
                f"it has {layer.bits} bits, and {self.name} 8: write compressed-tensors"
            )
        if layer.scheme.asym:
            problems.append("its zero points have no place in W8A8: quantize with scheme='sym'")
        if layer.group_length != layer.cols:
            problems.append(
                f"it has groups of {layer.group_length}, and W8A8 one scale a row: quantize with "
                "group_size=-1, or write compressed-tensors"
            )
        return problems

    def loads_in(self) -> list[str]:
        return [
            "vLLM, on CPUs and GPUs",
            "transformers, with compressed-tensors (both round the inputs of these layers to 8 "
            "bits, which changes the model a little)",
        ]

    def _kind(self, layer: ExportedLayer) -> _Kind:
        return _Kind(8, False, -1)


def _config_group(
    kind: _Kind, targets: list[str], activations: dict[str, Any] | None
) -> dict[str, Any]:
    by_row = kind.group_size == -1
    return {
        "targets": targets,
        "input_activations": activations,
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
