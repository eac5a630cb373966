# SPDX-License-Identifier: Apache-2.0
"""RTN, round to nearest: every weight takes the code nearest to it on its group's scale.

Scales come from each group's range, or are searched: with `mse_range` for the least squared error,
with an importance matrix for the least error weighted by it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..config.registry import Algorithm
from ..core import native

if TYPE_CHECKING:
    import torch

    from ..config.quant_config import WeightOnlyQuantConfig
    from ..modules.targets import Target

__all__ = ["ALGORITHM", "round_to_nearest"]


def round_to_nearest(
    weight: torch.Tensor,
    config: WeightOnlyQuantConfig,
    target: Target,
    *,
    mse_range: bool | None = None,
    importance: Any = None,
) -> native.QuantizedMatrix:
    """RTN of `weight` [N, K], with `importance` [K] or the target's if there is any; `mse_range`
    overrides the config's. A layer that the config's importance matrix lacks gets the search by
    squared error."""
    import torch

    searched = config.mse_range or config.imatrix is not None
    scheme = target.scheme
    if scheme.zeros == "float":  # which only a search finds
        scheme = scheme.replace(zeros="int")
    return native.quantize_rtn(
        weight,
        scheme,
        mse_range=bool(searched if mse_range is None else mse_range),
        importance=target.importance if importance is None else importance,
        name=target.name,
        num_threads=torch.get_num_threads(),
    )


ALGORITHM = Algorithm(
    name="RTN",
    summary="rounds to nearest",
    quantize_weight=round_to_nearest,
    takes_imatrix=True,
)
