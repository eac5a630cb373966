# SPDX-License-Identifier: Apache-2.0
"""Layers with settings of their own (`layer_config`): rules, every algorithm, checkpoints."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from model_support import gpt2, llama, logits, mixtral, seed, t5

pytest.importorskip("transformers")

from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

import woq
from woq import (
    AutoRoundConfig,
    AwqConfig,
    GPTQConfig,
    InvalidArgument,
    RtnConfig,
    TeqConfig,
    WeightOnlyLinear,
    WeightOnlyQuantConfig,
)

DATA = torch.randint(0, 128, (24, 32), generator=torch.Generator().manual_seed(5))
COMMON = {"dataset": DATA, "nsamples": 8, "seqlen": 32, "batch_size": 4, "group_size": 16}
# q, k and v share an input, and so do gate and up: here they differ in everything that may differ.
RULES = {
    r".*layers\.1\.mlp": {"bits": 8, "group_size": 32},
    "q_proj": {"weight_dtype": "nf4", "group_size": 64},
    "k_proj": {"bits": 8},
    r".*\.v_proj": None,
    "gate_proj": {"group_size": -1, "sym": False},
}
MAKERS = {
    "rtn": lambda **k: RtnConfig(group_size=16, **k),
    "gptq": lambda **k: GPTQConfig(**COMMON, **k),
    "gptq-desc": lambda **k: GPTQConfig(desc_act=True, **COMMON, **k),
    "gptq-sequential": lambda **k: GPTQConfig(true_sequential=True, **COMMON, **k),
    "gptaq": lambda **k: GPTQConfig(gptaq_alpha=0.25, **COMMON, **k),
    "awq": lambda **k: AwqConfig(zero_point=False, **COMMON, **k),
    "teq": lambda **k: TeqConfig(iters=5, **COMMON, **k),
    "autoround": lambda **k: AutoRoundConfig(iters=3, **COMMON, **k),
    "awq+gptq": lambda **k: AwqConfig(zero_point=False, then="gptq", **COMMON, **k),
    "teq+gptq": lambda **k: TeqConfig(
        iters=5, then="gptq", gptq_args={"desc_act": True}, **COMMON, **k
    ),
}


@pytest.fixture(autouse=True)
def _seed(request):
    seed(request)


def schemes(model):
    return {
        name: (layer.scheme["dtype"], layer.scheme["group_size"], layer.scheme["asym"])
        for name, layer in model.named_modules()
        if isinstance(layer, WeightOnlyLinear)
    }


def expected_schemes():
    found = {}
    for number in range(2):
        layer = f"model.layers.{number}"
        found[f"{layer}.self_attn.q_proj"] = ("nf4", 64, False)
        found[f"{layer}.self_attn.k_proj"] = ("int8", 16, False)
        found[f"{layer}.self_attn.o_proj"] = ("int4_clip", 16, False)
        found[f"{layer}.mlp.gate_proj"] = ("int4_clip", -1, True)
        found[f"{layer}.mlp.up_proj"] = ("int4_clip", 16, False)
        found[f"{layer}.mlp.down_proj"] = ("int4_clip", 16, False)
    for name in ("gate_proj", "up_proj", "down_proj"):
        found[f"model.layers.1.mlp.{name}"] = ("int8", 32, False)
    return found


# -- rules ----------------------------------------------------------------------------------------


def test_rules_are_brought_to_one_form():
    config = WeightOnlyQuantConfig(
        "nf4",
        layer_config={
            "a": {"bits": 4, "group_size": 64},
            "b": {"sym": False, "weight_dtype": "int4"},
            "c": {"bits": 16},
            "d": {"bits": 8, "scheme": "asym"},
        },
    )
    assert config.layer_config == {
        "a": {"weight_dtype": "nf4", "group_size": 64},
        "b": {"weight_dtype": "int4_clip", "scheme": "asym"},
        "c": None,
        "d": {"weight_dtype": "int8", "scheme": "asym"},
    }
    config.validate()  # and stay in it
    assert config.layer_config["c"] is None


@pytest.mark.parametrize("make", [lambda c: c, lambda c: AwqConfig.from_dict(c.to_dict())])
def test_the_order_of_rules_survives_json(make):
    """JSON writers sort keys, transformers' among them."""
    rules = {"z": {"bits": 8}, "a": None, "m": {"group_size": 64}}
    config = WeightOnlyQuantConfig("int4_clip", algorithm="AWQ", layer_config=rules)
    again = make(WeightOnlyQuantConfig.from_json_string(config.to_json_string()))
    assert again == config
    assert list(again.layer_config) == list(rules)
    swapped = {"a": None, "z": {"bits": 8}, "m": {"group_size": 64}}
    assert config != WeightOnlyQuantConfig("int4_clip", algorithm="AWQ", layer_config=swapped)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"a.b": {"group_size": 20}}, r"layer_config\['a.b'\]: group_size 20"),
        ({"a": {"weight_dtype": "nf4", "sym": False}}, r"\['a'\]: weight dtype 'nf4' has no asym"),
        ({"a": {"weight_dtype": "int9"}}, r"\['a'\]: .*int9"),
        ({"a": {"bits": 9}}, r"\['a'\].bits must be 2, 3, 4, 5, 6, 7, 8 or 16, got 9"),
        ({"a": {"bits": 8, "weight_dtype": "nf4"}}, r"\['a'\]: weight_dtype 'nf4' has 4 bits"),
        ({"a": {"bits": 16, "group_size": 32}}, "floating point, which has no group_size"),
        ({"a": {"groupsize": 32}}, "no field 'groupsize'; did you mean 'group_size'"),
        ({"a": {"sym": True, "scheme": "asym"}}, r"\['a'\].scheme"),
        ({"a": {"group_size": True}}, r"\['a'\].group_size must be an integer"),
        ({"a": 8}, r"\['a'\] must be a dict"),
        ({"a(": None}, r"\['a\('\] is no regular expression"),
        ({1: None}, "string keys"),
        ("lm_head", "must be a dict"),
    ],
)
def test_errors_name_the_rule(rules, said):
    with pytest.raises(InvalidArgument, match=said):
        WeightOnlyQuantConfig("int4_clip", layer_config=rules)


