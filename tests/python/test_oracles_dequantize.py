# SPDX-License-Identifier: Apache-2.0
"""dequantize() and error_metrics() against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from oracle_support import (
    SCALE_KINDS,
    SCHEMES,
    Scheme,
    assert_within_ulps,
    core,
    decode,
    inputs,
    quantize,
)

EVERY_SCHEME = pytest.mark.parametrize("scheme", SCHEMES, ids=str)


@EVERY_SCHEME
@pytest.mark.parametrize("scale_kind", SCALE_KINDS)
@pytest.mark.parametrize("group_size", [-1, 16, 32, 128])
def test_dequantize_is_scale_times_value(scheme: Scheme, scale_kind: str, group_size: int) -> None:
    for rows, cols in ((5, 257), (3, 64), (1, 1), (2, 31)):
        case = inputs.Case(str(scheme), "normal", rows, cols, group_size)
        matrix = quantize(inputs.weights(case), scheme, group_size, scale_kind)
        values, scales = decode(matrix, scheme)
        # One rounding: the product's.
        assert_within_ulps(matrix.dequantize(), scales * values, 0, f"{case} {scale_kind}")


@pytest.mark.parametrize("scheme", [s for s in SCHEMES if s.is_integer], ids=str)
def test_integer_codes_are_offset_binary(scheme: Scheme) -> None:
    levels = np.arange(1 << scheme.bits) - scheme.center
    assert scheme.values.tolist() == levels.tolist()


@EVERY_SCHEME
@pytest.mark.parametrize("kind", ["normal", "spike", "one_sided"])
def test_error_metrics(scheme: Scheme, kind: str) -> None:
    case = inputs.Case(str(scheme), kind, 7, 193, 32)
    weight = inputs.weights(case)
    matrix = quantize(weight, scheme, case.group_size)
    difference = weight.astype(np.float64) - matrix.dequantize()
    mse = np.square(difference).mean()
    sqnr = 10 * np.log10(np.square(weight.astype(np.float64)).mean() / mse)
    metrics = core.error_metrics(weight, matrix)
    # Sums of non-negative doubles: their order changes them by count * eps at most.
    rounding = weight.size * np.finfo(np.float64).eps
    assert metrics["mse"] == pytest.approx(mse, rel=rounding)
    assert metrics["sqnr_db"] == pytest.approx(sqnr, abs=10 * rounding)
    assert metrics["max_abs"] == np.abs(difference).max()
    assert metrics["mse"] > 0


def test_error_metrics_see_one_wrong_code() -> None:
    case = inputs.Case("metrics", "normal", 4, 64, 32)
    weight = inputs.weights(case)
    matrix = quantize(weight, Scheme("int4_clip"), case.group_size)
    tensors = {name: np.array(tensor) for name, tensor in matrix.tensors().items()}
    tensors["qweight"][1, 5] ^= 0x08
    wrong = core.QuantizedMatrix.from_tensors(
        tensors,
        rows=4,
        cols=64,
        scheme=core.QuantScheme("int4_clip", 32),
    )
    before, after = (core.error_metrics(weight, m) for m in (matrix, wrong))
    assert after["mse"] > before["mse"]
    assert after["sqnr_db"] < before["sqnr_db"]
    assert after["max_abs"] > before["max_abs"]


def test_error_metrics_without_error() -> None:
    weight = np.tile(np.arange(-8, 8, dtype=np.float32) / 4, (3, 2))
    matrix = quantize(weight, Scheme("int4_fullrange"), 16)
    assert core.error_metrics(weight, matrix) == {"mse": 0.0, "sqnr_db": np.inf, "max_abs": 0.0}


@EVERY_SCHEME
def test_search_never_adds_error_to_a_group(scheme: Scheme) -> None:
    case = inputs.Case(str(scheme), "normal", 12, 200, 32)
    weight = inputs.weights(case)
    bounds = inputs.group_bounds(case.cols, case.group_size)
    plain, searched = (
        np.square(
            weight.astype(np.float64)
            - quantize(weight, scheme, case.group_size, mse_range=search).dequantize()
        )
        for search in (False, True)
    )
    gains = 0
    for start, stop in bounds:
        before, after = plain[:, start:stop].sum(axis=1), searched[:, start:stop].sum(axis=1)
        # The search sums a group in float32.
        slack = (stop - start) * np.finfo(np.float32).eps
        assert (after <= before * (1 + slack)).all(), scheme
        gains += int((after < before * 0.999).sum())
    assert gains > 0
