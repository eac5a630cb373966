# SPDX-License-Identifier: Apache-2.0
"""Mixtures of experts with a linear layer for each matrix of each expert.

transformers 5 keeps the weights of all experts of a layer in one parameter [experts, rows, cols],
which is multiplied without a module that could be quantized. `SplitExperts` takes the place of such
a module: its layers are found, stored and packed like any others, under the names
`<experts>.gate_up_proj.<expert>` and `<experts>.down_proj.<expert>`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import nn

__all__ = ["PRODUCTS", "FusedExperts", "SplitExperts", "fused_experts", "linear_experts"]

# The two products of an expert; a gate is between them.
PRODUCTS = ("gate_up_proj", "down_proj")


class _ClampedSwiglu(nn.Module):
    """gpt-oss's: columns of gate and up alternate, both are clamped, and up is 1 larger."""

    def __init__(self, alpha: float, limit: float) -> None:
        super().__init__()
        self.alpha, self.limit = alpha, limit

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = x[..., 0::2].clamp(max=self.limit)
        up = x[..., 1::2].clamp(-self.limit, self.limit)
        return (up + 1) * (gate * torch.sigmoid(gate * self.alpha))


class _Gated(nn.Module):
    """Mixtral's and Qwen's: the columns of up behind those of gate."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = x.chunk(2, dim=-1)
        return self.activation(gate) * up


@dataclasses.dataclass(frozen=True)
class _Family:
    """What classes of fused experts have in common."""

    transposed: bool  # weights are [experts, in_features, out_features]
    gate: Callable[[nn.Module], nn.Module]


_GATED = _Family(False, lambda module: _Gated(module.act_fn))  # type: ignore[arg-type]
# By the class's name, so that transformers need not be imported. All are called with the rows, the
# experts of each row, and their weights.
_FAMILIES = {
    "GptOssExperts": _Family(True, lambda module: _ClampedSwiglu(module.alpha, module.limit)),  # type: ignore[arg-type]
    "MixtralExperts": _GATED,
    "Qwen2MoeExperts": _GATED,
    "Qwen3MoeExperts": _GATED,
}


@dataclasses.dataclass(frozen=True)
class FusedExperts:
    """What a module of fused experts consists of."""

    count: int
    shapes: dict[str, tuple[int, int]]  # of a product: (out_features, in_features)
    has_bias: bool
    dtype: torch.dtype
    gate: nn.Module


def fused_experts(module: nn.Module) -> FusedExperts | None:
    """None for a module that is no fused experts, or of a class that is not known."""
    family = _FAMILIES.get(type(module).__name__)
    weights = [module._parameters.get(name) for name in PRODUCTS]
    if family is None or any(weight is None or weight.dim() != 3 for weight in weights):
        return None
    shapes = {}
    for name, weight in zip(PRODUCTS, weights, strict=True):
        rows, cols = weight.shape[1:]  # type: ignore[union-attr]
        shapes[name] = (cols, rows) if family.transposed else (rows, cols)
    first = weights[0]
    assert first is not None
    has_bias = module._parameters.get(f"{PRODUCTS[0]}_bias") is not None
    return FusedExperts(first.shape[0], shapes, has_bias, first.dtype, family.gate(module))


def linear_experts(fused: FusedExperts) -> SplitExperts:
    """Experts whose layers have float weights without values, on the meta device."""
    with torch.device("meta"):
        layers = {
            name: [
                nn.Linear(cols, rows, bias=fused.has_bias, dtype=fused.dtype)
                for _ in range(fused.count)
            ]
            for name, (rows, cols) in fused.shapes.items()
        }
    return SplitExperts(layers, fused.gate)


class SplitExperts(nn.Module):
    """What a module of fused experts computes, by a layer for each matrix.

    Args:
        layers: of each product, those of all experts.
        gate: what is between the two products.
    """

    def __init__(self, layers: dict[str, list[nn.Module]], gate: nn.Module) -> None:
        super().__init__()
        self.gate_up_proj = nn.ModuleList(layers["gate_up_proj"])
        self.down_proj = nn.ModuleList(layers["down_proj"])
        self.gate = gate
        self.num_experts = len(self.down_proj)

    def forward(
        self, hidden_states: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """
        Args:
            hidden_states: [rows, features]
            experts: of each row, int64 [rows, k]; numbers beyond the last one mean none.
            weights: of their outputs in the sum, [rows, k].
        """
        result = torch.zeros_like(hidden_states)
        chosen = experts.flatten()
        # Each expert multiplies all of its rows at once: those are the places of its number.
        order = chosen.argsort(stable=True)
        counts = chosen.bincount(minlength=self.num_experts)[: self.num_experts].tolist()
        start = 0
        for expert, count in enumerate(counts):
            places = order[start : start + count]
            start += count
            if count == 0:
                continue
            rows = places // experts.shape[-1]
            between = self.gate(self.gate_up_proj[expert](hidden_states[rows]))
            out = self.down_proj[expert](between) * weights.flatten()[places, None]
            result.index_add_(0, rows, out.to(result.dtype))
        return result
