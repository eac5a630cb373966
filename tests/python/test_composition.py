# SPDX-License-Identifier: Apache-2.0
"""AWQ and TEQ followed by GPTQ, GPTAQ in the driver, and damping that had to be raised."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from model_support import llama, logits, mixtral, seed

pytest.importorskip("transformers")

import woq
from woq import AwqConfig, GPTQConfig, InvalidArgument, TeqConfig, WeightOnlyQuantConfig
from woq.algorithms.awq import quantize_block as awq_block
from woq.algorithms.gptq import round_columns
from woq.algorithms.shared import scaled
from woq.algorithms.shared.scaled import _group, rounding_of
from woq.core import native
from woq.modules.targets import Target, select
from woq.observe.block import Block, for_calibration
from woq.observe.moments import Moments, moments
from woq.observe.recorder import capture, segments

DATA = torch.randint(0, 128, (24, 32), generator=torch.Generator().manual_seed(5))
COMMON = {"dataset": DATA, "nsamples": 16, "seqlen": 32, "batch_size": 4, "group_size": 16}


@pytest.fixture(autouse=True)
def _seed(request):
    seed(request)


def linear_target(rows, cols, **overrides):
    scheme = native.QuantScheme("int4_clip", 16).replace(**overrides)
    return Target("layer", torch.nn.Linear(cols, rows, bias=False), scheme, False, False)


def planted_hessian(cols, samples=256):
    """Correlated inputs, a few channels 20 times as large as the others."""
    x = torch.randn(samples, cols) + 0.5 * torch.randn(samples, 1)
    x[:, ::12] *= 20
    hessian = native.Hessian(cols)
    hessian.add(x)
    return hessian


# -- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [AwqConfig, TeqConfig])
def test_the_configs_write_it(cls):
    config = cls(then="gptq", gptq_args={"damp_percent": 0.05}, nsamples=4)
    name = config.algorithm.partition("+")[0]
    assert config.algorithm == f"{name}+GPTQ"
    assert config.algorithm_args["damp_percent"] == 0.05
    assert config.algorithm_args["nsamples"] == 4
    assert config.stores_act_scales
    assert cls.from_dict(config.to_dict()) == config
    plain = WeightOnlyQuantConfig.from_dict(config.to_dict())
    assert plain == config
    assert WeightOnlyQuantConfig(algorithm=f"{name.lower()}+gptq").algorithm == config.algorithm
    with pytest.raises(InvalidArgument, match="cannot read"):
        GPTQConfig.from_dict(config.to_dict())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"then": "rtn"}, "then must be 'gptq' or None, got 'rtn'"),
        ({"gptq_args": {}}, "needs then='gptq'"),
        ({"then": "gptq", "gptq_args": {"seqlen": 4}}, "an argument of AwqConfig itself"),
        ({"then": "gptq", "gptq_args": {"dampp": 4}}, "no option 'dampp'; did you mean 'damp_per"),
        ({"then": "gptq", "gptq_args": [1]}, "must be a dict"),
    ],
)
def test_errors(fields, said):
    with pytest.raises(InvalidArgument, match=said):
        AwqConfig(**fields)


# -- AWQ+GPTQ, TEQ+GPTQ ---------------------------------------------------------------------------


def identical(one, other):
    one, other = one.tensors(), other.tensors()
    return all(np.array_equal(one[name], other[name]) for name in other)


def test_identity_hessian_and_alpha_zero_are_plain_gptq():
    """alpha = 0 without duo scaling is s = 1; a Hessian without correlations moves nothing: what
    is left is round to nearest."""
    options = {"n_grid": 1, "duo_scaling": False, "apply_clip": False}
    config = WeightOnlyQuantConfig(
        "int4_clip", algorithm="AWQ+GPTQ", algorithm_args=options, mse_range=False
    )
    plain = WeightOnlyQuantConfig("int4_clip", algorithm="GPTQ", mse_range=False)
    target = linear_target(24, 64)
    weight = target.module.weight.detach()
    for hessian in (native.Hessian.from_numpy(np.eye(64), 1), planted_hessian(64)):
        (finished,) = one_group([target], Moments(hessian), config)
        expected, _ = round_columns(weight, plain, target, Moments(hessian))
        assert identical(finished.matrix, expected)
        nearest = native.quantize_rtn(weight, target.scheme)
        assert identical(finished.matrix, nearest) == (hessian.rows == 1)


def one_group(targets, seen, config):
    """AWQ of layers that share an input, without a model around them."""
    calls = {}

    def grouped(block, config, find, clip=None):
        rounded = rounding_of(config)
        calls["found"] = list(_group(targets, seen, config, find, clip, rounded))
        return calls["found"]

    original, scaled.quantize_scaled = scaled.quantize_scaled, grouped
    try:
        return awq_block(None, config)
    finally:
        scaled.quantize_scaled = original


@pytest.mark.parametrize("dtype", ["int4_clip", "nf4"])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("search", [True, False])
def test_the_error_is_below_both_parts(dtype, clip, search):
    """On outlier channels, by the layer's own output. Where GPTQ searches the ranges, outliers cost
    it little, and s may stay 1."""
    total = dict.fromkeys(("AWQ", "GPTQ", "AWQ+GPTQ"), 0.0)
    for _ in range(4):
        hessian = planted_hessian(96)
        target = linear_target(48, 96, dtype=dtype, group_size=32)
        weight = target.module.weight.detach()
        for algorithm in ("AWQ", "AWQ+GPTQ"):
            config = WeightOnlyQuantConfig(
                dtype,
                algorithm=algorithm,
                algorithm_args={"apply_clip": clip},
                mse_range=search,
            )
            (finished,) = one_group([target], Moments(hessian), config)
            assert finished.loss < finished.start_loss
            total[algorithm] += finished.loss
        matrix, _ = round_columns(
            weight,
            WeightOnlyQuantConfig(dtype, algorithm="GPTQ", mse_range=search),
            target,
            Moments(hessian),
        )
        total["GPTQ"] += native.layer_error(weight, matrix.dequantize(), hessian)
    assert total["AWQ+GPTQ"] < 0.95 * total["AWQ"]
    assert total["AWQ+GPTQ"] <= (1 if search else 0.95) * total["GPTQ"]


def test_gptq_takes_the_scales_of_the_clipped_ranges():
    hessian = planted_hessian(64)
    target = linear_target(16, 64)
    weight = target.module.weight.detach()
    config = WeightOnlyQuantConfig("int4_clip", algorithm="AWQ+GPTQ", mse_range=False)
    ranges = weight.clamp(-0.06, 0.06)
    matrix, _ = round_columns(weight, config, target, Moments(hessian), ranges)
    clipped = native.quantize_rtn(ranges, target.scheme)
    assert np.array_equal(matrix.scales(), clipped.scales())
    assert not np.array_equal(matrix.codes(), clipped.codes())
    errors = [native.layer_error(weight, each.dequantize(), hessian) for each in (matrix, clipped)]
    assert errors[0] < errors[1]  # other columns compensate what clipping took away
    with pytest.raises(InvalidArgument, match=r"ranges of 'layer' are \[16, 63\]"):
        round_columns(weight, config, target, Moments(hessian), ranges[:, :63].contiguous())


@pytest.mark.parametrize("first", ["AWQ", "TEQ"])
def test_layers_of_other_schemes_share_the_scales(first):
    """Each is rounded in its own number format, by itself as in the group."""
    hessian = planted_hessian(64)
    targets = [
        linear_target(24, 64),
        linear_target(16, 64, dtype="int8", group_size=32),
        linear_target(8, 64, dtype="nf4", group_size=-1),
    ]
    weights = [target.module.weight.detach() for target in targets]
    schemes = [target.scheme for target in targets]
    search = {"AWQ": native.awq_scales, "TEQ": native.teq_scales}[first]
    scales = search(weights, hessian, schemes)
    assert not np.array_equal(scales, np.ones(64, np.float32))
    # Several weights of one scheme are the old call; other schemes lead elsewhere.
    same = search(weights, hessian, [schemes[0]] * 3)
    assert np.array_equal(same, search(weights, hessian, schemes[0]))
    assert not np.array_equal(same, scales)
    with pytest.raises(InvalidArgument, match="3 weights and 2 schemes"):
        search(weights, hessian, schemes[:2])

    def total(s):
        return sum(
            float(np.trace(d @ hessian.numpy() @ d.T))
            for weight, scheme in zip(weights, schemes, strict=True)
            for d in [
                weight.numpy().astype(np.float64)
                - native.quantize_rtn((weight.numpy() * s).astype(np.float32), scheme)
                .dequantize()
                .astype(np.float64)
                / s
            ]
        )

    # The search's promise, in the schemes that it was given.
    assert total(scales) < total(np.ones(64, np.float32))


# -- GPTAQ ----------------------------------------------------------------------------------------


def block_with_original(model):
    """The second block on the inputs of a perturbed first one, and as it is in the model."""
    targets = select(model, WeightOnlyQuantConfig())
    batches = [{"input_ids": DATA[i : i + 4]} for i in (0, 4, 8)]
    (segment,) = segments(model, batches[0], targets)
    calls, floats = capture(model, batches, segment, 1 << 30)
    inputs = floats.copy()
    name, first = segment.blocks[0]
    for index in range(3):
        block = Block(name, first, [], calls[name], floats)
        out = block.run(index)
        floats.replace(index, out)
        inputs.replace(index, out + 0.1 * torch.randn_like(out))
    name, module = segment.blocks[1]
    mine = [target for target in targets if target.name.startswith(name)]
    block = Block(name, module, mine, calls[name], inputs)
    block.original = block.copy(floats)
    return block, floats


def test_cross_moments_are_of_the_same_tokens():
    model = llama()
    with for_calibration(model), torch.no_grad():
        block, floats = block_with_original(model)
        groups = block.groups()
        found = moments(block, groups)
        q_proj = groups[0][0]
        norm = block.module.input_layernorm
        pairs = [(norm(floats[i]), norm(block.inputs[i])) for i in range(3)]
    flat = [tuple(x.reshape(-1, 64).double() for x in pair) for pair in pairs]
    expected = sum((f - q).T @ q for f, q in flat) * 2 / sum(len(q) for _, q in flat)
    # The core shows no elements of it: what it does to a weight is compared instead.
    cross = native.CrossMoment(64)
    for f, q in flat:
        cross.add(f.float(), q.float())
    weight = q_proj.module.weight.detach()
    results = [
        native.quantize_gptq(
            weight, found[0].hessian, native.QuantScheme(), cross=each, gptaq_alpha=0.25
        )
        for each in (found[0].cross, cross, None)
    ]
    assert float(expected.norm()) > 0
    same = (results[0].codes() == results[1].codes()).mean()
    assert same > 0.995
    assert (results[0].codes() == results[2].codes()).mean() < same


def test_the_float_block_outlives_the_replacement():
    model = llama()
    with for_calibration(model), torch.no_grad():
        block, _ = block_with_original(model)
        before = block.original.run(0)
        for target in block.targets:
            target.module.weight.zero_()
        assert torch.equal(block.original.run(0), before)
        assert not torch.equal(block.run(0), before)


def hidden(model):
    ids = DATA[16:]
    with torch.no_grad():
        return model.model(ids).last_hidden_state


def test_gptaq_is_gptq_at_alpha_zero_and_else_not():
    model = llama()
    plain = woq.quantize(copy.deepcopy(model), GPTQConfig(**COMMON))
    zero = woq.quantize(copy.deepcopy(model), GPTQConfig(gptaq_alpha=0.0, **COMMON))
    other = woq.quantize(copy.deepcopy(model), GPTQConfig(gptaq_alpha=0.5, **COMMON))
    assert torch.equal(logits(plain), logits(zero))
    first = "model.layers.0.self_attn.q_proj"  # sees the embeddings: no difference yet
    assert torch.equal(
        plain.get_submodule(first).dequantize(), other.get_submodule(first).dequantize()
    )
    assert not torch.equal(logits(plain), logits(other))


def test_gptaq_lowers_the_error_of_the_model():
    """Where errors pile up: many layers, coarse groups."""
    errors = dict.fromkeys((0.0, 0.25), 0.0)
    for number in range(3):
        torch.manual_seed(number)
        model = llama(num_hidden_layers=6)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter.mul_(3)
        expected = hidden(model)
        for alpha in errors:
            config = GPTQConfig(
                gptaq_alpha=alpha, true_sequential=True, **{**COMMON, "group_size": -1}
            )
            got = hidden(woq.quantize(copy.deepcopy(model), config))
            errors[alpha] += float((got - expected).square().mean())
    assert errors[0.25] < errors[0.0]


@pytest.mark.parametrize("sequential", [False, True])
def test_gptaq_resumed(sequential, tmp_path):
    config = GPTQConfig(gptaq_alpha=0.25, true_sequential=sequential, work_dir=tmp_path, **COMMON)
    model = llama()
    whole = woq.quantize(copy.deepcopy(model), config)
    for path in tmp_path.glob("*layers.1*.safetensors"):
        path.unlink()
    again = woq.quantize(model, config)
    assert torch.equal(logits(again), logits(whole))


def test_experts_get_plain_gptq():
    """The float model may route other tokens to an expert: there are no pairs to compare."""
    from test_driver import Experts

    model = llama()
    model.model.layers[1].mlp = Experts(64)
    model = woq.quantize(model, GPTQConfig(gptaq_alpha=0.25, **COMMON))
    assert logits(model).isfinite().all()
    assert logits(woq.quantize(mixtral(), GPTQConfig(gptaq_alpha=0.25, **COMMON))).isfinite().all()


def test_scaled_cross_moments():
    """GPTQ with scaled moments on a scaled weight moves the same as on the weight itself would."""
    x, y = torch.randn(200, 32), torch.randn(200, 32)
    s = torch.rand(32) + 0.5
    hessian, cross = native.Hessian(32), native.CrossMoment(32)
    hessian.add(y)
    cross.add(x, y)
    direct_h, direct_c = native.Hessian(32), native.CrossMoment(32)
    direct_h.add(y / s)
    direct_c.add(x / s, y / s)
    scaled = Moments(hessian, cross).scaled(1 / s)
    weight = torch.randn(16, 32)
    one, other = (
        native.quantize_gptq(weight, h, native.QuantScheme(), cross=c, gptaq_alpha=0.25, fp64=True)
        for h, c in ((scaled.hessian, scaled.cross), (direct_h, direct_c))
    )
    assert (one.codes() == other.codes()).mean() > 0.99
    with pytest.raises(InvalidArgument, match="multipliers"):
        cross.scaled(s[:31])


# -- damping --------------------------------------------------------------------------------------


def test_raised_damping_is_reported():
    """Two inputs of opposite sign make the Hessian singular; next to no damping does not help."""
    model = llama()
    config = GPTQConfig(damp_percent=1e-17, **{**COMMON, "nsamples": 1})
    report = woq.quantize(model, config).woq_report
    raised = [layer for layer in report.layers if "damp_percent was raised to 0.0" in layer.note]
    assert raised
    assert all(layer.algorithm == "GPTQ" for layer in raised)
    assert not report.fallbacks
    assert "damp_percent was raised" in str(report)
    assert not any(
        layer.note for layer in woq.quantize(llama(), GPTQConfig(**COMMON)).woq_report.layers
    )


def test_rounding_of():
    assert rounding_of(AwqConfig(then="gptq").canonical()) is round_columns
    assert rounding_of(AwqConfig().canonical()) is not round_columns
