# SPDX-License-Identifier: Apache-2.0
"""WeightOnlyQuantConfig and RtnConfig: validation, round trips, errors that help."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_support import last_json, run_python

import woq
from woq import InvalidArgument, RtnConfig, WeightOnlyQuantConfig
from woq.config.registry import known_algorithms
from woq.core.native import dtype_aliases, dtype_names

INTEGERS = [name for name in dtype_names() if name.startswith("int")]


def test_defaults():
    config = WeightOnlyQuantConfig()
    assert config.to_dict() == {
        "quant_method": "woq",
        "format_version": 2,
        "weight_dtype": "int4_fullrange",
        "compute_dtype": "fp32",
        "scale_dtype": "fp32",
        "group_size": 32,
        "scheme": "sym",
        "use_double_quant": False,
        "mse_range": False,
        "algorithm": "RTN",
        "algorithm_args": {},
        "layer_config": [],
        "modules_to_not_convert": None,
        "quantize_lm_head": False,
    }


@st.composite
def configs(draw):
    dtype = draw(st.sampled_from([*dtype_names(), *dtype_aliases()]))
    canonical = dtype_aliases().get(dtype, dtype)
    double = draw(st.booleans())
    scheme = draw(st.sampled_from(["sym", "asym"])) if canonical in INTEGERS else "sym"
    head = [True, False, *(INTEGERS if scheme == "asym" else dtype_names())]
    return WeightOnlyQuantConfig(
        weight_dtype=dtype,
        compute_dtype=draw(st.sampled_from(["fp32", "bf16", "int8", "auto"])),
        scale_dtype="fp32" if double else draw(st.sampled_from(["fp32", "fp16", "bf16"])),
        group_size=draw(st.sampled_from([-1, 16, 24, 32, 128])),
        scheme=scheme,
        use_double_quant=double,
        mse_range=draw(st.booleans()),
        modules_to_not_convert=draw(
            st.none() | st.lists(st.text(max_size=8).map(re.escape), max_size=3)
        ),
        quantize_lm_head=draw(st.sampled_from(head)),
        quantize_embedding=draw(st.sampled_from([*head, "tied"])),
    )


@settings(deadline=None)
@given(configs())
def test_round_trips(config):
    assert WeightOnlyQuantConfig.from_dict(config.to_dict()) == config
    assert WeightOnlyQuantConfig.from_json_string(config.to_json_string()) == config
    assert json.loads(config.to_json_string()) == config.to_dict()
    assert pickle.loads(pickle.dumps(config)) == config
    assert copy.deepcopy(config) == config
    assert RtnConfig.from_dict(config.to_dict()) == config


def test_json_file(tmp_path):
    config = WeightOnlyQuantConfig("nf4", modules_to_not_convert=["a.b"])
    config.to_json_file(tmp_path / "config.json")
    assert WeightOnlyQuantConfig.from_json_file(tmp_path / "config.json") == config


def test_aliases_become_canonical_names():
    assert WeightOnlyQuantConfig("int4").weight_dtype == "int4_clip"
    assert WeightOnlyQuantConfig("fp4").weight_dtype == "fp4_e2m1_bnb"
    assert WeightOnlyQuantConfig(quantize_lm_head="int4").quantize_lm_head == "int4_clip"


def test_torch_dtypes_are_understood():
    torch = pytest.importorskip("torch")
    config = WeightOnlyQuantConfig(compute_dtype=torch.bfloat16, scale_dtype=torch.float16)
    assert (config.compute_dtype, config.scale_dtype) == ("bf16", "fp16")


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("weight_dtyp", "weight_dtype"),
        ("groupsize", "group_size"),
        ("llm_int8_skip_modules", "modules_to_not_convert"),
        ("sym", "scheme"),
        ("bits", "weight_dtype"),
        ("double_quant", "use_double_quant"),
    ],
)
def test_unknown_field_suggests_the_nearest(wrong, meant):
    for make in (
        lambda: WeightOnlyQuantConfig(**{wrong: 1}),
        lambda: WeightOnlyQuantConfig.from_dict({wrong: 1}),
    ):
        with pytest.raises(InvalidArgument, match=f"no field '{wrong}'; did you mean '{meant}'"):
            make()


def test_unknown_field_with_nothing_near():
    with pytest.raises(InvalidArgument, match=r"no field 'zzz'\. Known: activation_memory"):
        WeightOnlyQuantConfig(zzz=1)


@pytest.mark.parametrize(
    "fields",
    [
        {"weight_dtype": "int9"},
        {"weight_dtype": 4},
        {"weight_dtype": None},
        {"compute_dtype": "fp64"},
        {"scale_dtype": "int8"},
        {"scheme": "symmetric"},
        {"scheme": True},
        {"algorithm": "MAGIC"},
        {"use_double_quant": "yes"},
        {"mse_range": 1},
        {"modules_to_not_convert": "lm_head"},
        {"modules_to_not_convert": [1]},
        {"quantize_lm_head": "int9"},
        {"quantize_lm_head": 8},
        {"quantize_embedding": "int9"},
        {"quantize_embedding": None},
        {"weight_dtype": "nf4", "scheme": "asym"},
        {"weight_dtype": "int8", "scheme": "asym", "quantize_lm_head": "nf4"},
        *({"group_size": size} for size in (0, 1, 8, 20, 33, -2, -32, 32.0, "32", True, None)),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(fields):
    with pytest.raises(InvalidArgument) as error:
        WeightOnlyQuantConfig(**fields)
    value = fields.get("group_size", next(reversed(fields.values())))
    assert str(value) in str(error.value)


def test_algorithm_error_lists_the_known_ones():
    with pytest.raises(InvalidArgument, match=r"known: .*RTN"):
        WeightOnlyQuantConfig(algorithm="MAGIC")
    assert WeightOnlyQuantConfig(algorithm="rtn").algorithm == "RTN"


def test_update_validates_and_is_all_or_nothing():
    config = WeightOnlyQuantConfig()
    assert config.update(group_size=64, device_map="cpu") == {"device_map": "cpu"}
    assert config.group_size == 64
    with pytest.raises(InvalidArgument):
        config.update(weight_dtype="nf4", scheme="asym")
    assert config.weight_dtype == "int4_fullrange"


def test_from_dict_hands_back_unused_arguments():
    config, unused = WeightOnlyQuantConfig.from_dict(
        {"weight_dtype": "nf4"}, return_unused_kwargs=True, group_size=64, revision="main"
    )
    assert (config.weight_dtype, config.group_size, unused) == ("nf4", 64, {"revision": "main"})


def test_other_methods_and_newer_formats_are_refused():
    with pytest.raises(InvalidArgument, match="quant_method 'gptq'"):
        WeightOnlyQuantConfig.from_dict({"quant_method": "gptq"})
    with pytest.raises(InvalidArgument, match="install a newer woq"):
        WeightOnlyQuantConfig.from_dict({"format_version": 3})


@pytest.mark.parametrize("version", [0, True, "2", None, 2.0])
def test_what_is_no_version_is_refused(version):
    with pytest.raises(InvalidArgument, match="format_version"):
        WeightOnlyQuantConfig.from_dict({"format_version": version})


def test_the_digest_of_a_checkpoint_is_kept_and_is_no_setting():
    digest = "0123456789abcdef" * 4
    config = WeightOnlyQuantConfig.from_dict({"format_version": 1, "digest": digest})
    assert config.format_version == 1
    assert config.digest == config.stored().digest == config.canonical().digest == digest
    assert config.canonical().format_version == 1
    assert config.to_dict()["digest"] == digest
    assert config == WeightOnlyQuantConfig()
    assert "digest" not in WeightOnlyQuantConfig().to_dict()
    for wrong in (digest[1:], digest.upper(), 5):
        with pytest.raises(InvalidArgument, match="64 hexadecimal digits"):
            WeightOnlyQuantConfig.from_dict({"digest": wrong})
    with pytest.raises(InvalidArgument, match="no field 'digest'"):
        WeightOnlyQuantConfig(digest=digest)


def test_works_without_torch_and_transformers():
    process = run_python(
        """
        import sys, json
        sys.modules["torch"] = sys.modules["transformers"] = None  # importing them fails
        import woq
        config = woq.WeightOnlyQuantConfig("nf4", quantize_lm_head="int8")
        assert woq.WeightOnlyQuantConfig.from_json_string(config.to_json_string()) == config
        assert woq.RtnConfig(bits=8).weight_dtype == "int8"
        heavy = [name for name in sys.modules if name.partition(".")[0] in ("torch", "transformers")
                 and sys.modules[name]]
        print(json.dumps(heavy))
        """
    )
    assert last_json(process) == []


def test_import_loads_nothing_heavy():
    process = run_python(
        """
        import sys, json
        before = set(sys.modules)
        import woq
        woq.WeightOnlyQuantConfig
        new = {name.partition(".")[0] for name in set(sys.modules) - before}
        print(json.dumps(sorted(new & {"torch", "transformers", "tqdm", "safetensors"})))
        """
    )
    assert last_json(process) == []


# -- RtnConfig ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "dtype", "scheme"),
    [
        ({}, "int4_clip", "sym"),
        ({"bits": 8}, "int8", "sym"),
        ({"sym": False}, "int4_clip", "asym"),
        ({"weight_dtype": "nf4"}, "nf4", "sym"),
        # ITREX turned this one into int4_clip without a word.
        ({"weight_dtype": "int4_fullrange"}, "int4_fullrange", "sym"),
        ({"bits": 8, "weight_dtype": "int8"}, "int8", "sym"),
    ],
)
def test_rtn_config_maps_to_the_canonical_one(fields, dtype, scheme):
    config = RtnConfig(**fields)
    assert (config.weight_dtype, config.scheme, config.group_size) == (dtype, scheme, 32)
    assert type(config.canonical()) is WeightOnlyQuantConfig
    assert config == config.canonical()
    assert RtnConfig.from_dict(config.to_dict()) == config
    assert RtnConfig.from_dict(fields) == config


def test_rtn_config_skip_modules():
    config = RtnConfig(llm_int8_skip_modules=["lm_head"])
    assert config.modules_to_not_convert == ["lm_head"]


@pytest.mark.parametrize(
    "fields",
    [
        {"bits": 9},
        {"bits": 4, "weight_dtype": "int8"},
        {"bits": 8, "weight_dtype": "nf4"},
        {"weight_dtype": "nf4", "sym": False},
        {"use_ggml": True},
        {"use_quant": False},
        {"double_quant_scale_dtype": "fp16"},
        {"device": "cuda"},
        {"sym": "yes"},
    ],
    ids=str,
)
def test_rtn_config_refuses(fields):
    with pytest.raises(InvalidArgument):
        RtnConfig(**fields)


def test_rtn_config_unknown_field():
    with pytest.raises(InvalidArgument, match="did you mean 'group_size'"):
        RtnConfig(groupsize=32)


def test_rtn_config_notes_a_runtime_that_is_not_there(caplog):
    with caplog.at_level(logging.WARNING, "woq"):
        RtnConfig(use_neural_speed=True, layer_wise=True)
    assert ["use_neural_speed" in record.message for record in caplog.records] == [True]


# -- the algorithms' configs ----------------------------------------------------------------------

CLASSES = {
    "RTN": woq.RtnConfig,
    "GPTQ": woq.GPTQConfig,
    "AWQ": woq.AwqConfig,
    "TEQ": woq.TeqConfig,
    "AUTOROUND": woq.AutoRoundConfig,
}


@pytest.mark.parametrize("name", CLASSES)
def test_algorithm_configs(name):
    config = CLASSES[name]()
    assert (config.algorithm, config.bits, config.group_size) == (name, 4, 32)
    assert config.needs_calibration == (name != "RTN")
    assert config == config.canonical() == CLASSES[name].from_dict(config.to_dict())
    assert type(config.canonical()) is WeightOnlyQuantConfig
    assert WeightOnlyQuantConfig.from_json_string(config.to_json_string()) == config
    assert config == WeightOnlyQuantConfig(
        config.weight_dtype, scheme=config.scheme, algorithm=name.lower()
    )
    assert CLASSES[name](bits=8).weight_dtype == "int8"
    assert pickle.loads(pickle.dumps(config)) == config
    with pytest.raises(InvalidArgument, match="did you mean 'group_size'"):
        CLASSES[name](groupsize=32)


def test_data_belongs_to_one_run():
    data, tokenizer = ["text"], object()
    config = woq.GPTQConfig(dataset=data, tokenizer=tokenizer, work_dir="x", damp_percent=0.02)
    for same in (config, copy.deepcopy(config), config.canonical()):
        assert same.dataset is data
        assert same.tokenizer is tokenizer
        assert same.algorithm_args["damp_percent"] == 0.02
    assert config.stored().dataset is None
    assert config == config.stored() == woq.GPTQConfig(damp_percent=0.02)
    assert not {"dataset", "tokenizer", "work_dir"} & config.to_dict().keys()
    json.loads(config.to_json_string())
    assert "text" not in repr(config)


def test_defaults_that_depend_on_the_algorithm():
    assert not WeightOnlyQuantConfig().mse_range
    assert woq.GPTQConfig().mse_range
    assert woq.GPTQConfig().algorithm_args["act_group_aware"]
    assert not woq.GPTQConfig(desc_act=True).algorithm_args["act_group_aware"]
    assert not woq.GPTQConfig(mse_range=False).mse_range
    config = WeightOnlyQuantConfig()
    config.update(algorithm="GPTQ")
    assert config == WeightOnlyQuantConfig(algorithm="GPTQ")
    assert woq.GPTQConfig.from_dict(woq.GPTQConfig(mse_range=False).to_dict()).mse_range is False


def test_other_names_of_options():
    assert woq.AutoRoundConfig(n_samples=7).algorithm_args["nsamples"] == 7
    assert woq.GPTQConfig(max_input_length=64).algorithm_args["seqlen"] == 64
    assert woq.AutoRoundConfig(calib_len=64).algorithm_args["seqlen"] == 64
    assert woq.AwqConfig().scheme == "asym"
    assert woq.AwqConfig(zero_point=False).scheme == "sym"
    with pytest.raises(InvalidArgument, match="nsamples=5 and n_samples=7 contradict"):
        woq.AutoRoundConfig(nsamples=5, n_samples=7)
    with pytest.raises(InvalidArgument, match="nsamples=32 and n_samples=7 contradict"):
        woq.AutoRoundConfig(nsamples=32, n_samples=7)  # though 32 is the default
    assert woq.AutoRoundConfig(nsamples=7, n_samples=7).algorithm_args["nsamples"] == 7
    # Those that a class does not show are taken, too.
    assert woq.GPTQConfig(percdamp=0.1) == woq.GPTQConfig(damp_percent=0.1)
    assert woq.HqqConfig(steps=3) == woq.HqqConfig(iters=3)
    with pytest.raises(InvalidArgument, match="two of damp, percdamp are names of one option"):
        woq.GPTQConfig(damp=0.1, percdamp=0.1)


def test_arguments_of_other_libraries(caplog):
    """transformers' GPTQConfig and AutoAWQ's dict, as they stand in guides."""
    with caplog.at_level(logging.DEBUG, "woq"):
        config = woq.GPTQConfig(
            bits=4,
            dataset="c4",
            group_size=128,
            model_seqlen=512,
            max_input_length=None,
            batch_size=1,
            pad_token_id=0,
            backend="marlin",
            use_exllama=False,
            exllama_config={"version": 2},
            disable_exllama=None,
            use_cuda_fp16=True,
            module_name_preceding_first_block=["model.embed_tokens"],
            cache_block_outputs=True,
        )
    assert config == woq.GPTQConfig(group_size=128, batch_size=1)
    warned = [record.args[1] for record in caplog.records if record.levelname == "WARNING"]
    assert warned == [
        *("pad_token_id", "backend", "exllama_config", "use_cuda_fp16"),
        *("module_name_preceding_first_block", "cache_block_outputs"),
    ]
    assert {record.args[1] for record in caplog.records} - {*warned} == {
        *("use_exllama", "disable_exllama")
    }
    assert "GPTQConfig.backend='marlin' is ignored: woq runs its own kernels" in caplog.text
    of_awq = {"zero_point": True, "q_group_size": 128, "w_bit": 4, "version": "GEMM"}
    assert woq.AwqConfig(**of_awq) == woq.AwqConfig(group_size=128)
    skipping = woq.AwqConfig(modules_to_not_convert=["visual"], max_calib_samples=7)
    assert skipping == woq.AwqConfig(llm_int8_skip_modules=["visual"], nsamples=7)
    with pytest.raises(InvalidArgument, match="two of bits, w_bit are names of one option"):
        woq.AwqConfig(bits=4, w_bit=8)
    with pytest.raises(InvalidArgument, match=r"AwqConfig has no field 'use_exllama'\."):
        woq.AwqConfig(use_exllama=True)


@pytest.mark.parametrize(
    ("fields", "left"),
    [
        ({"block_name_to_quantize": "model.layers"}, {"model.projection", "lm_head", "layers.0.q"}),
        (
            {"modules_in_block_to_quantize": [["attn.q", "attn.k"], ["up"]]},
            {"model.layers.0.q", "model.layers.0.cup", "model.projection", "lm_head", "layers.0.q"},
        ),
        (
            {"block_name_to_quantize": "model.layers", "modules_in_block_to_quantize": ["q"]},
            {
                *("model.layers.0.attn.k", "model.layers.0.mlp.up", "model.layers.0.cup"),
                *("up", "model.projection", "lm_head", "layers.0.q"),
            },
        ),
    ],
    ids=range(3),
)
def test_what_is_quantized_by_names_of_blocks_and_layers(fields, left):
    from woq.modules.targets import matches

    config = woq.GPTQConfig(**fields, llm_int8_skip_modules=["lm_head"])
    names = {
        *("model.layers.0.attn.q", "model.layers.0.attn.k", "model.layers.10.attn.q"),
        *("model.layers.0.mlp.up", "model.layers.0.q", "model.layers.0.cup", "up"),
        *("model.projection", "lm_head", "layers.0.q"),
    }
    if "block_name_to_quantize" in fields:
        left = {*left, "up"}
    assert {name for name in names if matches(name, config.modules_to_not_convert)} == left
    assert woq.GPTQConfig.from_dict(config.to_dict()) == config


def test_names_of_blocks_that_are_none():
    with pytest.raises(InvalidArgument, match="block_name_to_quantize must be a module's name"):
        woq.GPTQConfig(block_name_to_quantize=["model.layers"])
    for wrong in ([], [3], 3):
        with pytest.raises(InvalidArgument, match="modules_in_block_to_quantize must be a list"):
            woq.GPTQConfig(modules_in_block_to_quantize=wrong)


def test_no_suggestion_that_is_far_off():
    for wrong in ("exllama_config", "use_exllama", "blocksize"):
        with pytest.raises(InvalidArgument, match=rf"no field '{wrong}'\. Known"):
            woq.RtnConfig(**{wrong: 1})


@pytest.mark.parametrize("method", known_algorithms(), ids=lambda method: method.name)
def test_every_other_name_is_written_as_the_option(method):
    config = WeightOnlyQuantConfig(algorithm=method.name, scheme="asym", weight_dtype="int4_clip")
    for name, option in method.options.items():
        for other in option.also:
            value = config.algorithm_args[name]
            given = copy.deepcopy(config)
            given.algorithm_args = {other: value}
            given.validate()
            assert given.to_dict() == config.to_dict()
            given.algorithm_args = {other: value, name: value}
            with pytest.raises(InvalidArgument, match=f"has '{name}' twice, once as '{other}'"):
                given.validate()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: woq.GPTQConfig(bits=9), "bits must be 2 to 8, got 9"),
        (lambda: woq.GPTQConfig(damp_percent=1), "damp_percent must be .* between 0 and 1, got 1"),
        (lambda: woq.GPTQConfig(blocksize=True), "blocksize must be an integer .*, got True"),
        (lambda: woq.GPTQConfig(desc_act=1), "desc_act must be True or False, got 1"),
        (lambda: woq.GPTQConfig(desc_act=True, act_group_aware=True), "exclude each other"),
        (lambda: woq.GPTQConfig(nsamples=0), "nsamples must be .* at least 1, got 0"),
        (lambda: woq.GPTQConfig(use_ggml=True), "use_ggml=True has no meaning"),
        (lambda: woq.AwqConfig(zero_point=1), "zero_point must be True or False"),
        (lambda: woq.AwqConfig(weight_dtype="nf4"), "asymmetric"),
        (lambda: woq.TeqConfig(lr=-1.0), "lr must be a number above 0, or None, got -1.0"),
        (lambda: woq.AutoRoundConfig(iters=-1), "iters must be .* at least 0, got -1"),
        (lambda: woq.AutoRoundConfig(lr=float("nan")), "lr must be"),
        (lambda: woq.AutoRoundConfig(activation_memory="much"), "activation_memory must be like"),
        (
            lambda: WeightOnlyQuantConfig(algorithm="GPTQ", algorithm_args={"percdmp": 0.1}),
            "GPTQ has no option 'percdmp'; did you mean 'damp_percent'",
        ),
        (lambda: WeightOnlyQuantConfig(algorithm_args={"iters": 1}), "RTN has no option 'iters'"),
        (lambda: WeightOnlyQuantConfig(algorithm_args=[1]), "must be a dict of options"),
        (
            lambda: WeightOnlyQuantConfig(modules_to_not_convert=["(?i)mlp"]),
            r"modules_to_not_convert: '\(\?i\)mlp' is no regular expression",
        ),
        (
            lambda: woq.HqqConfig(layer_config={"q_proj": {"scheme": "sym"}}),
            r"layer_config\['q_proj'\]: HQQ finds zero points",
        ),
        (
            lambda: WeightOnlyQuantConfig(algorithm="HQQ", scheme="asym", mse_range=True),
            "mse_range: HQQ has a search of its own",
        ),
        (lambda: RtnConfig.from_dict(woq.GPTQConfig().to_dict()), "cannot read a config of GPTQ"),
    ],
    ids=range(20),
)
def test_one_clear_error_for_each_mistake(make, message):
    with pytest.raises(InvalidArgument, match=message):
        make()


def test_lazy_names():
    for name in woq.__all__:
        assert getattr(woq, name) is getattr(woq, name)
    assert set(woq.__all__) <= set(dir(woq))
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        woq.quantise  # noqa: B018


@pytest.mark.parametrize(
    "fields",
    [
        {"group_size": 2**63},
        {"layer_config": {"q_proj": {"group_size": 2**63}}},
        {"modules_to_not_convert": 1e99},
        {"modules_to_not_convert": True},
    ],
    ids=str,
)
def test_values_that_python_would_refuse_first(fields):
    with pytest.raises(InvalidArgument, match=r"group_size|modules_to_not_convert"):
        WeightOnlyQuantConfig(**fields)
