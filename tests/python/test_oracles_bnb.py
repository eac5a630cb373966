# SPDX-License-Identifier: Apache-2.0
"""nf4 and fp4_e2m1_bnb against bitsandbytes 0.50 on a CPU: codes and scales exactly.

The committed vectors (tests/oracles/generate_bnb.py) run everywhere, the live comparison where
bitsandbytes is installed.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from oracle_support import (
    ORACLE_SCHEMES,
    assert_same_codes,
    assert_within_ulps,
    core,
    inputs,
    load_vectors,
    quantize,
)

VECTORS = load_vectors("bnb.npz")
SCHEMES = pytest.mark.parametrize("scheme", inputs.TABLE_SCHEMES)


@pytest.fixture(scope="module")
def bnb() -> ModuleType:
    pytest.importorskip("torch")
    pytest.importorskip("bitsandbytes")
    import bnb_oracle

    return bnb_oracle


def test_inputs_are_those_of_the_vectors() -> None:
    assert inputs.digest(inputs.TABLE_CASES) == str(VECTORS["digest"])


@SCHEMES
def test_code_values(scheme: str) -> None:
    values = core.code_values(ORACLE_SCHEMES[scheme].dtype)
    assert_within_ulps(values, VECTORS[f"{scheme}.table"], 0, scheme)


@SCHEMES
def test_committed_vectors(scheme: str) -> None:
    element = block = 0
    for case in inputs.TABLE_CASES:
        if case.scheme != scheme:
            continue
        elements = case.rows * case.cols
        blocks = elements // case.group_size
        codes = VECTORS[f"{scheme}.codes"][element : element + elements]
        codes = codes.reshape(case.rows, case.cols)
        absmax = VECTORS[f"{scheme}.absmax"][block : block + blocks].reshape(case.rows, -1)
        matrix = quantize(inputs.weights(case), ORACLE_SCHEMES[scheme], case.group_size)
        assert_within_ulps(matrix.scales(), absmax, 0, case)
        assert_same_codes(matrix.codes(), codes, case)
        wrong = codes.copy()
        wrong[0, -1] ^= 8
        with pytest.raises(AssertionError, match="1 of"):
            assert_same_codes(matrix.codes(), wrong, case)
        element, block = element + elements, block + blocks
    assert element == VECTORS[f"{scheme}.codes"].size


@SCHEMES
def test_every_midpoint_and_its_neighbours(scheme: str) -> None:
    edges, codes = VECTORS[f"{scheme}.edges"], VECTORS[f"{scheme}.edge_codes"]
    assert_same_codes(quantize(edges, ORACLE_SCHEMES[scheme], 64).codes(), codes, scheme)
    # The vectors tell bitsandbytes' rule (multiply by the reciprocal) from a division.
    order = np.argsort(VECTORS[f"{scheme}.table"], kind="stable")
    values = VECTORS[f"{scheme}.table"][order]
    midpoints = (values[:-1] + values[1:]) / np.float32(2)
    absmax = np.abs(edges).max(axis=1, keepdims=True)
    reciprocal = order[np.searchsorted(midpoints, edges * (np.float32(1) / absmax))]
    assert_same_codes(reciprocal, codes, scheme)
    with pytest.raises(AssertionError, match="codes differ"):
        assert_same_codes(order[np.searchsorted(midpoints, edges / absmax)], codes, scheme)


@SCHEMES
@pytest.mark.parametrize("block", [32, 64, 128, 256, 512, 1024])
@pytest.mark.parametrize("kind", ["normal", "spike", "mixed", "zeros"])
def test_live(scheme: str, block: int, kind: str, bnb: ModuleType) -> None:
    case = inputs.Case(scheme, kind, 24, 1024, block)
    weight = inputs.weights(case)
    codes, absmax = bnb.quantize(weight, scheme, block)
    matrix = quantize(weight, ORACLE_SCHEMES[scheme], block)
    assert_within_ulps(matrix.scales(), absmax, 0, case)
    assert_same_codes(matrix.codes(), codes, case)
    restored = bnb.dequantize(codes, absmax, scheme, block)
    assert_within_ulps(matrix.dequantize(), restored, 0, case)


@SCHEMES
def test_live_one_group_per_row(scheme: str, bnb: ModuleType) -> None:
    case = inputs.Case(scheme, "normal", 8, 4096, -1)
    weight = inputs.weights(case)
    codes, absmax = bnb.quantize(weight, scheme, 4096)
    for group_size in (-1, 4096, 8192):
        matrix = quantize(weight, ORACLE_SCHEMES[scheme], group_size)
        assert_within_ulps(matrix.scales(), absmax, 0, case)
        assert_same_codes(matrix.codes(), codes, case)


@SCHEMES
def test_committed_vectors_are_what_bitsandbytes_says_now(scheme: str, bnb: ModuleType) -> None:
    assert_within_ulps(bnb.table(scheme), VECTORS[f"{scheme}.table"], 0, scheme)
    edges = bnb.near_midpoints(scheme)
    assert_within_ulps(edges, VECTORS[f"{scheme}.edges"], 0, scheme)
    codes, _ = bnb.quantize(edges, scheme, edges.shape[1])
    assert_same_codes(codes, VECTORS[f"{scheme}.edge_codes"], scheme)


@SCHEMES
def test_codes_of_zero(scheme: str) -> None:
    """An all-zero block has scale 0 and the code of 0; fp4's second zero is for what rounds to 0
    from above."""
    zero = {"nf4": 7, "fp4": 0}[scheme]
    tiny = {"nf4": 7, "fp4": 8}[scheme]
    weight = np.zeros((3, 64), dtype=np.float32)
    weight[1, ::2] = -0.0
    weight[2, :4] = [1.0, -0.0, 1e-9, -1e-9]
    matrix = quantize(weight, ORACLE_SCHEMES[scheme], 64)
    assert matrix.scales()[:, 0].tolist() == [0.0, 0.0, 1.0]
    assert (matrix.codes()[:2] == zero).all()
    assert matrix.codes()[2, 1:4].tolist() == [zero, tiny, zero]
    assert (matrix.dequantize()[:2].view(np.uint32) == 0).all()
