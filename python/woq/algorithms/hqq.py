# SPDX-License-Identifier: Apache-2.0
"""HQQ, half-quadratic quantization (Badri and Shaji, mobiusml.github.io/hqq_blog, 2023): the zero
point of each group, a real number, for the least sum of |w - quantized|^p with p < 1. No data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config.options import integer, number
from ..config.registry import Algorithm
from ..core import native

if TYPE_CHECKING:
    import torch

    from ..config.quant_config import WeightOnlyQuantConfig
    from ..modules.targets import Target

__all__ = ["ALGORITHM"]

_DEFAULTS = native.option_defaults()["quantize_hqq"]


def find_zero_points(
    weight: torch.Tensor, config: WeightOnlyQuantConfig, target: Target
) -> native.QuantizedMatrix:
    """HQQ of `weight` [N, K]."""
    import torch

    return native.quantize_hqq(
        weight,
        target.scheme,
        **ALGORITHM.core_options(config.algorithm_args),
        name=target.name,
        num_threads=torch.get_num_threads(),
    )


ALGORITHM = Algorithm(
    name="HQQ",
    summary="finds zero points for the least |error|^p",
    options={
        "iters": integer(
            _DEFAULTS["steps"],
            0,
            help="steps; 0: round to nearest",
            also=("steps",),
            core="steps",
        ),
        "lp_norm": number(
            _DEFAULTS["lp_norm"],
            "above 0 and at most 1",
            lambda p: 0 < p <= 1,
            help="the power of the errors that are summed: the lower, the less outliers count",
            core="lp_norm",
        ),
        "beta": number(
            _DEFAULTS["beta"],
            "above 0",
            lambda beta: beta > 0,
            help="weight of the quadratic term in the first step",
            core="beta",
        ),
        "kappa": number(
            _DEFAULTS["kappa"],
            "above 0",
            lambda kappa: kappa > 0,
            help="what beta is multiplied by after each step",
            core="kappa",
        ),
    },
    quantize_weight=find_zero_points,
    mse_range=None,
    finds_zero_points=True,
)
