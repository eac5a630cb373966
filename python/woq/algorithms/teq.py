# SPDX-License-Identifier: Apache-2.0
"""TEQ (arXiv:2310.10944): the core learns s by Adam on the error of the layers' outputs, which the
second moments of the inputs give without the inputs."""

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

# The paper's 1e-3 is for a thousand steps on the whole model's loss.
_LEARNING_RATE = 0.05


def quantize_block(block: Block, config: WeightOnlyQuantConfig) -> Iterator[Finished]:
    options = config.algorithm_args

    def find(weights: list[torch.Tensor], hessian: Any, group: Sequence[Target]) -> torch.Tensor:
        scales = native.teq_scales(
            weights,
            hessian,
            schemes=[target.scheme for target in group],
            steps=options["iters"],
            learning_rate=options["lr"] or _LEARNING_RATE,
            weighted_search=bool(config.mse_range),
            name=group[0].name,
            num_threads=torch.get_num_threads(),
        )
        return torch.from_numpy(scales).float()

    return quantize_scaled(block, config, find, rounded=rounding_of(config))
