# SPDX-License-Identifier: Apache-2.0
"""`WeightOnlyEmbedding`: an embedding whose weight lives in the packed form of the CPU's kernel.

Rows are gathered and dequantized from the packed weight of a `WeightOnlyLinear`. Where the model's
output embedding is tied to this one, that is the head itself: one matrix in memory and in a
checkpoint. Otherwise it is a layer that nothing multiplies with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..core import native, transformers_private
from .layer import WeightOnlyLinear
from .stand_in import stand_in
from .torch_op import gather, needs_dispatcher

__all__ = ["Scale", "WeightOnlyEmbedding", "quantized_embeddings", "scale_of"]

# Of BART's and Gemma's embeddings and their like: what rows are multiplied by.
_SCALED = "ScaledWordEmbedding"


class Scale:
    """What the rows of an embedding are multiplied by.

    Gemma's number is rounded to the dtype of the rows first; BART's is not.
    """

    def __init__(self, value: float, *, rounded: bool) -> None:
        self.value, self.rounded = value, rounded

    def times(self, rows: torch.Tensor) -> torch.Tensor:
        # By way of float32, in which Gemma holds it.
        return rows * (torch.tensor(self.value).to(rows.dtype) if self.rounded else self.value)


def scale_of(module: nn.Embedding) -> Scale | None:
    """What `module` multiplies its rows by; None: nothing.

    Raises:
        Unsupported: it computes something that woq does not know.
    """
    kind = type(module)
    if module.max_norm is not None:
        raise native.Unsupported("it normalises the rows of its weight (max_norm)")
    if kind.forward is nn.Embedding.forward:
        return None
    if not kind.__name__.endswith(_SCALED):
        raise native.Unsupported(f"{kind.__name__} may compute something else than an embedding")
    value = getattr(module, "embed_scale", None)
    if isinstance(value, torch.Tensor):
        # The buffer has no value yet on the device on which a model is built.
        return Scale(float(getattr(module, "scalar_embed_scale", value)), rounded=True)
    return None if value is None else Scale(float(value), rounded=False)


class WeightOnlyEmbedding(nn.Embedding):
    """An embedding with a quantized weight, on the CPU.

    Args:
        layer: holds the packed weight [num_embeddings, embedding_dim]. A head that is `tied` leaves
            its tensors in a state dict to the embedding.
        module: the float embedding that this one stands for.
        scale: what its rows are multiplied by.
    """

    def __init__(
        self, layer: WeightOnlyLinear, module: nn.Embedding, scale: Scale | None = None
    ) -> None:
        nn.Module.__init__(self)  # nn.Embedding's would make a float weight
        self.num_embeddings, self.embedding_dim = layer.out_features, layer.in_features
        self.padding_idx = module.padding_idx
        self.max_norm, self.norm_type = None, 2.0
        self.scale_grad_by_freq = self.sparse = False
        self.scale = scale
        self.float_class: type[nn.Embedding] = type(module)
        # Not a child: a tied head is one already, elsewhere.
        object.__setattr__(self, "layer", layer)

    layer: WeightOnlyLinear

    @property
    def name(self) -> str:
        return self.layer.name

    @property
    def weight(self) -> torch.Tensor:
        """A stand-in with the shape, dtype and device of the float weight, and without its values,
        as `WeightOnlyLinear.weight`."""
        shape = (self.num_embeddings, self.embedding_dim)
        return stand_in(shape, self.layer._dtype, self.name)

    @property
    def embed_scale(self) -> float | None:
        """By the name that transformers has for it."""
        return None if self.scale is None else self.scale.value

    @property
    def nbytes(self) -> int:
        """Bytes of memory of its own: none where a tied head has them."""
        return 0 if self.layer.tied else self.layer.nbytes

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        layer = self.layer
        if needs_dispatcher(input):
            rows = torch.ops.woq.embedding(
                input, layer._handle, self.embedding_dim, self.weight.dtype
            )
        else:
            rows = gather(layer._core, input, self.weight.dtype, self.name)
        return rows if self.scale is None else self.scale.times(rows)

    def quantized(self) -> native.QuantizedMatrix:
        """The canonical form of the weight, unpacked anew at each call."""
        return self.layer.quantized()

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The float weight that this embedding stands for, [num_embeddings, embedding_dim]."""
        return self.layer.dequantize(dtype)

    def float_module(self, weight: nn.Parameter) -> nn.Embedding:
        """The embedding that this one was made from, with `weight`."""
        module: nn.Embedding = object.__new__(self.float_class)
        nn.Embedding.__init__(
            module, *weight.shape, padding_idx=self.padding_idx, _weight=weight.detach()
        )
        module.weight = weight
        if self.scale is not None and self.scale.rounded:
            module.scalar_embed_scale = self.scale.value  # type: ignore[assignment]
            scale = torch.tensor(self.scale.value)
            module.register_buffer("embed_scale", scale, persistent=False)
        elif self.scale is not None:
            module.embed_scale = self.scale.value  # type: ignore[assignment]
        transformers_private.keep_values(module)
        return module.train(self.training)

    def extra_repr(self) -> str:
        scheme = self.layer.scheme
        shared = ", shared with the output embedding" if self.layer.tied else ""
        return (
            f"{self.num_embeddings}, {self.embedding_dim}, dtype={scheme.dtype}, "
            f"group_size={scheme.group_size}{shared}"
        )

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        self.layer.save_tensors(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        self.layer.load_tensors(state_dict, prefix, *args)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.layer._apply(fn)
        return self


def quantized_embeddings(model: nn.Module) -> dict[str, WeightOnlyEmbedding]:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, WeightOnlyEmbedding)
    }
