# SPDX-License-Identifier: Apache-2.0
"""Equivalent transformations that need no table of architectures: W is multiplied by s [K] before
it is quantized, and the layer's input by 1 / s at run time (`act_scales`), so that
(x / s) Q(W s)^T stands for x W^T. Layers that share an input share s; each is rounded in its own
number format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from ...config.quant_config import WeightOnlyQuantConfig
from ...core import native
from ...modules.targets import Target, linear_parameters
from ...observe.block import Block
from ...observe.moments import Moments, in_rounds, moments, output_error
from ..rtn import round_to_nearest
from .finished import Finished

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
    for together in in_rounds(block.groups(), config.algorithm_args):
        for group, seen in zip(together, moments(block, together), strict=True):
            yield from _group(group, seen, config, find, clip, rounded)


def _group(
    group: Sequence[Target],
    seen: Moments,
    config: WeightOnlyQuantConfig,
    find: FindScales,
    clip: Callable[[torch.Tensor, Any, Target], torch.Tensor] | None,
    rounded: Round,
) -> Iterator[Finished]:
    weights = [linear_parameters(target.module).float() for target in group]

    def errors(matrices: Sequence[native.QuantizedMatrix]) -> list[float]:
        return [
            output_error(weight, matrix, seen.hessian)
            for weight, matrix in zip(weights, matrices, strict=True)
        ]

    pairs = list(zip(weights, group, strict=True))
    start = errors([round_to_nearest(w, config, target, mse_range=False) for w, target in pairs])
    plain = [rounded(w, config, target, seen, None) for w, target in pairs]
    before = errors([matrix for matrix, _ in plain])
    scales = find(weights, seen.hessian, group)
    inner = seen.scaled(1 / scales)
    results = []
    for weight, target in pairs:
        scaled = weight * scales
        ranges = None if clip is None else clip(scaled, inner.hessian, target)
        matrix, note = rounded(scaled, config, target, inner, ranges)
        results.append((matrix.with_act_scales(1 / scales), note))
    after = errors([matrix for matrix, _ in results])
    if not sum(after) < sum(before):
        ones = torch.ones_like(scales)
        results = [(matrix.with_act_scales(ones), note) for matrix, note in plain]
        after = before
    for target, (matrix, note), loss, first in zip(group, results, after, start, strict=True):
        yield Finished(target, matrix, loss=loss, start_loss=first, note=note)
