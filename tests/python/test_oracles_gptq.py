# SPDX-License-Identifier: Apache-2.0
"""GPTQ against the paper's formula in numpy: weights in flight, the upper Cholesky factor of the
inverse Hessian, one column after the other."""

from __future__ import annotations

import numpy as np
import pytest
from oracle_support import SCHEMES, Scheme, assert_same_codes, core, inputs

EVERY_SCHEME = pytest.mark.parametrize("scheme", SCHEMES, ids=str)


def layer(name: str, rows: int, cols: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 weight [N, K] and inputs [2 K, K]: correlated, one channel in 24 an outlier."""
    weight = (inputs.bell(name, rows, cols) * 0.02).astype(np.float32)
    x = inputs.bell(name + " x", 2 * cols, cols).astype(np.float64)
    for k in range(1, cols):
        x[:, k] += 0.7 * x[:, k - 1]
    x[:, 5::24] *= 20
    return weight, x.astype(np.float32)


def hessian_of(x: np.ndarray) -> core.Hessian:
    hessian = core.Hessian(x.shape[1])
    hessian.add(x)
    return hessian


def scale_and_zero(w: np.ndarray, scheme: Scheme) -> tuple[np.ndarray, np.ndarray]:
    """float32 [N] twice, for w [N, group]: the scale and the code that stands for zero."""
    f = np.float32
    w = w.astype(f)
    if scheme.asym:
        low, high = np.minimum(w.min(axis=1), f(0)), np.maximum(w.max(axis=1), f(0))
        scale = (high - low) / f(2**scheme.bits - 1)
        return scale, np.rint(-low / scale)
    absmax = np.abs(w).max(axis=1)
    divisor = {"int8": 127, "int4_clip": 7, "int4_fullrange": 8, "fp4_e2m1": 6}
    scale = absmax / f(divisor.get(scheme.dtype, 1))
    if scheme.dtype == "int4_fullrange":
        scale = np.where(np.abs(w.max(axis=1)) > np.abs(w.min(axis=1)), -scale, scale)
    return scale, np.full(len(w), scheme.center, dtype=f)


def quantize_column(
    w: np.ndarray, scale: np.ndarray, zero: np.ndarray, scheme: Scheme
) -> tuple[np.ndarray, np.ndarray]:
    """Codes [N] and the float32 values [N] that they stand for."""
    if scheme.is_integer:
        codes = np.clip(np.rint(w / scale) + zero, 0, 2**scheme.bits - 1).astype(np.int64)
        return codes, scale * (codes.astype(np.float32) - zero)
    values = scheme.values
    order = np.argsort(values, kind="stable")
    if scheme.dtype == "fp4_e2m1":
        order = order[order != 8]  # minus zero is never written
    distance = np.abs((w / scale)[:, None] - values[order].astype(np.float64))
    codes = order[distance.argmin(axis=1)]
    return codes, scale * values[codes]


def paper_gptq(
    weight: np.ndarray,
    h: np.ndarray,
    scheme: Scheme,
    group_size: int,
    order: np.ndarray,
    group: np.ndarray,
    static: bool,
    damp: float = 0.01,
    cross: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Codes and dequantized weights [N, K]. order [K]: columns in the order in which they are
    quantized; group [K]: of each column."""
    rows, cols = weight.shape
    w = weight.astype(np.float64)
    h = h + damp * np.mean(np.diag(h)) * np.eye(cols)
    inverse = np.linalg.inv(h[np.ix_(order, order)])
    u = np.linalg.cholesky(inverse).T
    p = np.zeros_like(u)
    if cross is not None:  # GPTAQ
        p = np.triu(cross[np.ix_(order, order)] @ u.T, 1) @ u
    w = w[:, order]
    codes = np.zeros((rows, cols), dtype=np.int64)
    result = np.zeros((rows, cols), dtype=np.float32)
    parameters: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for i, column in enumerate(order):
        g = int(group[column])
        if g not in parameters:
            members = group[order] == g
            source = weight[:, order] if static else w
            parameters[g] = scale_and_zero(source[:, members], scheme)
        codes[:, column], result[:, column] = quantize_column(w[:, i], *parameters[g], scheme)
        in_flight = w[:, i].copy()
        error = (in_flight - result[:, column]) / u[i, i]
        w[:, i:] -= np.outer(error, u[i, i:])
        w[:, i:] += np.outer(in_flight, p[i, i:])
    return codes, result


def natural_groups(cols: int, group_size: int) -> np.ndarray:
    return np.arange(cols) // (cols if group_size == -1 else group_size)


def plan(
    diagonal: np.ndarray, group_size: int, act_order: str, static: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The order of columns, and each column's group."""
    cols = len(diagonal)
    group = natural_groups(cols, group_size)
    if act_order == "none":
        return np.arange(cols), group
    if act_order == "desc":
        order = np.argsort(-diagonal, kind="stable")
        if not static:
            by_position = group.copy()
            group = np.empty_like(group)
            group[order] = by_position
        return order, group
    largest = [diagonal[group == g].max() for g in range(group.max() + 1)]
    parts = []
    for g in np.argsort(-np.array(largest), kind="stable"):
        members = np.flatnonzero(group == g)
        parts.append(members[np.argsort(-diagonal[members], kind="stable")])
    return np.concatenate(parts), group


def same_zero(codes: np.ndarray, scheme: Scheme) -> np.ndarray:
    """bitsandbytes' fp4 has two codes for zero."""
    return np.where(codes == 8, 0, codes) if scheme.dtype == "fp4_e2m1_bnb" else codes


def compare(
    name: str,
    scheme: Scheme,
    shape: tuple[int, int],
    group_size: int,
    act_order: str = "none",
    static: bool = False,
    fp64: bool = True,
) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Our codes, the paper's, and both errors."""
    weight, x = layer(name, *shape)
    hessian = hessian_of(x)
    h = hessian.numpy()
    order, group = plan(np.diag(h), group_size, act_order, static)
    codes, approximation = paper_gptq(weight, h, scheme, group_size, order, group, static)
    matrix = core.quantize_gptq(
        weight,
        hessian,
        scheme.of(group_size),
        act_order=act_order,
        static_groups=static,
        fp64=fp64,
    )
    errors = [
        core.layer_error(weight, q.astype(np.float32), hessian)
        for q in (matrix.dequantize(), approximation)
    ]
    return same_zero(matrix.codes(), scheme), same_zero(codes, scheme), errors[0], errors[1]


@EVERY_SCHEME
@pytest.mark.parametrize("group_size", [-1, 32, 48])
@pytest.mark.parametrize("act_order", ["none", "desc", "group_aware"])
@pytest.mark.parametrize("static", [False, True])
def test_every_code_is_the_papers(
    scheme: Scheme, group_size: int, act_order: str, static: bool
) -> None:
    label = f"{scheme} g{group_size} {act_order} static={static}"
    ours, paper, _, _ = compare(label, scheme, (12, 120), group_size, act_order, static)
    assert_same_codes(ours, paper, label)


@EVERY_SCHEME
@pytest.mark.parametrize("group_size", [-1, 128])
def test_every_code_is_the_papers_in_a_larger_layer(scheme: Scheme, group_size: int) -> None:
    ours, paper, _, _ = compare(f"large {scheme}", scheme, (64, 256), group_size)
    assert_same_codes(ours, paper, scheme)


@EVERY_SCHEME
@pytest.mark.parametrize("group_size", [-1, 32])
@pytest.mark.parametrize("act_order", ["none", "desc", "group_aware"])
def test_single_precision(scheme: Scheme, group_size: int, act_order: str) -> None:
    label = f"fp32 {scheme} g{group_size} {act_order}"
    ours, paper, error, expected = compare(
        label, scheme, (96, 512), group_size, act_order, fp64=False
    )
    assert (ours == paper).mean() >= 0.999, f"{label}: {(ours != paper).sum()} codes differ"
    assert error == pytest.approx(expected, rel=1e-3), label


def test_gptaq_is_the_papers() -> None:
    scheme = Scheme("int4_clip")
    weight, x = layer("gptaq", 16, 160)
    quantized = (x * 0.9 + inputs.bell("gptaq noise", *x.shape)).astype(np.float32)
    hessian = hessian_of(quantized)
    cross = core.CrossMoment(160)
    cross.add(x, quantized)
    moment = 2 / len(x) * (x - quantized).astype(np.float64).T @ quantized.astype(np.float64)
    for alpha in (0.25, 1.0):
        codes, _ = paper_gptq(
            weight, hessian.numpy(), scheme, 32, np.arange(160), natural_groups(160, 32), False,
            cross=alpha * moment,
        )  # fmt: skip
        matrix = core.quantize_gptq(
            weight, hessian, scheme.of(32), cross=cross, gptaq_alpha=alpha, fp64=True
        )
        different = (matrix.codes() != codes).mean()
        assert different < 0.002, alpha  # the moment is accumulated in fp32


@EVERY_SCHEME
@pytest.mark.parametrize("act_order", ["none", "group_aware"])
def test_weights_in_flight_round_to_the_codes(scheme: Scheme, act_order: str) -> None:
    """What `in_flight` gets is what was rounded: no code point of its group lies nearer."""
    rows, cols, group = 24, 96, 32
    weight, x = layer("in flight", rows, cols)
    moved = np.zeros_like(weight)
    keywords = {"scheme": scheme.of(group), "act_order": act_order}
    matrix = core.quantize_gptq(weight, hessian_of(x), in_flight=moved, **keywords)
    values = matrix.dequantize()
    assert np.array_equal(
        values, core.quantize_gptq(weight, hessian_of(x), **keywords).dequantize()
    )
    assert not np.allclose(moved, weight)
    if act_order == "none":
        assert np.array_equal(moved[:, 0], weight[:, 0])  # nothing had moved it yet
    scales, zeros = matrix.scales(), matrix.zero_points()
    for n in range(rows):
        for g in range(cols // group):
            mine = slice(g * group, (g + 1) * group)
            points = scheme.values.astype(np.float64)
            if zeros is not None:
                points = np.arange(2.0**scheme.bits) - zeros[n, g]
            points = np.sort(points * scales[n, g])
            w = moved[n, mine].astype(np.float64)
            nearest = np.abs(w[:, None] - points).min(axis=1)
            # Ties, and the float32 rounding of w / scale.
            slack = np.abs(points).max() * 2.0**-20
            assert (np.abs(w - values[n, mine]) <= nearest + slack).all()


def test_in_flight_of_another_shape_is_refused() -> None:
    weight, x = layer("in flight", 24, 96)
    with pytest.raises(core.InvalidArgument, match=r"in_flight must be .* \[24, 96\]"):
        core.quantize_gptq(
            weight, hessian_of(x), core.QuantScheme("nf4"), in_flight=np.zeros((24, 95), np.float32)
        )


def test_hessian_is_the_sum_of_products() -> None:
    _, x = layer("hessian", 1, 100)
    hessian = core.Hessian(100, "proj")
    hessian.add(x[:77])
    hessian.add(x[77:], num_threads=2)
    wide = x.astype(np.float64)
    expected = 2 / len(x) * wide.T @ wide
    spread = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    assert (np.abs(hessian.numpy() - expected) <= 1e-6 * spread).all()
    np.testing.assert_allclose(hessian.mean_magnitudes(), np.abs(wide).mean(axis=0), rtol=1e-12)
    assert hessian.rows == len(x)
    again = core.Hessian.from_numpy(hessian.numpy(), hessian.rows, hessian.mean_magnitudes())
    np.testing.assert_allclose(again.numpy(), hessian.numpy(), rtol=1e-12)
    x[3, 9] = np.nan
    with pytest.raises(core.InvalidArgument, match=r"'proj' hold a non-finite .* row 3, column 9"):
        hessian.add(x)


def test_layer_error_is_the_output_error() -> None:
    weight, x = layer("error", 20, 600)
    approximation = (weight + 0.001 * inputs.bell("noise", 20, 600)).astype(np.float32)
    y, z = (x.astype(np.float64) @ w.T.astype(np.float64) for w in (weight, approximation))
    expected = ((y - z) ** 2).sum() / (y**2).sum()
    assert core.layer_error(weight, approximation, hessian_of(x)) == pytest.approx(
        expected, rel=1e-4
    )