def test_an_override_is_checked_with_the_rest_of_the_config():
    with pytest.raises(InvalidArgument, match=r"\['a'\]: .*'nf4' has no asymmetric form"):
        WeightOnlyQuantConfig(
            "int4_clip", scheme="asym", layer_config={"a": {"weight_dtype": "nf4"}}
        )


def test_the_first_match_wins():
    rules = {"0.mlp.up_proj": None, "up_proj": {"bits": 8}, r".*": {"group_size": 64}}
    found = schemes(woq.quantize(llama(), WeightOnlyQuantConfig(layer_config=rules)))
    assert "model.layers.0.mlp.up_proj" not in found
    assert found["model.layers.1.mlp.up_proj"] == ("int8", 32, False)
    assert found["model.layers.1.mlp.down_proj"] == ("int4_fullrange", 64, False)
    assert "lm_head" not in found  # a rule alone does not select the output embedding


def test_the_output_embedding_has_its_dtype_and_then_its_rule():
    config = WeightOnlyQuantConfig(
        quantize_lm_head="int8", layer_config={"lm_head": {"group_size": 64}}
    )
    assert schemes(woq.quantize(llama(), config))["lm_head"] == ("int8", 64, False)


# -- algorithms and checkpoints -------------------------------------------------------------------


@pytest.mark.parametrize("name", MAKERS)
def test_every_algorithm_gives_each_layer_its_scheme(name, tmp_path):
    model = woq.quantize(llama(), MAKERS[name](layer_config=RULES))
    assert schemes(model) == expected_schemes()
    assert {layer.algorithm for layer in model.woq_report.layers} == {
        MAKERS[name]().canonical().algorithm
    }
    woq.save_pretrained(model, tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert schemes(again) == schemes(model)
    assert torch.equal(logits(again), logits(model))
    stored = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert [pattern for pattern, _ in stored["layer_config"]] == list(RULES)


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "rtn"])
def test_a_resumed_run_gives_the_same_model(name, tmp_path):
    model = llama()
    whole = woq.quantize(copy.deepcopy(model), MAKERS[name](layer_config=RULES, work_dir=tmp_path))
    for path in sorted(tmp_path.glob("*layers.1*.safetensors"))[1:]:
        path.unlink()
    again = woq.quantize(model, MAKERS[name](layer_config=RULES, work_dir=tmp_path))
    assert schemes(again) == expected_schemes()
    if name in ("autoround", "gptq-sequential"):
        return  # the block is tuned as a whole, or on what its earlier layers gave
    assert torch.equal(logits(again), logits(whole))


