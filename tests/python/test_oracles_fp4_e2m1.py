# SPDX-License-Identifier: Apache-2.0
"""fp4_e2m1 (OCP) against an exhaustive table in rational arithmetic, and against ml_dtypes.

Tie rule: to the code with an even mantissa bit, hence to the even code. What rounds to zero has
code 0 whatever its sign: code 8, minus zero, is never written.
"""

from __future__ import annotations

import itertools
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from oracle_support import Scheme, assert_same_codes, assert_within_ulps, core, inputs, quantize

E2M1 = Scheme("fp4_e2m1")
MAGNITUDES = [Fraction(n, 2) for n in (0, 1, 2, 3, 4, 6, 8, 12)]


def nearest(x: float) -> int:
    """The code of x at scale 1, exactly."""
    magnitude = min(abs(Fraction(x)), MAGNITUDES[-1])
    code = min(range(8), key=lambda c: (abs(MAGNITUDES[c] - magnitude), c % 2))
    return code + 8 if x < 0 and code else code


def ml_dtypes_codes(x: np.ndarray) -> np.ndarray:
    codes = x.astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
    return np.where(codes == 8, 0, codes)


def codes_at_scale_one(x: np.ndarray) -> np.ndarray:
    """Codes of x, |x| <= 6, in groups of 16 that start with a 6: the scale is exactly 1."""
    padded = np.concatenate([x, np.zeros(-x.size % 15, dtype=np.float32)]).reshape(-1, 15)
    weight = np.concatenate([np.full((len(padded), 1), 6, dtype=np.float32), padded], axis=1)
    matrix = quantize(weight, E2M1, 16)
    assert (matrix.scales() == 1).all()
    return matrix.codes()[:, 1:].reshape(-1)[: x.size]


def boundary_points() -> np.ndarray:
    """Every value and every midpoint of either sign, with both float32 neighbours."""
    values = [float(m) for m in MAGNITUDES]
    points = values + [(a + b) / 2 for a, b in itertools.pairwise(values)]
    x = np.array(points + [-p for p in points], dtype=np.float32)
    x = np.concatenate([x, np.nextafter(x, np.float32(9)), np.nextafter(x, np.float32(-9))])
    return x[np.abs(x) <= 6]


def test_code_values() -> None:
    expected = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    assert_within_ulps(core.code_values("fp4_e2m1"), expected, 0, "fp4_e2m1")
    assert [Fraction(float(v)) for v in expected[:8]] == MAGNITUDES


def test_every_value_and_every_tie() -> None:
    x = boundary_points()
    expected = np.array([nearest(float(v)) for v in x])
    assert sorted(set(expected.tolist())) == [c for c in range(16) if c != 8]
    assert_same_codes(codes_at_scale_one(x), expected, "boundaries")
    assert_same_codes(ml_dtypes_codes(x), expected, "ml_dtypes")


def test_every_float16_in_range() -> None:
    """All 2 * 0x4600 + 2 half-precision numbers up to 6: each is tried, not sampled."""
    bits = np.arange(0x4600 + 1, dtype=np.uint16)
    x = np.concatenate([bits, bits | 0x8000]).view(np.float16).astype(np.float32)
    assert np.abs(x).max() == 6
    codes = codes_at_scale_one(x)
    assert_same_codes(codes, ml_dtypes_codes(x), "float16")
    assert not (codes == 8).any()


def test_wrong_tie_rules_are_seen() -> None:
    x = boundary_points()
    codes = codes_at_scale_one(x)
    values = np.array([float(m) for m in MAGNITUDES], dtype=np.float32)
    midpoints = (values[:-1] + values[1:]) / 2
    for side in ("left", "right"):  # ties towards and away from zero
        wrong = np.searchsorted(midpoints, np.abs(x), side=side)
        wrong = np.where((x < 0) & (wrong > 0), wrong + 8, wrong)
        with pytest.raises(AssertionError, match="codes differ"):
            assert_same_codes(codes, wrong, side)


@pytest.mark.parametrize("group_size", [-1, 16, 24, 32, 64, 128, 4096])
@pytest.mark.parametrize("kind", ["normal", "zeros", "huge", "mixed", "one_sided", "spike"])
def test_matrices(kind: str, group_size: int) -> None:
    case = inputs.Case("fp4_e2m1", kind, 5, 257, group_size)
    weight = inputs.weights(case)
    matrix = quantize(weight, E2M1, group_size)
    for g, (start, stop) in enumerate(inputs.group_bounds(case.cols, group_size)):
        part = weight[:, start:stop]
        scale = np.abs(part).max(axis=1, keepdims=True) / np.float32(6)
        assert_within_ulps(matrix.scales()[:, [g]], scale, 1, case)
        # Codes follow the stored scale; an all-zero group has scale 0 and code 0.
        stored = matrix.scales()[:, [g]]
        x = np.where(stored == 0, np.float32(0), part / np.where(stored == 0, 1, stored))
        assert_same_codes(matrix.codes()[:, start:stop], ml_dtypes_codes(x), case)
