# SPDX-License-Identifier: Apache-2.0
"""Where the weights of a layer lie between its code points.

Made while the layer is quantized, because the float weight is gone afterwards, and of a sample of
its rows, so that it costs next to nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core import native
from .report import WeightHistogram

__all__ = ["weight_histogram"]

_SAMPLE = 1 << 16  # weights
_BINS = 96
_MARGIN = 0.07  # of the span of the code points, on either side


def weight_histogram(weight: Any, matrix: native.QuantizedMatrix) -> WeightHistogram:
    """The weights of evenly spaced rows of `weight` [N, K] (a torch tensor), in the units of
    `matrix`'s codes."""
    points = np.unique(native.code_values(matrix.scheme.dtype))
    if matrix.scheme.asym:
        points = points - points[0]  # codes count from 0, and so do zero points
    count = min(matrix.rows, max(1, _SAMPLE // max(1, matrix.cols)))
    rows = np.linspace(0, matrix.rows - 1, count).astype(np.int64)
    units = _in_units(weight[rows.tolist()].float().numpy(), matrix, rows)
    margin = _MARGIN * float(points[-1] - points[0])
    low, high = float(points[0]) - margin, float(points[-1]) + margin
    counts, _ = np.histogram(units, bins=_BINS, range=(low, high))
    return WeightHistogram(
        code_points=tuple(map(float, points)),
        low=low,
        high=high,
        counts=tuple(map(int, counts)),
        outside=int(units.size - counts.sum()),
    )


def _in_units(sample: Any, matrix: native.QuantizedMatrix, rows: Any) -> Any:
    """`sample` (the rows `rows` of the float weight) divided by scales, plus zero points."""
    groups = np.arange(matrix.cols) // matrix.scheme.group_length(matrix.cols)
    if matrix.has_g_idx or matrix.has_act_scales:
        stored = matrix.tensors()
        if matrix.has_g_idx:
            groups = stored["g_idx"]
        if matrix.has_act_scales:
            # The input is multiplied by these, and what is left was quantized.
            sample = sample / np.asarray(stored["act_scales"], dtype=np.float32)
    scales = matrix.scales()[rows][:, groups]
    # A group of zeros has a scale of 0, and its weights are at 0.
    units = np.divide(sample, scales, out=np.zeros_like(sample), where=scales != 0)
    zeros = matrix.zero_points()
    return units if zeros is None else units + zeros[rows][:, groups].astype(np.float32)
