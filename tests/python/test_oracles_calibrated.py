# SPDX-License-Identifier: Apache-2.0
"""AWQ, TEQ, HQQ and importance-weighted rounding against plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
from oracle_support import SCHEMES, Scheme, core, inputs
from test_oracles_gptq import hessian_of, layer

EVERY_SCHEME = pytest.mark.parametrize("scheme", SCHEMES, ids=str)


def rtn(weight: np.ndarray, scheme: Scheme, group_size: int, **options: object) -> np.ndarray:
    """float32 [N, K]: dequantized."""
    matrix = core.quantize_rtn(weight, scheme.of(group_size), **options)
    return matrix.dequantize()


def output_error(weight: np.ndarray, approximation: np.ndarray, x: np.ndarray) -> float:
    y = x.astype(np.float64) @ (weight.astype(np.float64) - approximation).T
    return float((y**2).sum())


def scaled_rtn(weight: np.ndarray, s: np.ndarray, scheme: Scheme, group_size: int) -> np.ndarray:
    return rtn((weight * s).astype(np.float32), scheme, group_size) / s


@EVERY_SCHEME
@pytest.mark.parametrize("duo", ["off", "on"])
def test_awq_takes_the_best_alpha(scheme: Scheme, duo: str) -> None:
    """The grid of AutoAWQ, by the outputs themselves."""
    weight, x = layer(f"awq {scheme} {duo}", 24, 96)
    found = core.awq_scales(
        [weight[:10], weight[10:]], hessian_of(x), scheme.of(32), n_grid=10, duo_scaling=duo,
    )  # fmt: skip
    groups = np.abs(weight).reshape(24, 3, 32)
    w_mean = (groups / groups.max(axis=2, keepdims=True)).reshape(24, 96).mean(axis=0)
    x_mean = np.abs(x.astype(np.float64)).mean(axis=0)
    candidates = [np.ones(96, dtype=np.float32)]
    for i in range(10):
        alpha = i / 10
        s = x_mean**alpha / (w_mean ** (1 - alpha) + 1e-4 if duo == "on" else 1)
        s = np.maximum(s, 1e-4)
        candidates.append((s / np.sqrt(s.max() * s.min())).astype(np.float32))
    errors = [output_error(weight, scaled_rtn(weight, s, scheme, 32), x) for s in candidates]
    ours = output_error(weight, scaled_rtn(weight, found, scheme, 32), x)
    assert ours == pytest.approx(min(errors), rel=1e-3)
    # Scales are the same but for the last bit of pow().
    nearest = min(np.abs(found / s - 1).max() for s in candidates)
    assert nearest < 1e-6


@EVERY_SCHEME
def test_awq_clip_takes_the_best_range(scheme: Scheme) -> None:
    weight, x = layer(f"clip {scheme}", 12, 80)
    hessian = hessian_of(x)
    h = hessian.numpy()
    ours = core.awq_clip(weight, hessian, scheme.of(32))
    for start, stop in inputs.group_bounds(80, 32):
        group, block = weight[:, start:stop], h[start:stop, start:stop]
        best = np.full(12, np.inf)
        for step in range(11):
            ratio = np.float32(1 - step / 20)
            low, high = group.min(axis=1).clip(max=0), group.max(axis=1).clip(min=0)
            if not scheme.asym:
                high = np.maximum(-low, high)
                low = -high
            clipped = np.clip(group, (ratio * low)[:, None], (ratio * high)[:, None])
            d = group - rtn(clipped, scheme, -1)
            best = np.minimum(best, np.einsum("ni,ij,nj->n", d, block, d))
        d = group - rtn(np.ascontiguousarray(ours[:, start:stop]), scheme, -1)
        np.testing.assert_allclose(np.einsum("ni,ij,nj->n", d, block, d), best, rtol=1e-4)


@EVERY_SCHEME
def test_teq_lowers_the_output_error(scheme: Scheme) -> None:
    weight, x = layer(f"teq {scheme}", 40, 128)
    hessian = hessian_of(x)
    common = {"schemes": scheme.of(32)}
    scales = core.teq_scales([weight], hessian, **common)
    before = output_error(weight, rtn(weight, scheme, 32), x)
    after = output_error(weight, scaled_rtn(weight, scales, scheme, 32), x)
    assert after < 0.85 * before
    awq = core.awq_scales([weight], hessian, **common)
    both = core.teq_scales([weight], hessian, start=awq, **common)
    assert output_error(weight, scaled_rtn(weight, both, scheme, 32), x) <= 1.001 * output_error(
        weight, scaled_rtn(weight, awq, scheme, 32), x
    )


def test_scaled_hessian_is_that_of_scaled_inputs() -> None:
    """AWQ then GPTQ: the weight times s, the Hessian of x / s."""
    weight, x = layer("awq then gptq", 16, 96)
    hessian = hessian_of(x)
    s = core.awq_scales([weight], hessian, core.QuantScheme())
    scaled = hessian.scaled(1 / s)
    np.testing.assert_allclose(
        scaled.numpy(), hessian.numpy() / np.outer(s, s), rtol=1e-5, atol=1e-8
    )
    matrix = core.quantize_gptq((weight * s).astype(np.float32), scaled, core.QuantScheme())
    alone = core.quantize_gptq(weight, hessian, core.QuantScheme())
    assert output_error(weight, matrix.dequantize() / s, x) < 1.2 * output_error(
        weight, alone.dequantize(), x
    )


@EVERY_SCHEME
def test_importance_finds_scales_that_a_fine_grid_does_not_beat(scheme: Scheme) -> None:
    weight, x = layer(f"importance {scheme}", 30, 96)
    importance = (x.astype(np.float64) ** 2).mean(axis=0).astype(np.float32)

    def error(approximation: np.ndarray) -> np.ndarray:
        d = (weight.astype(np.float64) - approximation) ** 2 * importance
        return d.reshape(30, 3, 32).sum(axis=2)

    ours = error(rtn(weight, scheme, 32, importance=importance))
    assert (ours.sum() < error(rtn(weight, scheme, 32, mse_range=True)).sum()) or (scheme.bits == 8)
    # Symmetric 4-bit scales, brute force: 400 of them for each group, either sign where allowed.
    if scheme.asym or scheme.bits == 8:
        return
    groups = weight.reshape(90, 32).astype(np.float64)
    absmax = np.abs(groups).max(axis=1, keepdims=True)
    values = np.unique(scheme.values.astype(np.float64))
    best = np.full(90, np.inf)
    signs = (1, -1) if scheme.dtype in ("int4_fullrange", "nf4") else (1,)
    for ratio in np.linspace(0.3, 1.3, 400):
        for sign in signs:
            scale = sign * ratio * absmax / np.abs(values).max()
            nearest = np.abs((groups / scale)[..., None] - values).argmin(axis=-1)
            d = (groups - scale * values[nearest]) ** 2
            best = np.minimum(best, (d * np.tile(importance.reshape(3, 32), (30, 1))).sum(axis=1))
    assert ours.sum() < 1.02 * best.sum()


def paper_hqq(w: np.ndarray, scale: np.ndarray, zero: np.ndarray, steps: int) -> np.ndarray:
    """float64 [groups]: HQQ's best mean |error| for groups w [groups, length]."""
    best = np.full(len(w), np.inf)
    beta = 10.0
    for _ in range(steps + 1):
        q = np.clip(np.rint(w / scale[:, None] + zero[:, None]), 0, 15)
        r = w - scale[:, None] * (q - zero[:, None])
        best = np.minimum(best, np.abs(r).mean(axis=1))
        magnitude = np.abs(r)
        with np.errstate(divide="ignore"):
            e = np.sign(r) * np.maximum(magnitude - magnitude**-0.3 / beta, 0)
        zero = (q - (w - e) / scale[:, None]).mean(axis=1)
        beta *= 1.01
    return best


