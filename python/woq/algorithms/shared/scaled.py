# SPDX-License-Identifier: Apache-2.0
"""Equivalent transformations that need no table of architectures: W is multiplied by s [K] before
it is quantized, and the layer's input by 1 / s at run time (`act_scales`), so that
(x / s) Q(W s)^T stands for x W^T. Layers that share an input share s; each is rounded in its own
number format. With `fold_scales` 1 / s goes into what makes the input, where that can be."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from ...config.quant_config import WeightOnlyQuantConfig
from ...core import native
from ...modules.targets import Target, linear_parameters, set_linear_parameters
from ...observe.block import Block
from ...observe.moments import Moments, in_rounds, moments, output_error
from ..rtn import round_to_nearest
from .finished import Finished
from .folding import Producer, find_producer

__all__ = ["FindScales", "Round", "quantize_scaled", "rounding_of"]

# weights of a group [N_i, K], the inputs' second moments, the group -> s [K].
FindScales = Callable[[list[torch.Tensor], Any, Sequence[Target]], torch.Tensor]

# weight [N, K], config, target, moments of its input, and the weight with clipped ranges or None
# -> the rounded weight, and a note for the report.
Round = Callable[
    [torch.Tensor, WeightOnlyQuantConfig, Target, Moments, "torch.Tensor | None"],
    tuple[native.QuantizedMatrix, str],
]


def rounding_of(config: WeightOnlyQuantConfig) -> Round:
    """What comes after the scaling: the second half of a pair such as AWQ+GPTQ, else round to
    nearest."""
    then = config.method.then
    return _nearest if then is None or then.round_scaled is None else then.round_scaled


def _nearest(
    weight: torch.Tensor,
    config: WeightOnlyQuantConfig,
    target: Target,
    seen: Moments,
    ranges: torch.Tensor | None,
) -> tuple[native.QuantizedMatrix, str]:
    if ranges is not None:
        weight = ranges
    importance = seen.hessian.diagonal() if config.mse_range else None
    return round_to_nearest(weight, config, target, mse_range=False, importance=importance), ""


def quantize_scaled(
    block: Block,
    config: WeightOnlyQuantConfig,
    find: FindScales,
    clip: Callable[[torch.Tensor, Any, Target], torch.Tensor] | None = None,
) -> Iterator[Finished]:
    """Quantize every group of layers with the s that `find` gives; where that makes the group's
    outputs worse, with s = 1. `clip` bounds the scaled weights before they are rounded, given the
    second moments of the scaled inputs."""
    rounded = rounding_of(config)
    fold = config.algorithm_args.get("fold_scales", False)
    producer_of = functools.partial(find_producer, block) if fold else None
    for together in in_rounds(block.groups(), config.algorithm_args):
        for group, seen in zip(together, moments(block, together), strict=True):
            yield from _group(group, seen, config, find, clip, rounded, producer_of)


def _group(
    group: Sequence[Target],
    seen: Moments,
    config: WeightOnlyQuantConfig,
    find: FindScales,
    clip: Callable[[torch.Tensor, Any, Target], torch.Tensor] | None,
    rounded: Round,
    producer_of: Callable[[Sequence[Target]], Producer | None] | None = None,
) -> Iterator[Finished]:
    """`producer_of` finds what 1 / s goes into; None: it goes beside the weights."""
    weights = [linear_parameters(target.module).float() for target in group]

    def errors(matrices: Sequence[native.QuantizedMatrix]) -> list[float]:
        return [
            output_error(weight, matrix, seen.hessian)
            for weight, matrix in zip(weights, matrices, strict=True)
        ]

    pairs = list(zip(weights, group, strict=True))
    start = errors([round_to_nearest(w, config, target, mse_range=False) for w, target in pairs])
    results = [rounded(w, config, target, seen, None) for w, target in pairs]
    losses = errors([matrix for matrix, _ in results])
    fold = producer_of is not None
    producer = None if producer_of is None else producer_of(group)
    scales = torch.ones(weights[0].shape[1])
    if producer is not None or not fold:
        tried = find(weights, seen.hessian, group)
        inner = seen.scaled(1 / tried)
        scaled = []
        for weight, target in pairs:
            ranges = None if clip is None else clip(weight * tried, inner.hessian, target)
            scaled.append(rounded(weight * tried, config, target, inner, ranges))
        after = errors([matrix.with_act_scales(1 / tried) for matrix, _ in scaled])
        if sum(after) < sum(losses):
            scales, results, losses = tried, scaled, after
            if producer is not None:
                # Before the layers are replaced: after an interrupt the model computes the same.
                producer.multiply(1 / scales)
                for weight, target in pairs:
                    set_linear_parameters(target.module, weight * scales)
    for target, (matrix, note), loss, first in zip(group, results, losses, start, strict=True):
        stored = matrix if fold else matrix.with_act_scales(1 / scales)
        yield Finished(target, stored, loss=loss, start_loss=first, note=note)
