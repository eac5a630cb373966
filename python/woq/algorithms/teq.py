# SPDX-License-Identifier: Apache-2.0
"""TEQ (arXiv:2310.10944): the core learns s by Adam on the error of the layers' outputs, which the
second moments of the inputs give without the inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..config.options import calibration, integer, number, optional
from ..config.registry import Algorithm
from ..core import native

if TYPE_CHECKING:
    import torch

    from ..config.quant_config import WeightOnlyQuantConfig
    from ..modules.targets import Target
    from ..observe.block import Block
    from .shared.finished import Finished

__all__ = ["ALGORITHM"]

_DEFAULTS = native.option_defaults()["teq_scales"]


def quantize_block(block: Block, config: WeightOnlyQuantConfig) -> Iterator[Finished]:
    import torch

    from .shared.scaled import quantize_scaled

    def find(weights: list[torch.Tensor], hessian: Any, group: Sequence[Target]) -> torch.Tensor:
        scales = native.teq_scales(
            weights,
            hessian,
            [target.scheme for target in group],
            **ALGORITHM.core_options(config.algorithm_args),
            mse_range=bool(config.mse_range),
            name=group[0].name,
            num_threads=torch.get_num_threads(),
        )
        return torch.from_numpy(scales).float()

    return quantize_scaled(block, config, find)


ALGORITHM = Algorithm(
    name="TEQ",
    summary="learns multipliers of the input channels",
    options={
        "iters": integer(
            _DEFAULTS["steps"],
            0,
            help="steps; 0: no multipliers",
            also=("steps",),
            core="steps",
        ),
        # The paper's 1e-3 is for a thousand steps on the whole model's loss.
        "lr": optional(
            number(
                _DEFAULTS["learning_rate"],
                "above 0",
                lambda rate: rate > 0,
                help="how far a multiplier's logarithm goes in the first step; None: "
                f"{_DEFAULTS['learning_rate']:g}",
                also=("learning_rate",),
                core="learning_rate",
            )
        ),
        **calibration(nsamples=32, seqlen=512),
    },
    quantize_block=quantize_block,
    mse_range=True,
    scales_inputs=True,
)
