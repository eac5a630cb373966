# SPDX-License-Identifier: Apache-2.0
"""The comparisons of the oracle tests see the mistakes that they are there for."""

from __future__ import annotations

import numpy as np
import pytest
from oracle_support import (
    SCHEMES,
    Scheme,
    assert_same_codes,
    assert_within_ulps,
    core,
    inputs,
    quantize,
    ulp_distance,
)

CASE = inputs.Case("metric", "normal", 4, 40, 16)


def rebuilt(matrix: core.QuantizedMatrix, **changed: np.ndarray) -> core.QuantizedMatrix:
    """The same matrix with some stored tensors replaced."""
    tensors = {name: np.array(tensor) for name, tensor in matrix.tensors().items()}
    tensors.update(changed)
    return core.QuantizedMatrix.from_tensors(
        tensors,
        rows=matrix.rows,
        cols=matrix.cols,
        scheme=matrix.scheme,
    )


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_unchanged_tensors_compare_equal(scheme: Scheme) -> None:
    matrix = quantize(inputs.weights(CASE), scheme, CASE.group_size)
    copy = rebuilt(matrix)
    assert_same_codes(copy.codes(), matrix.codes(), scheme)
    assert_within_ulps(copy.scales(), matrix.scales(), 0, scheme)
    assert_within_ulps(copy.dequantize(), matrix.dequantize(), 0, scheme)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("mask", [0x01, 0x10], ids=["low nibble", "high nibble"])
def test_flipped_bit_is_seen(scheme: Scheme, mask: int) -> None:
    matrix = quantize(inputs.weights(CASE), scheme, CASE.group_size)
    qweight = np.array(matrix.tensors()["qweight"])
    qweight[2, 3] ^= mask
    changed = rebuilt(matrix, qweight=qweight)
    with pytest.raises(AssertionError, match="1 of 160 codes differ"):
        assert_same_codes(changed.codes(), matrix.codes(), scheme)
    column = 3 if scheme.bits == 8 else 6 + (mask == 0x10)
    with pytest.raises(AssertionError, match=rf"first at \(2, {column}\)"):
        assert_same_codes(changed.codes(), matrix.codes(), scheme)


@pytest.mark.parametrize("scheme", [s for s in SCHEMES if s.bits == 4], ids=str)
def test_swapped_nibbles_are_seen(scheme: Scheme) -> None:
    matrix = quantize(inputs.weights(CASE), scheme, CASE.group_size)
    qweight = np.array(matrix.tensors()["qweight"])
    changed = rebuilt(matrix, qweight=(qweight << 4 | qweight >> 4).astype(np.uint8))
    with pytest.raises(AssertionError, match="codes differ"):
        assert_same_codes(changed.codes(), matrix.codes(), scheme)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_swapped_rows_are_seen(scheme: Scheme) -> None:
    matrix = quantize(inputs.weights(CASE), scheme, CASE.group_size)
    order = [1, 0, 2, 3]
    tensors = {name: np.array(tensor)[order] for name, tensor in matrix.tensors().items()}
    changed = rebuilt(matrix, **tensors)
    with pytest.raises(AssertionError, match="codes differ"):
        assert_same_codes(changed.codes(), matrix.codes(), scheme)
    with pytest.raises(AssertionError, match="ulps apart"):
        assert_within_ulps(changed.scales(), matrix.scales(), 1, scheme)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_scale_two_ulps_off_is_seen(scheme: Scheme) -> None:
    matrix = quantize(inputs.weights(CASE), scheme, CASE.group_size)
    scales = np.array(matrix.tensors()["scales"])
    for ulps, outcome in ((1, "accepted"), (2, "refused")):
        scales[3, 1] = np.nextafter(scales[3, 1], np.float32(np.inf))
        changed = rebuilt(matrix, scales=scales).scales()
        if outcome == "accepted":
            assert_within_ulps(changed, matrix.scales(), 1, scheme)
        else:
            with pytest.raises(AssertionError, match=rf"{ulps} ulps apart at \(3, 1\)"):
                assert_within_ulps(changed, matrix.scales(), 1, scheme)


def test_zero_point_off_by_one_is_seen() -> None:
    matrix = quantize(inputs.weights(CASE), Scheme("int4_clip", asym=True), CASE.group_size)
    zero_points = np.array(matrix.tensors()["zero_points"])
    zero_points[1, 2] ^= 1
    changed = rebuilt(matrix, zero_points=zero_points)
    with pytest.raises(AssertionError, match=r"first at \(1, 2\)"):
        assert_same_codes(changed.zero_points(), matrix.zero_points(), CASE)
    with pytest.raises(AssertionError, match="ulps apart"):
        assert_within_ulps(changed.dequantize(), matrix.dequantize(), 1, CASE)


def test_ulp_distance() -> None:
    one, tiny = np.float32(1), np.float32(2.0**-149)
    pairs = [
        (one, one, 0),
        (one, np.nextafter(one, np.float32(2)), 1),
        (one, np.nextafter(one, np.float32(0)), 1),
        (np.float32(0.0), np.float32(-0.0), 0),
        (tiny, -tiny, 2),
        (np.float32(1), np.float32(2), 1 << 23),
    ]
    for a, b, distance in pairs:
        assert ulp_distance(np.array([a]), np.array([b]))[0] == distance
        assert ulp_distance(np.array([b]), np.array([a]))[0] == distance


def test_not_finite_and_wrong_shape_are_refused() -> None:
    scales = np.ones((2, 3), dtype=np.float32)
    with pytest.raises(AssertionError, match="not finite"):
        assert_within_ulps(np.full_like(scales, np.nan), scales, 1, "nan")
    with pytest.raises(AssertionError, match="shape"):
        assert_within_ulps(scales[:1], scales, 1, "shape")
    with pytest.raises(AssertionError, match="shape"):
        assert_same_codes(scales[:1], scales, "shape")
