# SPDX-License-Identifier: Apache-2.0
"""AWQ (arXiv:2306.00978): the core searches s = x^a / w^(1 - a) and the clipping of each group by
the error of the layer's output. Where ranges are searched with weighted errors (`mse_range`), that
takes the place of clipping."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..config.options import boolean, calibration, choice, integer
from ..config.registry import Algorithm
from ..core import native

if TYPE_CHECKING:
    import torch

    from ..config.quant_config import WeightOnlyQuantConfig
    from ..modules.targets import Target
    from ..observe.block import Block
    from .shared.finished import Finished

__all__ = ["ALGORITHM"]

_DEFAULTS = native.option_defaults()["awq_scales"]


def quantize_block(block: Block, config: WeightOnlyQuantConfig) -> Iterator[Finished]:
    import torch

    from .shared.scaled import quantize_scaled

    options = config.algorithm_args
    if options["fold_scales"] and config.work_dir is not None:
        raise native.InvalidArgument(
            "fold_scales changes layers that a work_dir does not keep: leave one of them out"
        )
    searched = ALGORITHM.core_options(options)
    searched["duo_scaling"] = {True: "on", False: "off"}.get(options["duo_scaling"], "both")

    def find(weights: list[torch.Tensor], hessian: Any, group: Sequence[Target]) -> torch.Tensor:
        scales = native.awq_scales(
            weights,
            hessian,
            [target.scheme for target in group],
            **searched,
            mse_range=bool(config.mse_range),
            name=group[0].name,
            num_threads=torch.get_num_threads(),
        )
        return torch.from_numpy(scales).float()

    def clip(weight: torch.Tensor, hessian: Any, target: Target) -> torch.Tensor:
        clipped = native.awq_clip(
            weight,
            hessian,
            target.scheme,
            name=target.name,
            num_threads=torch.get_num_threads(),
        )
        return torch.from_numpy(clipped)

    bounds = clip if options["apply_clip"] and not config.mse_range else None
    return quantize_scaled(block, config, find, bounds)


ALGORITHM = Algorithm(
    name="AWQ",
    summary="searches multipliers of the input channels",
    options={
        "n_grid": integer(_DEFAULTS["n_grid"], 1, help="exponents that are tried", core="n_grid"),
        "duo_scaling": choice(
            (True, False, "both"),
            _DEFAULTS["duo_scaling"],
            help="multipliers x^a / w^(1 - a), or x^a (False), or whichever is better",
            core="duo_scaling",
        ),
        "apply_clip": boolean(
            True,
            help="search how far each group's range is clipped, unless mse_range searches it",
            also=("auto_clip", "enable_mse_search", "mse_search"),
        ),
        **calibration(nsamples=32, seqlen=512),
        "fold_scales": boolean(
            False,
            help="multipliers go into the layers before, as AutoAWQ's do, or are left out",
            young=True,
        ),
    },
    quantize_block=quantize_block,
    mse_range=True,
    scales_inputs=True,
)
