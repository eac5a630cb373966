# SPDX-License-Identifier: Apache-2.0
"""plan_layer_config: the budgeted choice against brute force, costs against formulas and against
the measured KL divergence."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_support import gpt2, llama, mixtral, seed, t5

pytest.importorskip("transformers")

import woq
from woq import InvalidArgument, LayerPlan, WeightOnlyQuantConfig
from woq.core import native
from woq.modules.targets import select
from woq.quantizing.planning import _fisher, choose, stored_bits

DATA = torch.randint(0, 128, (24, 32), generator=torch.Generator().manual_seed(5))
COMMON = {"dataset": DATA, "nsamples": 16, "seqlen": 32, "batch_size": 4}


@pytest.fixture(autouse=True)
def _seed(request):
    seed(request)


# -- the choice -----------------------------------------------------------------------------------


def brute_force(sizes, options, budget):
    """The least cost of all combinations within the budget."""
    costs = [
        sum(each[i][1] for each, i in zip(options, picked, strict=True))
        for picked in itertools.product(*(range(len(each)) for each in options))
        if sum(s * each[i][0] for s, each, i in zip(sizes, options, picked, strict=True))
        <= budget + 1e-9
    ]
    return min(costs)


def cost_of(options, picked):
    return sum(each[i][1] for each, i in zip(options, picked, strict=True))


def size_of(sizes, options, picked):
    return sum(s * each[i][0] for s, each, i in zip(sizes, options, picked, strict=True))


PROBLEMS = st.lists(
    st.tuples(
        st.integers(1, 9),
        st.lists(
            st.tuples(st.sampled_from([4.0, 4.5, 5.0, 8.5, 16.0]), st.integers(0, 100)),
            min_size=1,
            max_size=4,
        ),
    ),
    min_size=1,
    max_size=5,
)


@settings(deadline=None, max_examples=300)
@given(PROBLEMS, st.floats(4, 16))
def test_against_brute_force(problem, bits):
    sizes = [size for size, _ in problem]
    options = [each for _, each in problem]
    budget = bits * sum(sizes)
    least = sum(s * min(b for b, _ in each) for s, each in problem)
    if least > budget * (1 + 1e-8):
        with pytest.raises(InvalidArgument, match="raise average_bits"):
            choose(sizes, options, budget)
        return
    picked = choose(sizes, options, budget)
    used = size_of(sizes, options, picked)
    assert used <= budget * (1 + 1e-8)
    found = cost_of(options, picked)
    largest = max(
        (abs(a[1] - b[1]) for each in options for a, b in itertools.combinations(each, 2)),
        default=0,
    )
    best = brute_force(sizes, options, budget)
    # The linear relaxation's optimum is one step below at most.
    assert best - 1e-9 <= found <= best + largest + 1e-9


@settings(deadline=None, max_examples=200)
@given(PROBLEMS, st.integers(0, 10))
def test_optimal_where_steps_fill_the_budget(problem, extra):
    """Budgets that a run of the greedy steps uses up: convex hulls make it optimal there."""
    sizes = [size for size, _ in problem]
    options = [each for _, each in problem]
    slopes = sorted(
        {
            (a[1] - b[1]) / (b[0] - a[0])
            for each in options
            for a, b in itertools.permutations(each, 2)
            if b[0] > a[0] and a[1] > b[1]
        }
    )
    # The choice for a price of a bit is optimal for the budget that it uses.
    price = (slopes[min(extra, len(slopes) - 1)] if slopes else 1.0) * 0.999
    picked = [
        min(range(len(each)), key=lambda i, s=size: each[i][1] + price * s * each[i][0])
        for size, each in problem
    ]
    budget = size_of(sizes, options, picked)
    found = cost_of(options, choose(sizes, options, budget))
    assert found == pytest.approx(brute_force(sizes, options, budget), abs=1e-9)


def test_bits_are_those_of_the_stored_tensors():
    for dtype, extra in (("int4_clip", {}), ("int8", {"scheme": "asym"}), ("nf4", {})):
        for scales in ("fp32", "bf16"):
            config = WeightOnlyQuantConfig(dtype, scale_dtype=scales, group_size=32, **extra)
            model = woq.quantize(llama(), config)
            for layer in model.woq_report.layers:
                scheme = model.get_submodule(layer.name).scheme
                bits = stored_bits(layer.shape, scheme)
                assert bits == 8 * layer.bytes_after / layer.parameters
    scheme = native.QuantScheme("int4_clip", 32, "int", "fp16")
    assert stored_bits((64, 96), scheme) == 4 + (16 + 8) / 32


# -- the costs ------------------------------------------------------------------------------------


def kl(model, reference, ids):
    """Mean KL divergence of a token's distribution, nats."""
    with torch.no_grad():
        p, q = (each(ids).logits.double().log_softmax(-1) for each in (reference, model))
    return float((p.exp() * (p - q)).sum(-1).mean())


