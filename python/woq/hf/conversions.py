# SPDX-License-Identifier: Apache-2.0
"""Keeps transformers from joining and splitting the tensors of quantized layers when it saves.

Some checkpoints have one tensor where the model has several (q, k and v of NomicBERT, gte, jina;
Dinov2's gate and up) or the other way round. transformers splits and joins them when it loads, and
undoes that when it saves. Quantized layers are saved under the names that they have in the model:
layers of different formats cannot be joined, codes cannot be permuted, and tensors that are made by
joining others would all have to be in memory. A loader takes a tensor by either name.
"""

from __future__ import annotations

from typing import Any

from ..core import transformers_private
from ..core.native import Unsupported
from ..modules.deferred_state import deferred_state
from ..modules.embedding import quantized_embeddings
from ..modules.targets import quantized_layers

__all__ = ["restore_conversions", "spare_quantized_layers"]

# On the model: the conversions that it had before some were dropped.
_BEFORE = "_woq_conversions"


def spare_quantized_layers(model: Any) -> None:
    """Drop the conversions of `model` that would change tensors of quantized layers.

    Floats that they would have changed as well are then saved under their names in the model, too:
    a float v_proj beside quantized q and k.

    Raises:
        Unsupported: on loading, the conversion would be applied to a tensor that was saved without
            it: both of its sides have the same names.
    """
    conversions = transformers_private.weight_conversions(model)
    layers = quantized_layers(model).keys() | quantized_embeddings(model).keys()
    if not conversions or not layers:
        return
    with deferred_state():
        keys = list(model.state_dict())
    kept = []
    for conversion in conversions:
        changed = transformers_private.changed_on_saving(conversion, keys)
        touched = [key for key in changed if key.rpartition(".")[0] in layers]
        if not touched:
            kept.append(conversion)
            continue
        again = transformers_private.changed_on_loading(conversion, changed)
        if again:
            raise Unsupported(
                f"{touched[0].rpartition('.')[0]} cannot be saved quantized: transformers would "
                f"convert {again[0]} when it loads the checkpoint. Leave such layers in floating "
                "point (modules_to_not_convert)"
            )
    if len(kept) < len(conversions):
        if not hasattr(model, _BEFORE):
            setattr(model, _BEFORE, conversions)
        transformers_private.set_weight_conversions(model, kept)


def restore_conversions(model: Any) -> None:
    """Undo `spare_quantized_layers`: the model has no quantized layers any more."""
    if hasattr(model, _BEFORE):
        transformers_private.set_weight_conversions(model, getattr(model, _BEFORE))
        delattr(model, _BEFORE)
