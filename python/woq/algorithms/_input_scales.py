# SPDX-License-Identifier: Apache-2.0
"""Equivalent transformations that need no table of architectures: W is multiplied by s [K] before
it is quantized, and the layer's input by 1 / s at run time (`act_scales`), so that
(x / s) Q(W s)^T stands for x W^T. Layers that share an input share s."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from .._blocks import Block
from .._selection import Target, linear_parameters
from ..config import WeightOnlyQuantConfig
from ._hessians import hessians, output_error
from ._interface import Finished, round_to_nearest, with_input_scales

__all__ = ["FindScales", "quantize_scaled"]

# weights of a group [N_i, K], the inputs' second moments, the group -> s [K].
FindScales = Callable[[list[torch.Tensor], Any, Sequence[Target]], torch.Tensor]


def quantize_scaled(
    block: Block,
    config: WeightOnlyQuantConfig,
    find: FindScales,
    clip: Callable[[torch.Tensor, Any, Target], torch.Tensor] | None = None,
) -> Iterator[Finished]:
    """Quantize every group of layers with the s that `find` gives; where that makes the group's
    outputs worse, with s = 1. `clip` bounds the scaled weights before they are rounded, given the
    second moments of the scaled inputs."""
    groups = block.groups()
    for group, hessian in zip(groups, hessians(block, groups), strict=True):
        weights = [linear_parameters(target.module).float() for target in group]
        plain = [
            round_to_nearest(weight, config, target)
            for weight, target in zip(weights, group, strict=True)
        ]
        before = [
            output_error(weight, matrix, hessian)
            for weight, matrix in zip(weights, plain, strict=True)
        ]
        scales = find(weights, hessian, group)
        matrices = []
        for weight, target in zip(weights, group, strict=True):
            scaled = weight * scales
            if clip is not None:
                scaled = clip(scaled, hessian.scaled(1 / scales), target)
            matrix = round_to_nearest(scaled, config, target)
            matrices.append(with_input_scales(matrix, 1 / scales))
        after = [
            output_error(weight, matrix, hessian)
            for weight, matrix in zip(weights, matrices, strict=True)
        ]
        if not sum(after) < sum(before):
            ones = torch.ones_like(scales)
            matrices = [with_input_scales(matrix, ones) for matrix in plain]
            after = before
        for target, matrix, loss, start in zip(group, matrices, after, before, strict=True):
            yield Finished(target, matrix, loss=loss, start_loss=start)