@pytest.mark.parametrize("magnitude", [0.02, 1.0])
def test_hqq_is_the_papers(magnitude: float) -> None:
    weight = (inputs.bell("hqq", 40, 128) * magnitude).astype(np.float32)
    matrix = core.quantize_hqq(weight, core.QuantScheme("int4_clip", 64, "float"))
    start = core.quantize_rtn(weight, dtype="int4_clip", asym=True, group_size=64)
    groups = weight.reshape(80, 64).astype(np.float64)
    expected = paper_hqq(
        groups,
        start.scales().reshape(-1).astype(np.float64),
        start.zero_points().reshape(-1).astype(np.float64),
        20,
    )
    ours = np.abs(groups - matrix.dequantize().reshape(80, 64)).mean(axis=1)
    np.testing.assert_allclose(ours, expected, rtol=1e-3)
    assert matrix.zero_points().dtype == np.float32
    assert ours.mean() < np.abs(groups - start.dequantize().reshape(80, 64)).mean()


def test_float_zero_points_come_back_from_their_tensors() -> None:
    weight = inputs.bell("hqq tensors", 8, 96).astype(np.float32)
    matrix = core.quantize_hqq(weight, core.QuantScheme("int4_clip", 32, "float"))
    facts = {"rows": 8, "cols": 96, "scheme": matrix.scheme}
    again = core.QuantizedMatrix.from_tensors(matrix.tensors(), **facts)
    np.testing.assert_array_equal(again.dequantize(), matrix.dequantize())
    linear = core.Linear(matrix)
    x, out = inputs.bell("x", 3, 96).astype(np.float32), np.empty((3, 8), dtype=np.float32)
    linear.forward(x, out)
    np.testing.assert_allclose(out, x @ matrix.dequantize().T, rtol=1e-3, atol=1e-3)
    tensors = dict(matrix.tensors())
    tensors["zero_points"] = np.full((8, 3), np.nan, dtype=np.float32)
    with pytest.raises(core.InvalidArgument, match="zero_points"):
        core.QuantizedMatrix.from_tensors(tensors, **facts)
