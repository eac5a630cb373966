# SPDX-License-Identifier: Apache-2.0
"""The rounding that AutoRound tunes, and the tuning."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_support import llama, seed

import woq
from woq import AutoRoundConfig
from woq.algorithms.shared.tuned_rounding import Rounding
from woq.core.native import QuantScheme, code_values, dtype_names

SCHEMES = [(dtype, False) for dtype in dtype_names()] + [("int4_clip", True), ("int8", True)]


@pytest.fixture(autouse=True)
def _seed(request):
    seed(request)


def scheme(dtype, asym=False, group_size=16, scales="fp32"):
    return QuantScheme(dtype, group_size, "int" if asym else "none", scales)


def spread_over(tuned, values):
    """[N, G] -> [N, K]"""
    length = tuned.scheme.group_length(tuned.cols)
    return values.repeat_interleave(length, 1)[:, : tuned.cols]


def rounding(weight, settings):
    start = woq.quantize_rtn(weight, settings)
    return Rounding(weight, start, settings), start


@pytest.mark.parametrize("stored", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(("dtype", "asym"), SCHEMES)
@pytest.mark.parametrize(("cols", "group"), [(48, 16), (41, 16), (40, -1)])
def test_untouched_it_is_rtn(dtype, asym, cols, group, stored):
    settings = scheme(dtype, asym, group, stored)
    weight = torch.randn(7, cols)
    weight[3] = 0  # a row of zeros
    tuned, start = rounding(weight, settings)
    matrix = tuned.matrix()
    expected = torch.from_numpy(start.dequantize())
    # The same scales up to the last bit; a weight in the middle of two codes may go either way.
    off = (torch.from_numpy(matrix.dequantize()) - expected).abs()
    same = off <= 1e-5 * expected.abs()
    assert same.float().mean() > 0.99
    length = cols if group < 0 else group
    scale = torch.from_numpy(start.scales()).abs().repeat_interleave(length, 1)[:, :cols]
    widest = float(torch.from_numpy(code_values(dtype)).sort().values.diff().max())
    assert (off <= 1.001 * widest * scale).all()
    assert (matrix.scheme, matrix.nbytes) == (settings, start.nbytes)


@pytest.mark.parametrize(("dtype", "asym"), SCHEMES)
def test_double_quantization(dtype, asym):
    """The scales are encoded a second time, so nothing is the same, but the error is."""
    settings = scheme(dtype, asym, scales="double")
    weight = torch.randn(64, 96)
    tuned, start = rounding(weight, settings)
    matrix = tuned.matrix()
    assert matrix.scheme == settings
    before, after = (woq.error_metrics(weight, each)["mse"] for each in (start, matrix))
    # An 8-bit weight's error is nearly all in the scale: twice rounded, it is larger.
    assert after < (4 if dtype == "int8" else 1.05) * before


@pytest.mark.parametrize(("dtype", "asym"), SCHEMES)
@pytest.mark.parametrize("stored", ["fp32", "fp16"])
def test_the_matrix_is_what_was_tuned(dtype, asym, stored):
    settings = scheme(dtype, asym, scales=stored)
    tuned, start = rounding(torch.randn(9, 40), settings)
    with torch.no_grad():
        tuned.v.uniform_(-0.5, 0.5)
        tuned.low.uniform_(0.7, 1.1)
        tuned.high.uniform_(0.7, 1.1)
        expected = tuned.weight()
    got = torch.from_numpy(tuned.matrix().dequantize())
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    assert not torch.equal(got, torch.from_numpy(start.dequantize()))


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(SCHEMES), st.integers(0, 2**31 - 1))
def test_offsets_choose_between_neighbours(kind, number):
    dtype, asym = kind
    torch.manual_seed(number)
    weight = torch.randn(3, 32)
    tuned, start = rounding(weight, scheme(dtype, asym))
    with torch.no_grad():
        tuned.v.uniform_(-0.499, 0.499)
        moved = tuned.weight()
    # No code point lies strictly between a weight inside the range and what it is rounded to.
    values = torch.from_numpy(code_values(dtype))
    scales = torch.from_numpy(start.scales()).repeat_interleave(16, 1)
    if asym:
        zeros = torch.from_numpy(start.zero_points()).float().repeat_interleave(16, 1)
        top = 255.0 if dtype == "int8" else 15.0
        points = scales[..., None] * (torch.arange(top + 1) - zeros[..., None])
    else:
        points = scales[..., None] * values
    low, high = torch.minimum(weight, moved), torch.maximum(weight, moved)
    width = scales.abs()[..., None] * 1e-4
    between = (points > low[..., None] + width) & (points < high[..., None] - width)
    assert not between.any()


@pytest.mark.parametrize(("dtype", "asym"), SCHEMES)
@pytest.mark.parametrize("out", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cols", [48, 41])
def test_gradients(dtype, asym, out, cols):
    """The straight-through derivative is that of the same expression without round; the offsets
    move by the rate, against its sign."""
    settings = scheme(dtype, asym)
    weight = torch.randn(4, cols)
    tuned = Rounding(weight, woq.quantize_rtn(weight, settings), settings, out)
    upstream = torch.randn(4, cols).to(out)
    with torch.no_grad():
        tuned.v.uniform_(-0.45, 0.45)
        tuned.high.uniform_(0.6, 0.9)  # some weights lie outside of the range
    offsets = tuned.v.clone().requires_grad_(True)
    factors = tuned.ranges()
    for factor in factors:
        factor.requires_grad_(True)
    tuned.rate = 0.01
    value = tuned.weight()
    assert value.dtype == out
    value.backward(upstream)
    got = [factor.grad for factor in factors]

    scale, zero = tuned._range()
    x = weight / spread_over(tuned, scale)
    if zero is not None:
        q = x + offsets
        rounded = q + (q.round() - q).detach()
        spread = spread_over(tuned, zero)
        soft = torch.clamp(rounded + spread, 0, tuned._top) - spread
    else:
        # By the table: the value of the chosen point, with the slope of the gap it lies in.
        table = torch.from_numpy(np.unique(code_values(dtype)))
        left = torch.bucketize(x.detach(), table).sub(1).clamp(0, len(table) - 2)
        width = table[left + 1] - table[left]
        place = left + (x.detach() - table[left]) / width
        index = (place + offsets.detach()).round().clamp(0, len(table) - 1)
        inside = ((place + offsets.detach()).round() == index).float()
        # The value moves with x by 1, and with v by the width of the gap.
        line = inside * (x - x.detach() + width * (offsets - offsets.detach()))
        soft = table[index.long()] + line
    product = soft * spread_over(tuned, scale)
    tolerance = 1e-5 if out is torch.float32 else 2**-8
    torch.testing.assert_close(value.float(), product, rtol=tolerance, atol=1e-6)
    *expected, of_offsets = torch.autograd.grad(
        (product * upstream.float()).sum(), [*factors, offsets]
    )
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(tuned.v, offsets - 0.01 * of_offsets.sign())
    if dtype == "int4_clip":
        assert (of_offsets == 0).any()


def test_offsets_stay_between_the_neighbours():
    settings = scheme("int4_clip")
    weight = torch.randn(4, 32)
    tuned = Rounding(weight, woq.quantize_rtn(weight, settings), settings)
    tuned.rate = 0.3
    for _ in range(4):
        tuned.weight().backward(torch.randn(4, 32))
    assert tuned.v.abs().max() == 0.5


def test_the_core_refuses_other_shapes():
    settings = scheme("int4_clip")
    weight = torch.randn(4, 32)
    tuned = Rounding(weight, woq.quantize_rtn(weight, settings), settings)
    arguments = list(tuned.arguments(*tuned._range()))
    out = torch.empty(4, 32)
    woq.core.native.rounded_weight(*arguments, out=out)
    for place, wrong in ((1, torch.zeros(4, 31)), (2, torch.ones(4, 3)), (3, torch.ones(2, 4))):
        broken = [*arguments]
        broken[place] = wrong
        with pytest.raises(woq.InvalidArgument, match="must be a contiguous float32 array"):
            woq.core.native.rounded_weight(*broken, out=out)
    with pytest.raises(woq.InvalidArgument, match="4 x 32"):
        woq.core.native.rounded_weight(*arguments, out=torch.empty(3, 32))


# -- tuning ---------------------------------------------------------------------------------------


def calibrated(**fields):
    data = torch.randint(0, 128, (16, 32), generator=torch.Generator().manual_seed(5))
    return AutoRoundConfig(
        dataset=data, nsamples=16, seqlen=32, batch_size=4, group_size=16, **fields
    )


def tensors(model):
    return {
        name: layer.dequantize()
        for name, layer in model.named_modules()
        if isinstance(layer, woq.WeightOnlyLinear)
    }


@pytest.mark.parametrize(("dtype", "asym"), SCHEMES)
def test_no_steps_are_rtn(dtype, asym):
    bits = QuantScheme(dtype).bits
    torch.manual_seed(1)
    tuned = woq.quantize(llama(), calibrated(bits=bits, weight_dtype=dtype, sym=not asym, iters=0))
    torch.manual_seed(1)
    plain = woq.quantize(
        llama(),
        woq.RtnConfig(bits=bits, weight_dtype=dtype, sym=not asym, group_size=16),
    )
    expected = tensors(plain)
    for name, weight in tensors(tuned).items():
        assert torch.equal(weight, expected[name])


def planted(number, **sizes):
    """A small Llama with outlier channels in its embeddings."""
    torch.manual_seed(number)
    model = llama(initializer_range=0.1, **sizes)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, ::16] *= 8
    return model


def output_errors(config, models):
    ids = torch.randint(0, 128, (4, 32), generator=torch.Generator().manual_seed(9))
    total = 0.0
    for number in models:
        model = planted(number)
        with torch.no_grad():
            expected = model.model(ids).last_hidden_state
            got = woq.quantize(model, config).model(ids).last_hidden_state
        total += float((got - expected).square().mean() / expected.square().mean())
    return total / len(models)


@pytest.mark.parametrize(
    ("dtype", "asym"),
    [("int4_clip", False), ("int4_fullrange", False), ("int4_clip", True), ("nf4", False)],
)
def test_better_than_rtn_on_other_tokens(dtype, asym):
    models = range(3)
    tuned = output_errors(calibrated(weight_dtype=dtype, sym=not asym, iters=25), models)
    plain = output_errors(woq.RtnConfig(weight_dtype=dtype, sym=not asym, group_size=16), models)
    assert tuned < 0.9 * plain


@pytest.mark.parametrize("start", ["gptq", "rtn"])
def test_the_report_has_the_losses(start):
    model = woq.quantize(planted(0), calibrated(iters=20, start=start))
    better = [layer.loss < layer.start_loss for layer in model.woq_report.layers]
    assert all(better) if start == "rtn" else any(better)
    for layer in model.woq_report.layers:
        assert layer.algorithm == "AUTOROUND"
        assert 0 < layer.loss <= layer.start_loss
    assert "calibrated (14 x AUTOROUND): error of the outputs 0." in str(model.woq_report)


def test_a_start_that_is_better_is_kept():
    """With steps as long as the range the rounding is noise."""
    model = woq.quantize(planted(0), calibrated(iters=1, lr=0.5, minmax_lr=0.5))
    for layer in model.woq_report.layers:
        assert layer.loss <= layer.start_loss


def test_same_seed_same_result_for_any_number_of_threads():
    threads = torch.get_num_threads()
    # 256 x 256 elements are worth two threads of the core: 2^15 for each.
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
    results = []
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            results.append(tensors(woq.quantize(planted(0, **sizes), calibrated(iters=5))))
    finally:
        torch.set_num_threads(threads)
    for name, weight in results[1].items():
        assert torch.equal(weight, results[2][name])
    # torch's products are not the same bits for every number of threads; the codes nearly are.
    same = [float((results[0][name] == results[1][name]).float().mean()) for name in results[0]]
    assert sum(same) / len(same) > 0.9


@pytest.mark.parametrize("field", ["enable_minmax_tuning", "enable_quanted_input"])
def test_switches_change_the_result(field):
    one = tensors(woq.quantize(planted(0), calibrated(iters=5, lr=0.02)))
    other = tensors(woq.quantize(planted(0), calibrated(iters=5, lr=0.02, **{field: False})))
    assert any(not torch.equal(one[name], other[name]) for name in one)
