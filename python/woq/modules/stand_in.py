# SPDX-License-Identifier: Apache-2.0
"""What `WeightOnlyLinear.weight` is: a tensor to ask for its dtype, not to compute with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ..core import native, transformers_private

__all__ = ["WeightStandIn", "stand_in"]

# What may be done with a stand-in besides reading its properties (dtype, device, shape ...).
_QUESTIONS = frozenset(
    (
        "__get__",
        "__len__",
        "data_ptr",
        "detach",
        "dim",
        "element_size",
        "is_complex",
        "is_contiguous",
        "is_floating_point",
        "nelement",
        "numel",
        "requires_grad_",
        "size",
        "stride",
        "untyped_storage",
    )
)

_SET_REQUIRES_GRAD = torch.Tensor.requires_grad.__set__


class WeightStandIn(torch.Tensor):
    """Refuses to be computed with. It also keeps torch's fused transformer layers, which would read
    the weight and never call the layer, on their ordinary path: they look for tensors like this."""

    layer_name: str

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", str(func))
        layer = _layer_of(args)
        if name not in _QUESTIONS and func != _SET_REQUIRES_GRAD:
            advice = (
                "call the layer, or take a float copy with layer.dequantize(). To change the "
                "weights, as merging an adapter does, call model.dequantize() first"
            )
            if layer:
                advice += (
                    f". If the model's own code does this, quantize it with {_pattern(layer)!r} in "
                    "modules_to_not_convert: such layers have to stay in floating point"
                )
            raise native.Unsupported(
                f"{name} was called on the weight of {layer or 'a WeightOnlyLinear'}, which exists "
                f"packed only: {advice}"
            )
        result = super().__torch_function__(func, types, args, kwargs or {})
        if isinstance(result, WeightStandIn):
            result.layer_name = layer
        return result

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"WeightStandIn(shape={list(self.shape)}, dtype={self.dtype})"


def _layer_of(arguments: Iterable[Any]) -> str:
    """The name of the layer whose weight is among the arguments of a call, "" if it has none."""
    for value in arguments:
        if isinstance(value, WeightStandIn):
            return vars(value).get("layer_name", "")
        if isinstance(value, (tuple, list)):  # torch.cat's
            name = _layer_of(value)
            if name:
                return name
    return ""


def _pattern(name: str) -> str:
    """What means the layer and its like in all blocks: the end of its name."""
    return name.rpartition(".")[2]


def stand_in(shape: tuple[int, int], dtype: torch.dtype, name: str = "") -> torch.Tensor:
    """A stand-in of any shape in the memory of one element (NaN, should anyone get at it). `name`
    is its layer's."""
    values = torch.full((1,), torch.nan, dtype=dtype).expand(shape)
    if torch.compiler.is_compiling():
        return values  # a compiler that traces `layer.weight.dtype` knows plain tensors only
    tensor = values.as_subclass(WeightStandIn)
    tensor.layer_name = name
    transformers_private.keep_values(tensor)
    return tensor
