# SPDX-License-Identifier: Apache-2.0
"""Mixtures of experts with a linear layer for each matrix of each expert.

transformers 5 keeps the weights of all experts of a layer in one parameter [experts, rows, cols],
which is multiplied without a module that could be quantized. `SplitExperts` takes the place of such
a module: its layers are found, stored and packed like any others, under the names
`<experts>.gate_up_proj.<expert>` and `<experts>.down_proj.<expert>`, or with `gate_proj` and
`up_proj` apart. `ListedExperts` has other libraries' names, `<experts>.<expert>.gate_proj`, and is
there while such a checkpoint is loaded: saved under these names, transformers would stack them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import nn

__all__ = [
    "LISTED_NAMES",
    "PRODUCTS",
    "FusedExperts",
    "ListedExperts",
    "SplitExperts",
    "fused_experts",
    "linear_experts",
]

# The two products of an expert; a gate is between them.
PRODUCTS = ("gate_up_proj", "down_proj")
# Names of gate, up and down in an expert of its own: Qwen's and most others', Mixtral's.
LISTED_NAMES = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))


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
        return self.apart(*x.chunk(2, dim=-1))

    def apart(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.activation(gate) * up
        return result


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

    @property
    def can_be_apart(self) -> bool:
        """Whether gate and up are one behind the other, and so two matrices."""
        return isinstance(self.gate, _Gated) and not self.has_bias

    @property
    def shapes_apart(self) -> dict[str, tuple[int, int]]:
        width, inner = self.shapes["down_proj"]
        return {"gate_proj": (inner, width), "up_proj": (inner, width), "down_proj": (width, inner)}


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


def linear_experts(fused: FusedExperts, *, apart: bool = False) -> SplitExperts:
    """Experts whose layers have float weights without values, on the meta device; `apart`: gate and
    up are two layers."""
    shapes = fused.shapes_apart if apart else fused.shapes
    layers = {
        name: [_linear(fused, shape) for _ in range(fused.count)] for name, shape in shapes.items()
    }
    return SplitExperts(layers, fused.gate)


def _linear(fused: FusedExperts, shape: tuple[int, int]) -> nn.Module:
    with torch.device("meta"):
        return nn.Linear(shape[1], shape[0], bias=fused.has_bias, dtype=fused.dtype)


class SplitExperts(nn.Module):
    """What a module of fused experts computes, by a layer for each matrix.

    Args:
        layers: of each product, those of all experts: gate_up_proj, or gate_proj and up_proj; and
            down_proj.
        gate: what is between the products.
    """

    def __init__(self, layers: dict[str, list[nn.Module]], gate: nn.Module) -> None:
        super().__init__()
        for name, each in layers.items():
            self.add_module(name, nn.ModuleList(each))
        self.gate = gate
        self.num_experts = len(layers["down_proj"])
        self._apart = "gate_proj" in layers

    def forward(
        self, hidden_states: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        def expert(number: int, x: torch.Tensor) -> torch.Tensor:
            if self._apart:
                between = self.gate.apart(self.gate_proj[number](x), self.up_proj[number](x))
            else:
                between = self.gate(self.gate_up_proj[number](x))
            out: torch.Tensor = self.down_proj[number](between)
            return out

        return _mixed(expert, self.num_experts, hidden_states, experts, weights)


class ListedExperts(nn.ModuleList):
    """Experts while they are loaded under other libraries' names; does not compute.

    Args:
        fused: what they are in the model.
        names: of gate, up and down in the checkpoint.
    """

    def __init__(self, fused: FusedExperts, names: tuple[str, str, str]) -> None:
        shapes = fused.shapes_apart.values()
        super().__init__(
            nn.ModuleDict(
                {name: _linear(fused, shape) for name, shape in zip(names, shapes, strict=True)}
            )
            for _ in range(fused.count)
        )
        self.fused, self.names = fused, names

    def split(self) -> SplitExperts:
        """The same layers, to compute with."""
        layers = {
            product: [expert[name] for expert in self]  # type: ignore[index]
            for product, name in zip(self.fused.shapes_apart, self.names, strict=True)
        }
        return SplitExperts(layers, self.fused.gate)


def _mixed(
    expert: Callable[[int, torch.Tensor], torch.Tensor],
    count: int,
    hidden_states: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """The weighted sum of what the experts make of each row.

    Args:
        expert: the function of one of the `count` experts.
        hidden_states: [rows, features]
        experts: of each row, int64 [rows, k]; numbers beyond the last one mean none.
        weights: of their outputs in the sum, [rows, k].
    """
    result = torch.zeros_like(hidden_states)
    chosen = experts.flatten()
    # Each expert multiplies all of its rows at once: those are the places of its number.
    order = chosen.argsort(stable=True)
    counts = chosen.bincount(minlength=count)[:count].tolist()
    start = 0
    for number, rows_of_it in enumerate(counts):
        places = order[start : start + rows_of_it]
        start += rows_of_it
        if rows_of_it == 0:
            continue
        rows = places // experts.shape[-1]
        out = expert(number, hidden_states[rows]) * weights.flatten()[places, None]
        result.index_add_(0, rows, out.to(result.dtype))
    return result
