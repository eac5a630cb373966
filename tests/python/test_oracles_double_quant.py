# SPDX-License-Identifier: Apache-2.0
"""Double quantization of scales against bitsandbytes' nested statistics.

Our codes are those of bitsandbytes' exact path (nearest entry of its 8-bit map, a midpoint goes
down). Its CPU kernel rounds the value to a grid of 65535 steps before the look-up; we agree with
that to within the grid.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from oracle_support import (
    SCHEMES,
    Scheme,
    assert_same_codes,
    assert_within_ulps,
    inputs,
    load_vectors,
    quantize,
)

VECTORS = load_vectors("bnb.npz")
MAP = VECTORS["dynamic_map"]
BLOCK = 256
# The kernel's grid on [-1, 1]: a value moves by half a step at most, plus float32's rounding of it.
GRID = 1 / 65535 + 2.0**-23
CASES = pytest.mark.parametrize("index", range(len(inputs.NESTED_CASES)))


@pytest.fixture(scope="module")
def bnb() -> ModuleType:
    pytest.importorskip("torch")
    pytest.importorskip("bitsandbytes")
    import bnb_oracle

    return bnb_oracle


def stored(case: inputs.Case) -> dict[str, np.ndarray]:
    matrix = quantize(inputs.weights(case), Scheme(case.scheme), case.group_size, "double")
    return {name: np.array(tensor) for name, tensor in matrix.tensors().items()}


def plain_decode(tensors: dict[str, np.ndarray]) -> np.ndarray:
    """float32 [N * G]: magnitudes, each product and each sum rounded on its own."""
    codes = tensors["scales"].reshape(-1)
    absmax = np.repeat(tensors["scales_absmax"], BLOCK)[: codes.size]
    return MAP[codes] * absmax + tensors["scales_offset"][0]


def test_inputs_are_those_of_the_vectors() -> None:
    assert inputs.digest(inputs.NESTED_CASES) == str(VECTORS["nested_digest"])


@CASES
def test_offset_is_the_mean(index: int) -> None:
    """torch sums in float32 by a tree: its relative error is one eps per level at most."""
    case = inputs.NESTED_CASES[index]
    plain = quantize(inputs.weights(case), Scheme(case.scheme), case.group_size).scales()
    tensors = stored(case)
    exact = np.float32(plain.astype(np.float64).mean())
    assert_within_ulps(tensors["scales_offset"], exact.reshape(1), 1, case)
    levels = int(np.ceil(np.log2(plain.size)))
    theirs = VECTORS[f"nested{index}.offset"].reshape(1)
    assert_within_ulps(tensors["scales_offset"], theirs, levels, case)


@CASES
def test_codes_are_the_nearest_entries(index: int) -> None:
    """Against the definition, with our own offset: off by one nowhere."""
    case = inputs.NESTED_CASES[index]
    plain = quantize(inputs.weights(case), Scheme(case.scheme), case.group_size).scales()
    tensors = stored(case)
    centred = plain.reshape(-1) - tensors["scales_offset"][0]
    midpoints = (MAP[:-1] + MAP[1:]) / np.float32(2)
    for b, start in enumerate(range(0, centred.size, BLOCK)):
        part = centred[start : start + BLOCK]
        absmax = np.abs(part).max()
        assert_within_ulps(tensors["scales_absmax"][b : b + 1], absmax.reshape(1), 0, case)
        x = np.clip(part * (np.float32(1) / absmax), -1, 1)
        codes = tensors["scales"].reshape(-1)[start : start + BLOCK]
        assert_same_codes(codes, np.searchsorted(midpoints, x), case)


@CASES
def test_committed_vectors(index: int) -> None:
    """The vectors have torch's offset, which can differ from ours in the last place: then a value
    beside a midpoint may take the neighbouring entry, and none may take another."""
    case = inputs.NESTED_CASES[index]
    tensors = stored(case)
    codes = tensors["scales"].reshape(-1).astype(int)
    nearest = VECTORS[f"nested{index}.nearest_codes"].astype(int)
    assert codes.shape == nearest.shape
    same_offset = tensors["scales_offset"][0] == VECTORS[f"nested{index}.offset"]
    assert np.abs(codes - nearest).max() <= (0 if same_offset else 1)
    assert (codes != nearest).mean() <= 0.01
    blocks = np.arange(codes.size) // BLOCK
    absmax = tensors["scales_absmax"][blocks]
    # Both are within half a step of the map, or of the map and the grid, of the same value.
    kernel = MAP[VECTORS[f"nested{index}.kernel_codes"]] * VECTORS[f"nested{index}.absmax"][blocks]
    exact = VECTORS[f"nested{index}.decoded"] - VECTORS[f"nested{index}.offset"]
    ours = plain_decode(tensors) - tensors["scales_offset"][0]
    eps = 8 * np.finfo(np.float32).eps * (np.abs(tensors["scales_offset"][0]) + absmax)
    if same_offset:
        assert (np.abs(ours - exact) <= eps).all()
    true = quantize(inputs.weights(case), Scheme(case.scheme), case.group_size).scales()
    true = true.reshape(-1) - tensors["scales_offset"][0]
    assert (np.abs(ours - true) <= np.abs(kernel - true) + eps).all()
    assert (np.abs(kernel - true) <= np.abs(ours - true) + absmax * GRID + eps).all()


@CASES
def test_live(index: int, bnb: ModuleType) -> None:
    """With our offset handed to bitsandbytes, codes, block maxima and decoded scales are equal."""
    case = inputs.NESTED_CASES[index]
    matrix = quantize(inputs.weights(case), Scheme(case.scheme), case.group_size, "double")
    tensors = stored(case)
    _, absmax = bnb.quantize(inputs.weights(case), case.scheme, case.group_size)
    offset = tensors["scales_offset"][0]
    centred = absmax.reshape(-1) - offset
    codes = tensors["scales"].reshape(-1)
    assert_same_codes(codes, bnb.nested_nearest(centred), case)
    _, block_absmax = bnb.nested_kernel(centred)
    assert_within_ulps(tensors["scales_absmax"], block_absmax, 0, case)
    decoded = bnb.nested_decode(codes, block_absmax, offset)
    assert_within_ulps(matrix.scales().reshape(-1), decoded, 0, case)


def test_value_on_a_midpoint_goes_down() -> None:
    """Scales with mean 1/4 and block maximum 1, and between them exact midpoints of the map."""
    between = MAP[:-1].astype(np.float64) + MAP[1:]
    exact = (between / 2).astype(np.float32).astype(np.float64) * 2 == between
    # From 1/2 to 3/4 the sum with 1/4 is exact, so the midpoint comes back when the mean goes off.
    lower = np.flatnonzero(exact & (between >= 1.0) & (between < 1.5))
    assert lower.size >= 5
    scales = np.empty(BLOCK)
    scales[0] = 1.25
    scales[1 : 1 + lower.size] = 0.25 + between[lower] / 2
    scales[1 + lower.size :] = (0.25 * BLOCK - scales[: 1 + lower.size].sum()) / (
        BLOCK - 1 - lower.size
    )
    weight = np.zeros((1, 16 * BLOCK), dtype=np.float32)
    weight[0, ::16] = scales
    tensors = {
        name: np.array(tensor)
        for name, tensor in quantize(weight, Scheme("nf4"), 16, "double").tensors().items()
    }
    assert tensors["scales_offset"].tolist() == [0.25]
    assert tensors["scales_absmax"].tolist() == [1.0]
    assert_same_codes(tensors["scales"][0, 1 : 1 + lower.size], lower, "midpoints")
    assert tensors["scales"][0, 0] == 255


def test_map_is_bitsandbytes_map(bnb: ModuleType) -> None:
    assert_within_ulps(bnb.dynamic_map(), MAP, 0, "map")
    assert (np.diff(MAP) > 0).all()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("rows", [1, 4, 33, 90])
def test_every_scheme_decodes_by_the_formula(scheme: Scheme, rows: int) -> None:
    case = inputs.Case(str(scheme), "normal", rows, 250, 32)
    matrix = quantize(inputs.weights(case), scheme, case.group_size, "double")
    tensors = {name: np.array(tensor) for name, tensor in matrix.tensors().items()}
    magnitude = plain_decode(tensors).reshape(rows, -1)
    signed = scheme.dtype == "int4_fullrange" and not scheme.asym
    assert ("scales_sign" in tensors) == signed
    if signed:
        bits = np.unpackbits(tensors["scales_sign"], bitorder="little")[: magnitude.size]
        magnitude = np.where(bits.reshape(magnitude.shape) == 1, -magnitude, magnitude)
        plain = quantize(inputs.weights(case), scheme, case.group_size).scales()
        assert ((plain < 0) == (bits.reshape(plain.shape) == 1)).all()
    assert_within_ulps(matrix.scales(), magnitude, 0, case)


def test_wrong_code_and_wrong_offset_are_seen() -> None:
    case = inputs.NESTED_CASES[1]
    matrix = quantize(inputs.weights(case), Scheme(case.scheme), case.group_size, "double")
    for name in ("scales", "scales_absmax", "scales_offset"):
        tensors = stored(case)
        flat = tensors[name].reshape(-1)
        flat[0] = flat[0] ^ 1 if name == "scales" else np.nextafter(flat[0], np.float32(9)) * 1.001
        with pytest.raises(AssertionError, match="ulps apart"):
            assert_within_ulps(matrix.scales().reshape(-1), plain_decode(tensors), 0, name)