def test_a_work_dir_of_other_rules_is_refused(tmp_path):
    model = gpt2()
    woq.quantize(copy.deepcopy(model), MAKERS["gptq"](work_dir=tmp_path))
    with pytest.raises(InvalidArgument, match="layer_config"):
        woq.quantize(model, MAKERS["gptq"](work_dir=tmp_path, layer_config={"c_fc": None}))


@pytest.mark.parametrize("kind", ["llama", "t5", "mixtral", "gpt2"])
def test_quantized_while_loading(kind, tmp_path):
    make = {"llama": llama, "t5": t5, "mixtral": mixtral, "gpt2": gpt2}[kind]
    auto = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    rules = {r".*(q_proj|\.q|c_attn)": {"bits": 8}, r".*(o_proj|\.o|c_proj)": {"group_size": -1}}
    model = make()
    model.save_pretrained(tmp_path / "float")
    config = WeightOnlyQuantConfig("nf4", layer_config=rules)
    loaded = auto.from_pretrained(tmp_path / "float", quantization_config=config)
    quantized = woq.quantize(model, config)
    assert len({scheme[:2] for scheme in schemes(loaded).values()}) >= 3 - (kind == "mixtral")
    assert schemes(loaded) == schemes(quantized)
    assert torch.equal(logits(loaded), logits(quantized))
    loaded.save_pretrained(tmp_path / "saved")
    again = auto.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(again), logits(loaded))


def test_a_second_call_must_have_the_same_rules():
    config = WeightOnlyQuantConfig(layer_config=RULES)
    model = woq.quantize(llama(), config)
    woq.quantize(model, config)
    for other in ({}, {"q_proj": None}, {**RULES, "q_proj": {"bits": 8}}):
        with pytest.raises(InvalidArgument, match="already quantized"):
            woq.quantize(
                model, WeightOnlyQuantConfig(layer_config={**other, "k_proj": RULES["k_proj"]})
            )


def test_rules_by_names_in_a_wrapper_are_stored_by_names_in_the_model(tmp_path):
    class Wrapper(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

    rules = {"inner.model.layers.0": {"bits": 8}, "inner.model.layers.1.mlp": None}
    wrapper = woq.quantize(Wrapper(llama()), WeightOnlyQuantConfig(layer_config=rules))
    woq.save_pretrained(wrapper.inner, tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert schemes(again) == schemes(wrapper.inner)
    assert torch.equal(logits(again), logits(wrapper.inner))


@pytest.mark.parametrize("way", ["quantize", "load", "reload"])
def test_patterns_that_match_nothing_are_named(way, tmp_path, caplog):
    rules = {"q_porj": {"bits": 8}, "k_proj": {"bits": 8}}
    config = WeightOnlyQuantConfig(layer_config=rules, modules_to_not_convert=["o_proj", "layer.1"])
    llama().save_pretrained(tmp_path / "float")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "float")
    if way == "quantize":
        woq.quantize(model, config)
    elif way == "load":
        AutoModelForCausalLM.from_pretrained(tmp_path / "float", quantization_config=config)
    else:
        woq.quantize(model, config).save_pretrained(tmp_path / "saved")
        caplog.clear()
        AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    said = [record.getMessage() for record in caplog.records if record.name == "woq"]
    if way == "reload":  # who loads a checkpoint did not write its rules
        assert said == []
        return
    where = "a layer of this model is called model.layers.0.self_attn.q_proj"
    assert said == [
        f"modules_to_not_convert: no module matches 'layer.1'; {where}",
        f"layer_config: no module matches 'q_porj'; {where}",
    ]


def test_the_report_counts_bits():
    report = woq.quantize(llama(), WeightOnlyQuantConfig(layer_config=RULES)).woq_report
    bits = 8 * report.bytes_after / report.quantized_parameters
    assert f"{bits:.2f} bits a weight" in str(report)
    assert "int8" in str(report)


def test_a_rule_that_does_not_fit_the_head_is_refused_before_any_work():
    model = llama()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    rules = {"lm_head": {"scheme": "asym"}}
    config = RtnConfig(group_size=16, quantize_lm_head="nf4", layer_config=rules)
    with pytest.raises(InvalidArgument, match=r"lm_head, with its rule in layer_config: .*asym"):
        woq.quantize(model, config)
    assert before.keys() == dict(model.named_parameters()).keys()
