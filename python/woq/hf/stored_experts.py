# SPDX-License-Identifier: Apache-2.0
"""Which experts of a model its checkpoint has as layers of their own, and under which names."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from ..formats.checkpoint import read_header
from ..modules.experts import (
    LISTED_NAMES,
    PRODUCTS,
    ListedExperts,
    fused_experts,
    linear_experts,
)
from ..modules.layer import WeightOnlyLinear
from ..quantizing.quantize import replace_module

__all__ = [
    "regroup_listed_experts",
    "split_experts",
    "split_experts_of_files",
    "stored_names",
]


def stored_names(model: Any, name: str) -> list[str]:
    """The names that module `name` of `model` may have in a checkpoint: of the model with a head in
    one without, and the reverse; and Mixtral's, which transformers renames."""
    prefix = f"{model.base_model_prefix}."
    names = [name, prefix + name, name.removeprefix(prefix)]
    return names + [each.replace(".mlp.", ".block_sparse_moe.") for each in names]


def regroup_listed_experts(model: Any) -> None:
    """Make experts that were loaded under other libraries' names ones that compute."""
    listed = [(n, m) for n, m in model.named_modules() if isinstance(m, ListedExperts)]
    for name, experts in listed:
        split = experts.split()
        for at, layer in split.named_modules():
            if isinstance(layer, WeightOnlyLinear):
                layer.name = f"{name}.{at}"
        replace_module(model, name, split)


def split_experts(model: Any, layers: Collection[str]) -> None:
    """Give `model` (on the meta device) modules for the matrices of those fused experts that
    `layers`, names in a checkpoint, has one by one."""
    for name, module in list(model.named_modules()):
        fused = fused_experts(module)
        if fused is None:
            continue
        for at in stored_names(model, name):
            apart = fused.can_be_apart
            names = next((each for each in LISTED_NAMES if f"{at}.0.{each[0]}" in layers), None)
            if f"{at}.{PRODUCTS[0]}.0" in layers:
                replace_module(model, name, linear_experts(fused))
            elif apart and f"{at}.gate_proj.0" in layers:
                replace_module(model, name, linear_experts(fused, apart=True))
            elif apart and names is not None:
                replace_module(model, name, ListedExperts(fused, names))
            else:
                continue
            break


def split_experts_of_files(model: Any, files: Sequence[str]) -> None:
    """`split_experts` for the layers that woq has saved in `files`: those that are quantized, and
    those of split experts, whose names end in a number. Float experts under other libraries' names
    are left to transformers, which saves those of some models so and stacks them again."""
    if all(fused_experts(module) is None for module in model.modules()):
        return
    headers = [read_header(file) for file in files if file.endswith(".safetensors")]
    layers = set()
    for header in headers:
        for key in header.tensors:
            layer, _, tensor = key.rpartition(".")
            if tensor == "qweight" or layer.rpartition(".")[2].isdigit():
                layers.add(layer)
    split_experts(model, layers)
