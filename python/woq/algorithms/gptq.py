# SPDX-License-Identifier: Apache-2.0
"""GPTQ (arXiv:2210.17323): the Python side. Second moments of the inputs are accumulated for each
group of layers that share an input; the core does the rest, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .. import _native
from .._blocks import Block
from .._selection import linear_parameters
from ..config import WeightOnlyQuantConfig
from ._hessians import act_order, hessians, output_error
from ._interface import Finished, round_to_nearest, scheme_of

__all__ = ["quantize_block"]


def quantize_block(block: Block, config: WeightOnlyQuantConfig) -> Iterator[Finished]:
    """Quantize the layers of `block` in the order of their calls.

    With `true_sequential` each group of layers that share an input is calibrated on what the
    quantized layers before it in the block produce; else all of them on the float block.
    """
    options = config.algorithm_args
    groups = block.groups()
    rounds = [[group] for group in groups] if options["true_sequential"] else [groups]
    for together in rounds:
        found = hessians(block, together)
        for group, hessian in zip(together, found, strict=True):
            for target in group:
                weight = linear_parameters(target.module)
                matrix = _native.quantize_gptq(
                    weight,
                    hessian,
                    **scheme_of(config, target),
                    damp_percent=options["damp_percent"],
                    block_size=options["blocksize"],
                    act_order=act_order(options),
                    static_groups=options["static_groups"],
                    mse_range=config.mse_range,
                    name=target.name,
                    num_threads=torch.get_num_threads(),
                )
                rounded = round_to_nearest(weight, config, target)
                yield Finished(
                    target,
                    matrix,
                    loss=output_error(weight, matrix, hessian),
                    start_loss=output_error(weight, rounded, hessian),
                )
