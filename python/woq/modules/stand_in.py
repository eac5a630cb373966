# SPDX-License-Identifier: Apache-2.0
"""What `WeightOnlyLinear.weight` is: a tensor to ask for its dtype, not to compute with."""

from __future__ import annotations

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


class WeightStandIn(torch.Tensor):
    """Refuses to be computed with. It also keeps torch's fused transformer layers, which would read
    the weight and never call the layer, on their ordinary path: they look for tensors like this."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", str(func))
        if name not in _QUESTIONS:
            raise native.Unsupported(
                f"{name} was called on the weight of a WeightOnlyLinear, which exists packed only: "
                "call the layer, or take a float copy with layer.dequantize()"
            )
        return super().__torch_function__(func, types, args, kwargs or {})

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"WeightStandIn(shape={list(self.shape)}, dtype={self.dtype})"


def stand_in(shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """A stand-in of any shape in the memory of one element (NaN, should anyone get at it)."""
    values = torch.full((1,), torch.nan, dtype=dtype).expand(shape)
    if torch.compiler.is_compiling():
        return values  # a compiler that traces `layer.weight.dtype` knows plain tensors only
    tensor = values.as_subclass(WeightStandIn)
    transformers_private.keep_values(tensor)
    return tensor
