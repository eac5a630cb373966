# SPDX-License-Identifier: Apache-2.0
"""Whether the input embedding of a model is quantized, and with which head it shares its weight.

As for linear layers, one rule for `woq.quantize`, for loading and for reading a checkpoint back.
"""

from __future__ import annotations

import dataclasses

from torch import nn

from ..config.quant_config import WeightOnlyQuantConfig
from ..core import native
from .embedding import Scale, WeightOnlyEmbedding, scale_of
from .layer import WeightOnlyLinear
from .targets import (
    Target,
    input_embedding,
    matches,
    output_embeddings,
    quantized_layers,
    scheme_for,
    select,
    skip_patterns,
    tied_groups,
)

__all__ = ["EmbeddingTarget", "asked_for", "embedding_target", "settled", "share_with_head"]


@dataclasses.dataclass(frozen=True)
class EmbeddingTarget(Target):
    """An embedding to quantize."""

    head: str | None = None  # the output embedding whose packed weight it shares
    scale: Scale | None = None

    def module_of(self, layer: WeightOnlyLinear) -> WeightOnlyEmbedding:
        """The quantized embedding whose weight `layer` has."""
        assert isinstance(self.module, nn.Embedding)
        return WeightOnlyEmbedding(layer, self.module, self.scale)


def embedding_target(model: nn.Module, config: WeightOnlyQuantConfig) -> EmbeddingTarget | None:
    """The embedding that `config` has quantized; None: none, or it is already.

    Raises:
        InvalidArgument: the embedding and a head that is tied to it would need different formats.
        Unsupported: the embedding computes something that woq does not know, or is the weight of
            other modules, too.
    """
    if not config.quantize_embedding:
        return None
    module = input_embedding(model)
    if isinstance(module, WeightOnlyEmbedding):
        return None
    name = next((name for name, each in model.named_modules() if each is module), "")
    if not isinstance(module, nn.Embedding) or not name:
        if config.quantize_embedding == "tied":
            return None
        raise native.Unsupported(
            f"quantize_embedding: {type(model).__name__} names no nn.Embedding as its input "
            "embedding; leave it out"
        )
    if matches(name, skip_patterns(model, config)):
        return None
    try:
        return _target(model, config, name, module)
    except native.Unsupported:
        if config.quantize_embedding == "tied":
            return None  # asked for where it can be
        raise


def _target(
    model: nn.Module, config: WeightOnlyQuantConfig, name: str, module: nn.Embedding
) -> EmbeddingTarget | None:
    others = tied_groups(model).get(name, frozenset()) - {name}
    heads = others & set(output_embeddings(model))
    try:
        scale = scale_of(module)
    except native.Unsupported as error:
        raise native.Unsupported(f"quantize_embedding: {name}: {error}; leave it out") from None
    if others - heads:
        raise native.Unsupported(
            f"quantize_embedding: the weight of {name} is also that of "
            f"{', '.join(sorted(others - heads))}, and stays in floating point; leave it out"
        )
    if not heads:
        if config.quantize_embedding == "tied":
            return None
        own = scheme_for(config, name, embedding=True)
        return (
            None if own is None else EmbeddingTarget(name, module, own, False, False, scale=scale)
        )
    head = next((target for target in select(model, config) if target.name in heads), None)
    if head is None:
        if config.quantize_embedding == "tied":
            return None
        raise native.InvalidArgument(
            f"quantize_embedding: {name} and {min(heads)} have one weight, and the output "
            "embedding is to stay in floating point: set quantize_lm_head, too"
        )
    if head.module.bias is not None:
        raise native.Unsupported(
            f"quantize_embedding: {head.name}, whose weight {name} has, adds a bias; leave it out"
        )
    asked = config.quantize_embedding
    if isinstance(asked, str) and asked not in ("tied", head.scheme.dtype):
        raise native.InvalidArgument(
            f"quantize_embedding is {asked!r}, but {name} and {head.name} have one weight, which "
            f"is to be {head.scheme.dtype!r}: set quantize_embedding=True, or "
            f"quantize_lm_head={asked!r}"
        )
    return EmbeddingTarget(
        name, module, head.scheme, False, True, head.importance, head=head.name, scale=scale
    )


def settled(config: WeightOnlyQuantConfig, target: EmbeddingTarget | None) -> bool | str:
    """What `quantize_embedding` is to say of a model for which it came to `target`."""
    return False if target is None else asked_for(target.scheme.dtype, config)


def asked_for(dtype: str, config: WeightOnlyQuantConfig) -> bool | str:
    """How `quantize_embedding` asks for `dtype`. A model without the head, which is read from the
    same checkpoint, has nothing else to tell it."""
    return True if dtype == config.weight_dtype else dtype


def share_with_head(model: nn.Module, target: EmbeddingTarget) -> WeightOnlyEmbedding:
    """The quantized embedding with the weight of its head, which is quantized."""
    assert target.head is not None
    layer = quantized_layers(model)[target.head]
    layer.tied = True
    return target.module_of(layer)
