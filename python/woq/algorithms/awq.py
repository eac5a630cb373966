# SPDX-License-Identifier: Apache-2.0
"""AWQ (arXiv:2306.00978): the core searches s = x^a / w^(1 - a) and the clipping of each group by
the error of the layer's output. Where ranges are searched with weighted errors (`mse_range`), that
takes the place of clipping."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ..config.quant_config import WeightOnlyQuantConfig
from ..core import native
from ..modules.targets import Target
from ..observe.block import Block
from .interface import Finished
from .scaled import quantize_scaled, rounding_of

__all__ = ["quantize_block"]


def quantize_block(block: Block, config: WeightOnlyQuantConfig) -> Iterator[Finished]:
    options = config.algorithm_args
    duo_scaling = {True: "on", False: "off"}.get(options["duo_scaling"], "both")

    def find(weights: list[torch.Tensor], hessian: Any, group: Sequence[Target]) -> torch.Tensor:
        scales = native.awq_scales(
            weights,
            hessian,
            schemes=[target.scheme for target in group],
            n_grid=options["n_grid"],
            duo_scaling=duo_scaling,
            weighted_search=bool(config.mse_range),
            name=group[0].name,
            num_threads=torch.get_num_threads(),
        )
        return torch.from_numpy(scales).float()

    def clip(weight: torch.Tensor, hessian: Any, target: Target) -> torch.Tensor:
        clipped = native.awq_clip(
            weight,
            hessian,
            **target.scheme,
            name=target.name,
            num_threads=torch.get_num_threads(),
        )
        return torch.from_numpy(clipped)

    bounds = clip if options["apply_clip"] and not config.mse_range else None
    return quantize_scaled(block, config, find, bounds, rounding_of(config))
