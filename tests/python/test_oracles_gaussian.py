# SPDX-License-Identifier: Apache-2.0
"""Mean squared error on Gaussian weights against a table computed independently of this library."""

from __future__ import annotations

import numpy as np
import pytest
from oracle_support import Scheme, inputs, quantize

GROUP_SIZES = (32, 64, 128, 4096)
# err^2 / sigma^2 of N(0, 1), by group size; what was printed, so the last digit is rounded.
TABLE = {
    Scheme("int4_clip"): ("0.00941", "0.01159", "0.01382", "0.02465"),
    Scheme("int4_fullrange"): ("0.00739", "0.00901", "0.01067", "0.01888"),
    Scheme("int4_clip", asym=True): ("0.00652", "0.00831", "0.01012", "0.01956"),
    Scheme("nf4"): ("0.00761", "0.00847", "0.00914", "0.01204"),
    Scheme("fp4_e2m1"): ("0.01023", "0.01118", "0.01184", "0.01410"),
    Scheme("fp4_e2m1_bnb"): ("0.01303", "0.01489", "0.01654", "0.02477"),
    Scheme("int8"): ("0.000029", "0.000035", "0.000042", "0.000075"),
}
TOLERANCE = 0.02


@pytest.fixture(scope="module")
def gaussian() -> np.ndarray:
    """float32 [1024, 4096] of N(0, 1) by Box and Muller.

    1024 groups of 4096 bring the spread of the mean below 0.5 %.
    """
    rows, cols = 1024, 4096
    u = inputs.uniforms("gaussian", rows * cols).reshape(2, -1)
    radius, angle = np.sqrt(-2 * np.log1p(-u[0])), 2 * np.pi * u[1]
    samples = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return samples.astype(np.float32).reshape(rows, cols)


def relative_error(weight: np.ndarray, scheme: Scheme, group_size: int) -> float:
    restored = quantize(weight, scheme, group_size, num_threads=0).dequantize()
    difference = (weight - restored).astype(np.float64)
    return float(np.square(difference).mean() / np.square(weight, dtype=np.float64).mean())


def agrees(measured: float, printed: str) -> bool:
    """Within 2 % of a number that prints like this."""
    half_digit = 0.5 * 10.0 ** -len(printed.split(".")[1])
    return abs(measured - float(printed)) <= TOLERANCE * float(printed) + half_digit


def test_samples_are_standard_normal(gaussian: np.ndarray) -> None:
    count = gaussian.size
    assert abs(gaussian.mean(dtype=np.float64)) < 4 / np.sqrt(count)
    assert abs(np.square(gaussian, dtype=np.float64).mean() - 1) < 4 * np.sqrt(2 / count)
    fourth = np.square(np.square(gaussian, dtype=np.float64)).mean()
    assert abs(fourth - 3) < 4 * np.sqrt(96 / count)


@pytest.mark.parametrize("scheme", TABLE, ids=str)
@pytest.mark.parametrize("column", range(len(GROUP_SIZES)), ids=[f"g{g}" for g in GROUP_SIZES])
def test_mean_squared_error(scheme: Scheme, column: int, gaussian: np.ndarray) -> None:
    measured = relative_error(gaussian, scheme, GROUP_SIZES[column])
    printed = TABLE[scheme][column]
    assert agrees(measured, printed), f"{scheme} g{GROUP_SIZES[column]}: {measured}, not {printed}"


def test_the_table_tells_dtypes_apart(gaussian: np.ndarray) -> None:
    """A dtype that were quietly replaced by its neighbour would not pass."""
    four_bits = [scheme for scheme in TABLE if scheme.bits == 4]
    measured = {scheme: relative_error(gaussian[:256], scheme, 32) for scheme in four_bits}
    for scheme in four_bits:
        for other in four_bits:
            assert agrees(measured[scheme], TABLE[other][0]) == (scheme == other), (scheme, other)
