# SPDX-License-Identifier: Apache-2.0
"""A model that is to be exported, and what a format does with it."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray

from ...core import native

__all__ = ["ExportFormat", "ExportedLayer", "ExportedModel", "to_torch"]

# Layers that engines join into one, and so want in one format.
_FUSED = ({"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"})

# vLLM's kernel for CPUs, and GPTQModel's packers, take rows and columns by this number.
WORDS = 32


@dataclasses.dataclass(frozen=True)
class ExportedLayer:
    """A quantized layer: its name in the checkpoint and what its weight [rows, cols] is."""

    name: str
    scheme: native.QuantScheme
    rows: int
    cols: int
    act_order: bool = False
    is_head: bool = False

    @property
    def group_length(self) -> int:
        return self.scheme.group_length(self.cols)

    @property
    def bits(self) -> int:
        return self.scheme.bits

    @property
    def by_words(self) -> bool:
        return self.rows % WORDS == 0 and self.cols % WORDS == 0


@dataclasses.dataclass(frozen=True)
class ExportedModel:
    """What the settings of a checkpoint have to say.

    Args:
        layers: the quantized layers.
        floats: the names of the linear layers in floating point, the head among them.
        dtype: of what is not quantized, as config.json says it: "bfloat16", ...
        round_scales: scales may be rounded to the type that the format keeps.
    """

    layers: tuple[ExportedLayer, ...]
    floats: tuple[str, ...]
    dtype: str
    round_scales: bool = False

    @property
    def asym(self) -> bool:
        return any(layer.scheme.asym for layer in self.layers)

    @property
    def group_size(self) -> int | None:
        """The group size of all layers, -1 where a row is a group; None: they differ. In a layer of
        64 columns, groups of 64 are the same as rows."""
        lengths = {layer.group_length for layer in self.layers}
        if all(layer.scheme.group_size == -1 for layer in self.layers) and len(lengths) > 1:
            return -1
        return lengths.pop() if len(lengths) == 1 else None

    @property
    def common_group_length(self) -> int:
        """The group size that most layers with several groups a row have."""
        several = [layer for layer in self.layers if layer.group_length < layer.cols]
        counted = collections.Counter(layer.group_length for layer in several or self.layers)
        return counted.most_common(1)[0][0]


class ExportFormat:
    """How one model is written in one format."""

    name: ClassVar[str]
    # Engines of the format join layers of _FUSED.
    fuses: ClassVar[bool] = True
    # The settings can say that the output embedding is quantized, and an engine reads that.
    holds_head: ClassVar[bool] = False

    def __init__(self, model: ExportedModel) -> None:
        self.model = model

    def tensors(self, layer: ExportedLayer, matrix: native.QuantizedMatrix) -> dict[str, Any]:
        """The tensors of a layer by what stands behind its name and a dot. Raises Unsupported."""
        raise NotImplementedError

    def scales(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        """The scales [N, G] among the tensors of a layer; None where they are never rounded."""
        return tensors["scales"].T

    def settings(self) -> dict[str, Any]:
        """`quantization_config` of config.json."""
        raise NotImplementedError

    def loads_in(self) -> list[str]:
        """What loads the result."""
        raise NotImplementedError

    def refusals_of(self, layer: ExportedLayer) -> list[str]:
        """What keeps a layer from being loaded, beyond what `tensors` finds out."""
        return []

    def refusals(self) -> list[str]:
        """What keeps the model as a whole from being loaded."""
        return self._split_layers() if self.fuses else []

    def common_refusals(self, layer: ExportedLayer) -> list[str]:
        """What holds for all formats."""
        if layer.is_head and not self.holds_head:
            return [
                f"it is the output embedding, which the engines that read {self.name} expect in "
                "floating point: quantize with quantize_lm_head=False, or write gptq or gguf"
            ]
        if layer.cols % layer.group_length != 0:
            return [
                f"groups of {layer.group_length} do not divide its {layer.cols} columns, and the "
                f"engines that read {self.name} have no shorter last group: quantize with a "
                "group_size that does"
            ]
        return []

    def one_scheme(self) -> list[str]:
        """For formats whose settings have one width and one group size for all layers."""
        problems = []
        widths = sorted({layer.bits for layer in self.model.layers})
        if len(widths) > 1:
            problems.append(
                f"layers have {' and '.join(map(str, widths))} bits, and {self.name} has one width "
                "for all: write compressed-tensors"
            )
        if self.model.group_size is None:
            sizes = sorted({layer.group_length for layer in self.model.layers})
            problems.append(
                f"layers have groups of {' and '.join(map(str, sizes))}, and {self.name} has one "
                "group_size for all: write compressed-tensors"
            )
        return problems

    def _split_layers(self) -> list[str]:
        """Layers that would be joined, and differ."""
        kinds: dict[str, dict[str, tuple[Any, ...]]] = {}
        for layer in self.model.layers:
            parent, _, last = layer.name.rpartition(".")
            kind = (layer.bits, layer.scheme.asym, layer.group_length)
            kinds.setdefault(parent, {})[last] = kind
        for name in self.model.floats:
            parent, _, last = name.rpartition(".")
            kinds.setdefault(parent, {})[last] = ()
        problems = []
        for parent, members in kinds.items():
            for fused in _FUSED:
                found = {last: kind for last, kind in members.items() if last in fused}
                if len(set(found.values())) > 1:
                    problems.append(
                        f"{parent}: {', '.join(sorted(found))} are joined by the engines that read "
                        f"{self.name}, and have different formats: quantize them alike"
                    )
        return problems


def to_torch(tensors: Mapping[str, NDArray[Any]]) -> dict[str, torch.Tensor]:
    """The core's tensors. numpy has no bfloat16 of its own: its bits arrive as integers."""
    return {
        name: torch.from_numpy(array.view("int16")).view(torch.bfloat16)
        if array.dtype == "uint16"
        else torch.from_numpy(array)
        for name, array in tensors.items()
    }
