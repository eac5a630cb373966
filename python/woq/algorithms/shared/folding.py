# SPDX-License-Identifier: Apache-2.0
"""Where multipliers of a layer's input can go into what makes that input: a norm's weight, or the
rows of a linear layer before it (AWQ, arXiv:2306.00978, section 3.2).

No table of architectures says so. The block is run with the output of a candidate doubled in some
channels, and the inputs of the layers halved there. Powers of two round nothing, so the block's
output has the same bits if, and but for accidents only if, the candidate's channels reach these
layers and nothing else, through what is linear in each channel.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import nn

from ...core import native
from ...modules.layer import WeightOnlyLinear
from ...modules.targets import Target, is_transposed
from ...observe.block import Block

__all__ = ["Producer", "find_producer"]

# Norms in half precision differ by their roundings.
_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-5}
_HALF_TOLERANCE = 2e-2


class Producer(NamedTuple):
    """The module `name` of a block; `offset` is what a norm adds to its weight, as Gemma's do."""

    block: nn.Module
    name: str
    offset: float = 0.0

    def multiply(self, factors: torch.Tensor) -> None:
        """Multiply the outputs by `factors` [channels]."""
        module = self.block.get_submodule(self.name)
        if isinstance(module, WeightOnlyLinear):
            parent, _, child = self.name.rpartition(".")
            setattr(self.block.get_submodule(parent), child, _multiplied(module, factors))
            return
        with torch.no_grad():
            weight = module.weight.float()
            if is_transposed(module) is None:
                weight = (weight + self.offset) * factors - self.offset
            else:
                weight = weight * (factors if is_transposed(module) else factors[:, None])
            module.weight.copy_(weight)
            bias = getattr(module, "bias", None)
            if bias is not None:
                bias.copy_(bias.float() * factors)


def _multiplied(layer: WeightOnlyLinear, factors: torch.Tensor) -> WeightOnlyLinear:
    matrix = layer.quantized()
    zeros = matrix.zero_points()
    scaled = native.QuantizedMatrix.from_codes(
        matrix.codes(),
        matrix.scales() * factors[:, None].numpy(),
        None if zeros is None else zeros.astype("float32"),
        layer.scheme,
    )
    if layer.has_g_idx:
        scaled = scaled.with_g_idx(matrix.tensors()["g_idx"])
    bias = layer.bias
    if bias is not None:
        bias = (bias.float() * factors).to(bias.dtype)
    made = WeightOnlyLinear.from_quantized(
        scaled,
        bias,
        compute_dtype=layer.requested_compute_dtype,
        name=layer.name,
        dtype=layer.weight.dtype,
        transposed=layer.transposed,
    )
    made.train(layer.training)
    return made


def find_producer(block: Block, group: Sequence[Target]) -> Producer | None:
    """The module of the block whose outputs are the inputs of `group`, and of nothing else."""
    channels = group[0].shape[1]
    layers = [target.module for target in group]
    order: list[nn.Module] = []
    candidates = {
        module: name
        for name, module in block.module.named_modules()
        if _outputs(module) == channels and all(module is not layer for layer in layers)
    }
    if not candidates:
        return None
    with torch.no_grad(), _hooked(candidates, lambda module: order.append(module)):
        expected = block.run(0)
    generator = torch.Generator().manual_seed(channels)
    factors = torch.randint(1, 3, (channels,), generator=generator).float()
    # The last one that is called before the layers is the likeliest.
    for module in reversed(list(dict.fromkeys(order))):
        offset = _offset_of(module, factors)
        if offset is None:
            continue
        with torch.no_grad(), _doubled(module, layers, factors):
            found = block.run(0)
        if torch.equal(found, expected):
            return Producer(block.module, candidates[module], offset)
    return None


def _outputs(module: nn.Module) -> int | None:
    """The channels of a linear layer's output, or of a norm's; None: it is neither."""
    if isinstance(module, WeightOnlyLinear):
        plain = not module.has_act_scales and module.scheme.zeros != "min"
        return module.out_features if plain else None
    transposed = is_transposed(module)
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter):
        return None
    if transposed is not None:
        return weight.shape[1] if transposed else weight.shape[0]
    others = {name for name, _ in module.named_parameters()} - {"weight", "bias"}
    return None if weight.dim() != 1 or others else weight.shape[0]


def _offset_of(module: nn.Module, factors: torch.Tensor) -> float | None:
    """What a norm adds to its weight; None: its outputs do not follow its weight. 0 for others."""
    if isinstance(module, WeightOnlyLinear) or is_transposed(module) is not None:
        return 0.0
    weight = module.weight.detach()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((2, len(weight)), generator=generator).to(weight.dtype)
    bias = getattr(module, "bias", None)
    tolerance = _TOLERANCE.get(weight.dtype, _HALF_TOLERANCE)
    with torch.no_grad():
        expected = module(x).float() * factors
        for offset in (0.0, 1.0):
            changed = {"weight": ((weight.float() + offset) * factors - offset).to(weight.dtype)}
            if bias is not None:
                changed["bias"] = bias.detach() * factors.to(bias.dtype)
            found = torch.func.functional_call(module, changed, (x,)).float()
            if torch.allclose(found, expected, rtol=tolerance, atol=tolerance):
                return offset
    return None


@contextlib.contextmanager
def _doubled(
    producer: nn.Module, layers: Sequence[nn.Module], factors: torch.Tensor
) -> Iterator[None]:
    def after(module: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        return output * factors.to(output.dtype)

    def before(module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (args[0] / factors.to(args[0].dtype), *args[1:])

    handles = [producer.register_forward_hook(after)]
    handles += [layer.register_forward_pre_hook(before) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _hooked(
    modules: Sequence[nn.Module] | dict[nn.Module, str], note: Callable[[nn.Module], None]
) -> Iterator[None]:
    handles = [
        module.register_forward_pre_hook(lambda module, args: note(module)) for module in modules
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
