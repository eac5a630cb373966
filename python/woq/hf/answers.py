# SPDX-License-Identifier: Apache-2.0
"""Methods that a quantized model answers in place of its class: its size, and resizing.

transformers sums up parameters and buffers, and packed weights are neither. Its methods cannot be
told of them, so a model gets functions of its own; it loses them when it is dequantized.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import nn

from ..core.native import Unsupported
from ..modules.embedding import WeightOnlyEmbedding
from ..modules.targets import embedding_layers, output_embeddings, quantized_layers

__all__ = ["answer_for", "stop_answering_for"]


def _get_memory_footprint(model: Any, *args: Any, **kwargs: Any) -> int:
    layers = [*quantized_layers(model).values(), *embedding_layers(model)]
    packed = sum(layer.nbytes for layer in layers)
    return int(type(model).get_memory_footprint(model, *args, **kwargs)) + packed


def _num_parameters(model: Any, only_trainable: bool = False, *args: Any, **kwargs: Any) -> int:
    count = int(type(model).num_parameters(model, only_trainable, *args, **kwargs))
    if only_trainable:
        return count
    for layer in [*quantized_layers(model).values(), *embedding_layers(model)]:
        count += layer.in_features * layer.out_features
        count += 0 if layer.bias is None else layer.bias.numel()
    return count


def _resize_token_embeddings(
    model: Any,
    new_num_tokens: int | None = None,
    pad_to_multiple_of: int | None = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    layers = quantized_layers(model)
    heads = [name for name in output_embeddings(model) if name in layers]
    embedding = model.get_input_embeddings()
    if isinstance(embedding, WeightOnlyEmbedding) and not heads:
        heads = [embedding.name]
    if heads:
        # Before anything is done: transformers resizes the input embedding first.
        have = embedding.weight.shape[0]
        wanted = have if new_num_tokens is None else new_num_tokens
        if pad_to_multiple_of is not None:
            wanted = -(-wanted // pad_to_multiple_of) * pad_to_multiple_of
        if wanted != have:
            raise Unsupported(
                f"resize_token_embeddings from {have} to {wanted} tokens: {heads[0]} is quantized, "
                "and a quantized layer keeps its size. Resize the float model and quantize it "
                "then, or leave the embeddings in floating point (quantize_lm_head=False, "
                "quantize_embedding=False)"
            )
    return type(model).resize_token_embeddings(
        model, new_num_tokens, pad_to_multiple_of, *args, **kwargs
    )


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "get_memory_footprint": _get_memory_footprint,
    "num_parameters": _num_parameters,
    "resize_token_embeddings": _resize_token_embeddings,
}


class _Method:
    """A function bound to one model. The reference is weak: a model that referred to itself would
    stay in memory until Python looks for circles."""

    def __init__(self, model: nn.Module, name: str) -> None:
        self.__doc__ = getattr(type(model), name).__doc__
        self._model = weakref.ref(model)
        self._name = name

    def _bound_to(self) -> nn.Module:
        model = self._model()
        if model is None:
            raise ReferenceError(f"the model that this {self._name} belongs to is gone")
        return model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _FUNCTIONS[self._name](self._bound_to(), *args, **kwargs)

    # copy.deepcopy and pickle, too, bind it to the new model: both know it by now.
    def __reduce__(self) -> tuple[Any, ...]:
        return _Method, (self._bound_to(), self._name)


def answer_for(model: nn.Module) -> None:
    """Give a transformers model, and those in it, the methods of a quantized one."""
    for module in model.modules():
        for name in _FUNCTIONS:
            if hasattr(type(module), name):
                setattr(module, name, _Method(module, name))


def stop_answering_for(model: nn.Module) -> None:
    for module in model.modules():
        for name in _FUNCTIONS:
            if isinstance(module.__dict__.get(name), _Method):
                delattr(module, name)
