# SPDX-License-Identifier: Apache-2.0
"""GPTQ (arXiv:2210.17323): the Python side. Second moments of the inputs are accumulated for each
group of layers that share an input; the core does the rest, layer by layer. With `gptaq_alpha` also
the moments with the float model's inputs (GPTAQ, arXiv:2504.02692)."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..config.options import complete_options
from ..config.quant_config import WeightOnlyQuantConfig
from ..core import native
from ..modules.targets import Target, linear_parameters
from ..observe.block import Block
from ..observe.moments import Moments, act_order, in_rounds, moments, output_error
from .interface import Finished, round_to_nearest

__all__ = ["quantize_block", "round_columns"]


def quantize_block(block: Block, config: WeightOnlyQuantConfig) -> Iterator[Finished]:
    """Quantize the layers of `block` in the order of their calls."""
    for together in in_rounds(block.groups(), config.algorithm_args):
        found = moments(block, together)
        for group, seen in zip(together, found, strict=True):
            for target in group:
                weight = linear_parameters(target.module)
                matrix, note = round_columns(weight, config, target, seen)
                rounded = round_to_nearest(weight, config, target, mse_range=False)
                yield Finished(
                    target,
                    matrix,
                    loss=output_error(weight, matrix, seen.hessian),
                    start_loss=output_error(weight, rounded, seen.hessian),
                    note=note,
                )


def round_columns(
    weight: torch.Tensor,
    config: WeightOnlyQuantConfig,
    target: Target,
    seen: Moments,
    ranges: torch.Tensor | None = None,
    in_flight: torch.Tensor | None = None,
) -> tuple[native.QuantizedMatrix, str]:
    """Quantizes `weight` [N, K] by GPTQ. Returns the matrix and a note for the report.

    Scales come from the groups of `ranges` [N, K] if it is given, else from the weights in flight.
    The weights in flight are written to `in_flight` [N, K] if it is given. An option that the
    config's algorithm doesn't have takes GPTQ's default."""
    options = {**complete_options("GPTQ", "GPTQ", {}), **config.algorithm_args}
    facts: dict[str, float] = {}
    matrix = native.quantize_gptq(
        weight,
        seen.hessian,
        **target.scheme,
        damp_percent=options["damp_percent"],
        block_size=options["blocksize"],
        act_order=act_order(options),
        static_groups=options["static_groups"],
        mse_range=bool(config.mse_range),
        cross=seen.cross,
        gptaq_alpha=options["gptaq_alpha"],
        ranges=ranges,
        in_flight=in_flight,
        facts=facts,
        name=target.name,
        num_threads=torch.get_num_threads(),
    )
    damp = facts["damp_percent"]
    if damp == options["damp_percent"]:
        return matrix, ""
    return matrix, f"its Hessian is singular: damp_percent was raised to {damp:g}"
