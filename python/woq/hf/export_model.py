# SPDX-License-Identifier: Apache-2.0
"""Which models `woq.export` takes, whatever the format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..core import transformers_private
from ..core.native import InvalidArgument, Unsupported, has_act_order
from ..formats.export.form import ExportedLayer
from ..modules.layer import WeightOnlyLinear
from ..modules.targets import is_linear, quantized_layers

__all__ = ["described", "exportable", "float_layers", "stored_names"]


def exportable(model: Any) -> dict[str, WeightOnlyLinear]:
    """The quantized layers of a model that can be a checkpoint of another library."""
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise InvalidArgument(f"expected a transformers model, got {type(model).__name__}")
    if transformers_private.has_adapters(model):
        raise InvalidArgument("adapters are attached: remove them before the model is exported")
    modules = quantized_layers(model)
    if not modules:
        raise InvalidArgument("nothing in the model is quantized: woq.quantize it first")
    transposed = [name for name, module in modules.items() if module.transposed]
    if transposed:
        raise Unsupported(
            f"{transposed[0]} and {len(transposed) - 1} more are Conv1D layers (as GPT-2's), which "
            "the engines that serve quantized checkpoints do not read: keep the model in woq's "
            "format (woq.save_pretrained)"
        )
    return modules


def float_layers(model: nn.Module) -> list[str]:
    """The linear layers in floating point."""
    return [
        name
        for name, module in model.named_modules()
        if is_linear(module) and not isinstance(module, WeightOnlyLinear)
    ]


def stored_names(
    stored: Mapping[str, tuple[torch.Tensor, tuple[Any, str] | None]],
) -> dict[WeightOnlyLinear, str]:
    """The names of the layers in a checkpoint, which may be others than in the model; `stored` is
    what saving.stored_state says."""
    names = {}
    for name, (_, source) in stored.items():
        if source is not None:
            layer, tensor = source
            names[layer] = name.removesuffix(f".{tensor}")
    return names


def described(name: str, module: WeightOnlyLinear, *, is_head: bool) -> ExportedLayer:
    act_order = module.has_g_idx and has_act_order(module.quantized())
    rows, cols = module.out_features, module.in_features
    return ExportedLayer(name, module.scheme, rows, cols, act_order, is_head)
