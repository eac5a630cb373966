# SPDX-License-Identifier: Apache-2.0
"""Attention in bfloat16 by the core, in place of torch's: 2.7 times as fast on Zen 4 (2,048 tokens,
nine heads of 64; benchmarks/attention.py)."""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..core import native
from ..modules.torch_op import needs_dispatcher

__all__ = ["FastAttention"]

logger = logging.getLogger("woq")


class FastAttention(TorchFunctionMode):
    """Within it, what `scaled_dot_product_attention` would do in bfloat16 is done by the core where
    it can: without a mask other than the causal one, without dropout, without gradients. Torch does
    the rest."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            call = _Call(*args, **kwargs)
            obstacle = call.obstacle()
            if obstacle is None:
                return call.run()
            logger.debug("attention by torch: %s", obstacle)
        return func(*args, **kwargs)


@dataclasses.dataclass(eq=False)
class _Call:
    """The arguments of `scaled_dot_product_attention`: [batch, heads, tokens, head_dim]."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    attn_mask: torch.Tensor | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False

    def obstacle(self) -> str | None:
        """Why the core can't do it."""
        tensors = (self.query, self.key, self.value)
        if any(needs_dispatcher(x) or not x.is_cpu for x in tensors):
            return "torch has to see it"
        if not native.has_bf16_products():
            return "the CPU has no bfloat16 products"
        if not _in_bfloat16(tensors):
            return "not in bfloat16"
        if self.attn_mask is not None or self.dropout_p > 0:
            return "a mask or dropout"
        if any(x.dim() != 4 or not x.numel() for x in tensors):
            return "not [batch, heads, tokens, head_dim]"
        batch, heads, tokens, head_dim = self.query.shape
        kv_batch, kv_heads, keys, _ = self.key.shape
        if (
            self.value.shape != self.key.shape
            or (kv_batch, self.key.shape[3]) != (batch, head_dim)
            or (self.is_causal and keys != tokens)
            or heads % kv_heads
            or (heads != kv_heads and not self.enable_gqa)
        ):
            return "a shape that the core does not have"
        if head_dim % 2 or head_dim > native.MAX_HEAD_DIM:
            return "an odd or large head_dim"
        return None

    def run(self) -> torch.Tensor:
        batch, heads, tokens, head_dim = self.query.shape
        out = torch.empty(batch * tokens, heads * head_dim, dtype=torch.bfloat16)
        native.attention(
            _rows(self.query),
            _rows(self.key),
            _rows(self.value),
            out,
            batch=batch,
            heads=heads,
            kv_heads=self.key.shape[1],
            scale=1 / math.sqrt(head_dim) if self.scale is None else self.scale,
            causal=self.is_causal,
            num_threads=torch.get_num_threads(),
        )
        return out.view(batch, tokens, heads, head_dim).transpose(1, 2)


def _in_bfloat16(tensors: tuple[torch.Tensor, ...]) -> bool:
    """Whether torch would multiply in bfloat16; autocast leaves float64 alone."""
    if torch.is_autocast_enabled("cpu"):
        wide = any(x.dtype == torch.float64 for x in tensors)
        return torch.get_autocast_dtype("cpu") == torch.bfloat16 and not wide
    return all(x.dtype == torch.bfloat16 for x in tensors)


def _rows(x: torch.Tensor) -> torch.Tensor:
    """[batch, heads, tokens, head_dim] -> [batch * tokens, heads * head_dim] in bfloat16, in rows
    that the core reads: of adjacent elements, an even number of them apart."""
    rows = x.detach().bfloat16().transpose(1, 2).flatten(2).flatten(0, 1)
    stride, inner = rows.stride()
    return rows.contiguous() if inner != 1 or stride % 2 else rows
