# SPDX-License-Identifier: Apache-2.0
"""AutoRound (SignRound, arXiv:2309.05516): learns, block by block, whether each weight is rounded
up or down and how far each group's range reaches, by signed gradient descent on the error of the
block's output.

Differences from the paper, each measured on SmolLM2 (docs/quality.md): tuning starts from the
scales with the least squared error instead of plain RTN's; the error of each token is divided by
the token's mean square, because what follows a block is a norm, and plain squares are ruled by the
few tokens with huge activations; the last parameters are kept unless the start was better on the
same batches, where the paper compares the losses of different batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from .._blocks import Block, fast_products
from .._selection import linear_parameters
from ..config import WeightOnlyQuantConfig
from ._interface import Finished, round_to_nearest, scheme_of
from ._rounding import Rounding

__all__ = ["quantize_block"]

# Mean square below which a token's error is not magnified further (a padding token may be zero).
_SMALL = 1e-12
# Batches on which the start and the end are compared.
_COMPARED = 4


def quantize_block(block: Block, config: WeightOnlyQuantConfig) -> Iterator[Finished]:
    """Tune the rounding of all targets of `block` together.

    `block.references` are the outputs to come near to; `block.inputs` what the block is given.
    The tuned matrices are yielded with the loss before and after.
    """
    options = config.algorithm_args
    if options["iters"] == 0:
        for target in block.targets:
            weight = linear_parameters(target.module)
            yield Finished(target, round_to_nearest(weight, config, target))
        return
    roundings: dict[str, Rounding] = {}
    for target in block.targets:
        weight = linear_parameters(target.module)
        start = round_to_nearest(weight, config, target, mse_range=True)
        roundings[target.name] = Rounding(weight.float(), start, scheme_of(config, target))
    before, after = _tune(block, roundings, options)
    for target in list(block.targets):
        matrix = roundings.pop(target.name).matrix()
        yield Finished(target, matrix, loss=after, start_loss=before)


def _tune(
    block: Block, roundings: dict[str, Rounding], options: Mapping[str, Any]
) -> tuple[float, float]:
    """Change `roundings` in place; the loss before and after."""
    iters = int(options["iters"])
    offset_lr = options["lr"] or 1 / iters
    range_lr = options["minmax_lr"] or offset_lr
    parameters: list[torch.Tensor] = []
    rates: list[float] = []
    for rounding in roundings.values():
        tuned = rounding.parameters()
        if not options["enable_minmax_tuning"]:
            tuned = tuned[:1]
        parameters += tuned
        rates += [offset_lr, *([range_lr] * (len(tuned) - 1))]
    compared = range(min(len(block), _COMPARED))
    before = _mean_loss(block, roundings, compared)
    generator = torch.Generator().manual_seed(int(options["seed"]))
    order: list[int] = []
    for parameter in parameters:
        parameter.requires_grad_(True)
    for step in range(iters):
        if not order:
            order = torch.randperm(len(block), generator=generator).tolist()
        weights = {name: rounding.weight() for name, rounding in roundings.items()}
        loss = _loss(block, order.pop(), weights)
        gradients = torch.autograd.grad(loss, parameters)
        remaining = 1 - step / iters  # linear decay to 0
        with torch.no_grad():
            for parameter, rate, gradient in zip(parameters, rates, gradients, strict=True):
                parameter.add_(gradient.sign_(), alpha=-rate * remaining)
            for rounding in roundings.values():
                rounding.clamp_()
    for parameter in parameters:
        parameter.requires_grad_(False)
    after = _mean_loss(block, roundings, compared)
    if after < before:
        return before, after
    for rounding in roundings.values():
        rounding.reset()
    return before, before


@torch.no_grad()
def _mean_loss(block: Block, roundings: Mapping[str, Rounding], batches: Iterable[int]) -> float:
    weights = {name: rounding.weight() for name, rounding in roundings.items()}
    return float(torch.stack([_loss(block, index, weights) for index in batches]).mean())


def _loss(block: Block, index: int, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Mean over tokens of |y - y_q|^2 / |y|^2, for batch `index`."""
    assert block.references is not None
    reference = block.references[index].float()
    with fast_products():
        output = block.run(index, weights=weights)
    power = reference.square().mean(-1, keepdim=True).clamp_(min=_SMALL)
    return ((output.float() - reference).square_().mean(-1, keepdim=True) / power).mean()
