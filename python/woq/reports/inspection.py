# SPDX-License-Identifier: Apache-2.0
"""What a model in memory consists of: the format, size and kernel of each of its layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..modules.embedding import WeightOnlyEmbedding
from ..modules.layer import WeightOnlyLinear
from ..modules.targets import is_transposed

__all__ = ["LayerFacts", "layer_facts", "model_bytes"]


@dataclasses.dataclass(frozen=True)
class LayerFacts:
    """One linear layer or embedding."""

    name: str
    is_linear: bool
    quantized: bool
    weight_dtype: str
    shape: tuple[int, int]  # [out_features, in_features]; of an embedding [tokens, features]
    nbytes: int  # in memory, with the bias
    group_size: int | None = None  # None: in floating point
    scheme: str | None = None
    scale_dtype: str | None = None
    compute_dtype: str | None = None
    kernel: str | None = None
    reason: str | None = None  # why that kernel


def layer_facts(model: nn.Module) -> list[LayerFacts]:
    """Quantized layers, and the float ones of the kinds that could be; in the model's order.

    A weight that two modules share is listed, and counted, under the first; a quantized one under
    the head, which computes with it.
    """
    return list(_facts(model))


def _facts(model: nn.Module) -> Iterator[LayerFacts]:
    seen: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, WeightOnlyEmbedding):
            # The head that it may share its weight with comes later: it is listed there.
            if not module.layer.tied:
                entry = _quantized(name, module.layer)
                yield dataclasses.replace(entry, is_linear=False, kernel=None, reason=None)
        elif isinstance(module, WeightOnlyLinear):
            yield _quantized(name, module)
        elif is_transposed(module) is not None or isinstance(module, nn.Embedding):
            weight = module.weight
            if weight.data_ptr() in seen:
                continue
            seen.add(weight.data_ptr())
            shape = tuple(weight.shape)
            yield LayerFacts(
                name=name,
                is_linear=not isinstance(module, nn.Embedding),
                quantized=False,
                weight_dtype=str(weight.dtype).removeprefix("torch."),
                shape=shape[::-1] if is_transposed(module) else shape,
                nbytes=sum(_nbytes(each) for each in module.parameters(recurse=False)),
            )


def _quantized(name: str, layer: WeightOnlyLinear) -> LayerFacts:
    scheme, chosen = layer.scheme, layer.explain()
    return LayerFacts(
        name=name,
        is_linear=True,
        quantized=True,
        weight_dtype=scheme.dtype,
        shape=(layer.out_features, layer.in_features),
        nbytes=layer.nbytes,
        group_size=scheme.group_size,
        scheme=scheme.word,
        scale_dtype="8-bit" if scheme.scales == "double" else scheme.scales,
        compute_dtype=layer.computes_in,
        kernel=chosen["kernel"],
        reason=chosen["reason"],
    )


def model_bytes(model: nn.Module) -> int:
    """Bytes of all weights as they are in memory; shared ones once."""
    seen: dict[int, int] = {}
    for module in model.modules():
        if isinstance(module, (WeightOnlyLinear, WeightOnlyEmbedding)):
            seen[id(module)] = module.nbytes
            continue
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            seen[tensor.data_ptr()] = _nbytes(tensor)
    return sum(seen.values())


def _nbytes(tensor: Any) -> int:
    return int(tensor.numel() * tensor.element_size()) if isinstance(tensor, torch.Tensor) else 0
