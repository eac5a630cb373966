# SPDX-License-Identifier: Apache-2.0
"""A seeded permutation of a Llama's channels that changes no output.

The model under test comes from a file that was quantized already: its groups lie on 4-bit
grids, and a quantizer with the same grid would look better than it is. After the permutation no
group holds the weights of a group of the file. (Within the attention heads only V and O can be
permuted, and by head, so o_proj keeps groups of up to 64 weights of the same head.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["permute_channels"]


@torch.no_grad()
def permute_channels(model: Any, seed: int = 0) -> None:
    """Permute, in place, the residual channels (one order for the whole model), the inner channels
    of each MLP, and the V and O channels of each key-value head.

    Raises:
        SystemExit: not a model of Llama's shape.
    """
    body = getattr(model, "model", None)
    blocks = getattr(body, "layers", None)
    if blocks is None or not all(hasattr(block.mlp, "gate_proj") for block in blocks):
        raise SystemExit(f"{type(model).__name__} is not of Llama's shape: use --no-permutation")
    generator = torch.Generator().manual_seed(seed)
    residual = _order(model.config.hidden_size, generator)
    head = model.get_output_embeddings()
    tied = head.weight is body.embed_tokens.weight
    _reorder(body.embed_tokens, columns=residual)
    if tied:
        head.weight = body.embed_tokens.weight
    else:
        _reorder(head, columns=residual)
    for block in blocks:
        attention, mlp = block.self_attn, block.mlp
        for norm in block.children():
            if getattr(norm, "weight", None) is not None:  # two; Gemma 3 has four
                _reorder(norm, rows=residual)
        inner = _order(mlp.gate_proj.out_features, generator)
        _reorder(mlp.gate_proj, rows=inner, columns=residual)
        _reorder(mlp.up_proj, rows=inner, columns=residual)
        _reorder(mlp.down_proj, rows=residual, columns=inner)
        values, outputs = _head_orders(model.config, attention, generator)
        _reorder(attention.q_proj, columns=residual)
        _reorder(attention.k_proj, columns=residual)
        _reorder(attention.v_proj, rows=values, columns=residual)
        _reorder(attention.o_proj, rows=residual, columns=outputs)
    _reorder(body.norm, rows=residual)


def _head_orders(
    config: Any, attention: Any, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of v_proj, and the columns of o_proj that fit: several query heads share a KV head."""
    heads, shared = config.num_attention_heads, config.num_key_value_heads
    size = attention.v_proj.out_features // shared
    orders = [_order(size, generator) for _ in range(shared)]
    values = torch.cat([number * size + order for number, order in enumerate(orders)])
    per_value = heads // shared
    outputs = torch.cat([head * size + orders[head // per_value] for head in range(heads)])
    return values, outputs


def _order(size: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randperm(size, generator=generator)


def _reorder(
    module: nn.Module, rows: torch.Tensor | None = None, columns: torch.Tensor | None = None
) -> None:
    weight = module.weight.data
    if rows is not None:
        weight = weight[rows]
        if getattr(module, "bias", None) is not None:
            module.bias.data = module.bias.data[rows].contiguous()
    if columns is not None:
        weight = weight[:, columns]
    module.weight.data = weight.contiguous()
