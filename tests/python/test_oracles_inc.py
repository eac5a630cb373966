# SPDX-License-Identifier: Apache-2.0
"""Integer dtypes against neural-compressor 2.6: codes and zero points exactly, scales to one ulp.

tests/oracles/generate_inc.py made the vectors.
"""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np
import pytest
from oracle_support import (
    ORACLE_SCHEMES,
    Scheme,
    assert_same_codes,
    assert_within_ulps,
    inputs,
    load_vectors,
    quantize,
)

VECTORS = load_vectors("inc.npz")


def expected(
    scheme: str,
) -> Iterator[tuple[inputs.Case, np.ndarray, np.ndarray, np.ndarray | None]]:
    """Per case: codes [N, K] (offset binary, as ours), scales [N, G], zero points [N, G]."""
    ours = ORACLE_SCHEMES[scheme]
    element = group = 0
    for case in inputs.INTEGER_CASES:
        if case.scheme != scheme:
            continue
        groups = len(inputs.group_bounds(case.cols, case.group_size))
        elements, scales = case.rows * case.cols, case.rows * groups
        codes = VECTORS[f"{scheme}.quants"][element : element + elements]
        codes = codes.reshape(case.rows, case.cols)
        zero_points = None
        if ours.asym:
            zero_points = VECTORS[f"{scheme}.zero_points"][group : group + scales]
            zero_points = zero_points.reshape(case.rows, groups)
        else:
            codes = codes + ours.center
        yield (
            case,
            codes,
            VECTORS[f"{scheme}.scales"][group : group + scales].reshape(case.rows, groups),
            zero_points,
        )
        element, group = element + elements, group + scales
    assert element == VECTORS[f"{scheme}.quants"].size


def test_inputs_are_those_of_the_vectors() -> None:
    assert inputs.digest(inputs.INTEGER_CASES) == str(VECTORS["digest"])
    assert inputs.digest(inputs.SEARCH_CASES) == str(VECTORS["search_digest"])


@pytest.mark.parametrize("scheme", inputs.INTEGER_SCHEMES)
def test_codes_scales_and_zero_points(scheme: str) -> None:
    ours = ORACLE_SCHEMES[scheme]
    for case, codes, scales, zero_points in expected(scheme):
        matrix = quantize(inputs.weights(case), ours, case.group_size)
        assert_within_ulps(matrix.scales(), scales, 1, case)
        if zero_points is not None:
            assert_same_codes(matrix.zero_points(), zero_points, case)
        assert_same_codes(matrix.codes(), codes, case)


def test_both_int4_names_have_one_asymmetric_form() -> None:
    for case, codes, scales, zero_points in expected("int4_asym"):
        matrix = quantize(
            inputs.weights(case), Scheme("int4_fullrange", asym=True), case.group_size
        )
        assert_same_codes(matrix.codes(), codes, case)
        assert_same_codes(matrix.zero_points(), zero_points, case)
        assert_within_ulps(matrix.scales(), scales, 1, case)


@pytest.mark.parametrize("scheme", inputs.INTEGER_SCHEMES)
def test_one_wrong_code_anywhere_is_seen(scheme: str) -> None:
    """The vectors reach every matrix: a change of one code makes the comparison fail."""
    ours = ORACLE_SCHEMES[scheme]
    for case, codes, _, _ in expected(scheme):
        matrix = quantize(inputs.weights(case), ours, case.group_size)
        wrong = codes.copy()
        wrong[-1, -1] ^= 1
        with pytest.raises(AssertionError, match="1 of"):
            assert_same_codes(matrix.codes(), wrong, case)


@pytest.mark.parametrize("scheme", inputs.INTEGER_SCHEMES)
def test_division_is_not_a_multiplication_by_the_reciprocal(scheme: str) -> None:
    """The near-tie vectors tell the two apart; without that the comparison above proves less."""
    seen = 0
    for case, codes, scales, zero_points in expected(scheme):
        if case.kind != "near_ties":
            continue
        weight = inputs.weights(case)
        for g, (start, stop) in enumerate(inputs.group_bounds(case.cols, case.group_size)):
            zero = ORACLE_SCHEMES[scheme].center if zero_points is None else zero_points[:, [g]]
            inverse = np.float32(1) / scales[:, [g]]
            wrong = np.rint(weight[:, start:stop] * inverse) + zero
            wrong = np.clip(wrong, 0, 255 if "int8" in scheme else 15)
            seen += int((wrong != codes[:, start:stop]).sum())
    assert seen > 50


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
@pytest.mark.parametrize("scheme", inputs.INTEGER_SCHEMES)
def test_half_precision_weights_are_their_float32_values(scheme: str, kind: str) -> None:
    dtype = np.float16 if kind == "fp16" else ml_dtypes.bfloat16
    ours = ORACLE_SCHEMES[scheme]
    for cols, group_size in ((129, 32), (64, -1)):
        case = inputs.Case(scheme, "normal", 5, cols, group_size)
        half = inputs.weights(case).astype(dtype)
        direct = quantize(half, ours, group_size)
        through = quantize(half.astype(np.float32), ours, group_size)
        assert_same_codes(direct.codes(), through.codes(), case)
        assert_within_ulps(direct.scales(), through.scales(), 0, case)


def test_search_is_at_least_as_good_as_one_ratio_per_layer() -> None:
    """With one group per matrix ours searches the same grid and wider ranges: never more error."""
    moved = 0
    for case, ratio, mse in zip(
        inputs.SEARCH_CASES, VECTORS["search_ratio"], VECTORS["search_mse"], strict=True
    ):
        weight = inputs.weights(case)
        ours = ORACLE_SCHEMES[case.scheme]
        searched = quantize(weight, ours, case.group_size, mse_range=True)
        error = np.square(weight.astype(np.float64) - searched.dequantize()).mean()
        # Either side sums squares in float32; that decides between candidates of equal error.
        slack = case.cols * np.finfo(np.float32).eps
        assert error <= mse * (1 + slack), f"{case}: mse {error}, with ratio {ratio} {mse}"
        plain = quantize(weight, ours, case.group_size)
        moved += bool(np.abs(searched.scales()) != np.abs(plain.scales()))
    assert moved >= np.count_nonzero(VECTORS["search_ratio"] < 1) - 2