def sharp(make=llama, **sizes):
    """A random model whose predictions depend on its layers."""
    model = make(**sizes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.mul_(4 if "embed" not in name else 20)
    return model


def test_the_fisher_term_is_the_second_derivative_of_the_divergence():
    """KL of a small shift of one output channel, all tokens alike: measured against predicted."""
    model = sharp()
    targets = select(model, WeightOnlyQuantConfig())
    batches = [{"input_ids": DATA}]
    fisher = {}
    for number in range(8):  # labels are drawn: their average
        for name, value in _fisher(model, batches, targets, len(DATA), number).items():
            fisher[name] = fisher.get(name, 0) + value / 8
    # Independent signs of the shift at each token leave the diagonal that the formula has.
    name, step = "model.layers.1.mlp.down_proj", 1e-2
    reference = copy.deepcopy(model)
    shift = {}

    def add(module, args, output):
        return output + shift["now"]

    model.get_submodule(name).register_forward_hook(add)
    measured = []
    for _ in range(12):
        signs = torch.randint(0, 2, (*DATA.shape, 64)) * 2.0 - 1
        shift["now"] = step * signs
        measured.append(kl(model, reference, DATA))
    predicted = 0.5 * float(fisher[name].sum()) * step**2
    mean = sum(measured) / len(measured)
    assert predicted == pytest.approx(mean, rel=0.2)


def test_costs_are_the_formula():
    model = sharp()
    config = WeightOnlyQuantConfig("int4_clip")
    plan = woq.plan_layer_config(
        model, config, average_bits=5.0, candidates=[{}, {"bits": 8}], **COMMON
    )
    assert plan == {}
    assert plan.average_bits == 5.0
    targets = {target.name: target for target in select(model, config)}
    assert [choice.name for choice in plan.choices] == list(targets)
    choice = plan.choices[0]
    q_proj = targets[choice.name].module
    batches = [{"input_ids": chosen} for chosen in used_samples(model)]
    fisher = _fisher(model, batches, list(targets.values()), 8, 42)[choice.name]
    with torch.no_grad():
        x = torch.cat(
            [
                model.model.layers[0].input_layernorm(model.model.embed_tokens(b["input_ids"]))
                for b in batches
            ]
        ).reshape(-1, 64)
        matrix = woq.quantize_rtn(q_proj.weight.detach(), dtype="int4_clip", group_size=32)
        y = x.double() @ q_proj.weight.double().T
        error = x.double() @ (q_proj.weight - torch.from_numpy(matrix.dequantize())).double().T
    assert choice.relative_error == pytest.approx(
        float(error.square().sum() / y.square().sum()), rel=1e-4
    )
    assert choice.cost == pytest.approx(
        0.5 * float((fisher * error.square().mean(0)).sum()), rel=1e-4
    )


def used_samples(model):
    from woq.observe.samples import calibration_batches

    options = {"nsamples": 16, "seqlen": 32, "batch_size": 4, "seed": 42}
    return [batch["input_ids"] for batch in calibration_batches(model, DATA, None, options)]


# -- plans ----------------------------------------------------------------------------------------


def test_the_plan_is_a_layer_config():
    model = sharp()
    before = copy.deepcopy(model.state_dict())
    config = WeightOnlyQuantConfig("nf4", scale_dtype="bf16", group_size=64)
    plan = woq.plan_layer_config(model, config, average_bits=4.6, **COMMON)
    assert isinstance(plan, LayerPlan)
    assert isinstance(plan, dict)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert 4.3 < plan.average_bits <= 4.6
    config.layer_config = plan
    report = woq.quantize(model, config).woq_report
    bits = 8 * report.bytes_after / report.quantized_parameters
    assert bits == pytest.approx(plan.average_bits)
    text = str(plan)
    assert f"{plan.average_bits:.3f} bits a weight" in text
    assert "q_proj" in text
    assert "weight_dtype=int8, group_size=128" in text
    assert WeightOnlyQuantConfig.from_json_string(config.to_json_string()) == config


def test_more_bits_cost_less_and_the_best_layers_get_them():
    model = sharp()
    config = WeightOnlyQuantConfig("int4_clip", scale_dtype="fp16")
    plans = [
        woq.plan_layer_config(model, config, average_bits=bits, **COMMON)
        for bits in (4.25, 4.5, 5.0, 6.0, 8.5)
    ]
    costs = [plan.cost for plan in plans]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > 2 * costs[-1]
    # A choice that is free to mix is never worse than one candidate for all.
    for _, bits, cost in plans[0].uniform:
        free = woq.plan_layer_config(model, config, average_bits=bits, **COMMON)
        assert free.cost <= cost * (1 + 1e-9)
        assert free.average_bits <= bits * (1 + 1e-9)


def test_a_layer_that_matters_little_gets_the_fewest_bits():
    """Its error relative to its own output is that of the others; what it adds to the model is a
    thousandth."""
    model = sharp()
    name = "model.layers.1.mlp.down_proj"
    quiet = copy.deepcopy(model)
    with torch.no_grad():
        quiet.get_submodule(name).weight.mul_(1e-3)
    found = []
    for each in (model, quiet):
        plan = woq.plan_layer_config(each, average_bits=8.5, candidates=[{}, {"bits": 8}], **COMMON)
        found.append(({choice.name: choice for choice in plan.choices}[name], plan))
    (loud, _), (silent, plan) = found
    assert silent.settings == {}
    assert len(plan) >= 10
    assert silent.cost < 1e-4 * sum(choice.cost for choice in found[0][1].choices)
    assert silent.relative_error > 0.1 * max(loud.relative_error, 1e-3)


@pytest.mark.parametrize("make", [gpt2, t5, mixtral])
def test_other_models(make):
    model = make()
    config = WeightOnlyQuantConfig("int4_clip", quantize_lm_head=True)
    plan = woq.plan_layer_config(model, config, average_bits=5.2, **COMMON)
    assert plan.average_bits <= 5.2
    assert any("lm_head" in choice.name for choice in plan.choices)
    head = next(choice for choice in plan.choices if "lm_head" in choice.name)
    assert head.cost > 0
    config.layer_config = plan
    woq.quantize(model, config)


def test_rules_of_the_config_stay_in_force():
    rules = {"q_proj": {"bits": 8}, "k_proj": None}
    config = WeightOnlyQuantConfig("int4_clip", layer_config=rules)
    plan = woq.plan_layer_config(llama(), config, average_bits=6, **COMMON)
    assert list(plan)[:2] == ["q_proj", "k_proj"]
    assert plan["k_proj"] is None
    chosen = {choice.name.rpartition(".")[2]: choice for choice in plan.choices}
    assert "k_proj" not in chosen
    assert chosen["q_proj"].settings == {}
    assert math.isnan(chosen["q_proj"].relative_error)
    assert chosen["q_proj"].bits == 9.0


def test_a_layer_that_no_token_reaches_keeps_the_settings():
    from test_driver import Experts

    model = llama()
    model.model.layers[1].mlp = Experts(64)
    plan = woq.plan_layer_config(
        model, WeightOnlyQuantConfig("int4_clip"), average_bits=6, **COMMON
    )
    missed = [choice for choice in plan.choices if math.isnan(choice.relative_error)]
    assert [choice.name for choice in missed] == ["model.layers.1.mlp.experts.1"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"average_bits": 4.0}, "are not enough: the smallest candidates take 4"),
        ({"average_bits": 0}, "average_bits must be a number above 0"),
        ({"average_bits": True}, "average_bits must be a number above 0"),
        ({"candidates": []}, "candidates must not be empty"),
        ({"candidates": [{"group_size": 20}]}, r"candidates\['0'\]: group_size 20"),
        ({"gradient_samples": 0}, "gradient_samples must be 1 or more"),
    ],
)
def test_errors(arguments, said):
    with pytest.raises(InvalidArgument, match=said):
        woq.plan_layer_config(llama(), **{**COMMON, **arguments})


def test_a_model_without_logits_is_refused():
    with pytest.raises(InvalidArgument, match="has no logits"):
        woq.plan_layer_config(llama().model, **COMMON)
    with pytest.raises(InvalidArgument, match="no linear layer"):
        woq.plan_layer_config(llama(), WeightOnlyQuantConfig(modules_to_not_convert=[".*"]))
