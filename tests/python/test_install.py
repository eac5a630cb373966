# SPDX-License-Identifier: Apache-2.0
"""woq.install(): unchanged code for transformers loads other libraries' checkpoints on woq."""

from __future__ import annotations

import json
import logging
import sys
import threading
from functools import partial
from types import ModuleType

import pytest
import torch
from foreign_support import (
    AUTO_ROUND,
    AWQ,
    BITSANDBYTES,
    COMPRESSED,
    GPTQ,
    HQQ,
    MODELOPT,
    MXFP4,
    NVFP4,
    awq_layer,
    compressed_layer,
    fp4_layer,
    gptq_layer,
    hqq_layer,
    pack_4bit,
    pack_8bit,
    write_checkpoint,
)
from model_support import letters_checkpoint, llama, logits
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoRoundConfig,
    AutoTokenizer,
    AwqConfig,
    BitsAndBytesConfig,
    GPTQConfig,
    PreTrainedConfig,
)
from transformers.quantizers import auto

import woq
import woq.hf.load  # registers woq's readers with transformers, as the first loading would
from woq.hf.quantizer import register
from woq.observe.samples import Examples

TABLES = (auto.AUTO_QUANTIZATION_CONFIG_MAPPING, auto.AUTO_QUANTIZER_MAPPING)


@pytest.fixture(autouse=True)
def nothing_is_left():
    register()
    woq.uninstall()
    before = [dict(table) for table in TABLES]
    methods = (GPTQConfig.__dict__["__init__"], PreTrainedConfig.__dict__["get_config_dict"])
    yield
    woq.uninstall()
    assert [dict(table) for table in TABLES] == before
    assert GPTQConfig.__dict__["__init__"] is methods[0]
    assert PreTrainedConfig.__dict__["get_config_dict"] is methods[1]


def packed_llama(folder, pack=gptq_layer, settings=GPTQ):
    model = llama(intermediate_size=128)
    return write_checkpoint(folder, model, pack, settings), model


def layers(model):
    return [module for module in model.modules() if isinstance(module, woq.WeightOnlyLinear)]


METHODS = {
    "gptq": (gptq_layer, GPTQ),
    "awq": (awq_layer, AWQ),
    "auto-round": (gptq_layer, AUTO_ROUND),
    "intel/auto-round": (gptq_layer, AUTO_ROUND | {"quant_method": "intel/auto-round"}),
    "compressed-tensors": (compressed_layer, COMPRESSED),
    "hqq": (hqq_layer, HQQ),
    "modelopt": (partial(fp4_layer, kind="modelopt"), MODELOPT),
    "nvfp4": (partial(fp4_layer, kind="nvfp4"), NVFP4),
    "mxfp4": (partial(fp4_layer, kind="mxfp4"), MXFP4),
    "bitsandbytes-4": (pack_4bit, BITSANDBYTES),
    "bitsandbytes-8": (pack_8bit, BITSANDBYTES | {"load_in_4bit": False, "load_in_8bit": True}),
}


@pytest.mark.parametrize("method", METHODS)
def test_plain_transformers_runs_it_packed(tmp_path, method):
    folder, model = packed_llama(tmp_path, *METHODS[method])
    with woq.install():
        loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert len(layers(loaded)) == 14
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(loaded), logits(woq.AutoModelForCausalLM.from_pretrained(folder)))
    loaded.save_pretrained(tmp_path / "saved")  # in woq's own format, which needs no install()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(again), logits(loaded))


@pytest.mark.parametrize(
    ("method", "given", "said"),
    [
        ("gptq", GPTQConfig(bits=4, backend="exllama_v2", max_input_length=4096), "exllama_v2"),
        ("gptq", AutoRoundConfig(backend="auto_round:tritonv2"), "auto_round:tritonv2"),
        ("awq", AwqConfig(bits=4, backend="marlin"), "marlin"),
        ("awq", AutoRoundConfig(), None),
        ("auto-round", AutoRoundConfig(backend="ark"), "ark"),
        ("bitsandbytes-4", BitsAndBytesConfig(load_in_4bit=True), None),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
def test_a_config_of_the_same_method_is_accepted(tmp_path, method, given, said, caplog):
    folder, model = packed_llama(tmp_path, *METHODS[method])
    with woq.install(), caplog.at_level(logging.INFO, "woq"):
        loaded = AutoModelForCausalLM.from_pretrained(folder, quantization_config=given)
    assert len(layers(loaded)) == 14
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-4, atol=1e-4)
    lines = [line for line in caplog.messages if "has no effect on a CPU" in line]
    assert [said in line for line in lines] == ([True] if said else [])


def test_a_config_of_another_method_is_refused_as_ever(tmp_path):
    folder, _ = packed_llama(tmp_path)
    with woq.install(), pytest.raises(ValueError, match="quantized with GPTQConfig but you are"):
        AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=BitsAndBytesConfig(load_in_4bit=True)
        )


def test_settings_that_transformers_drops_still_count(tmp_path):
    folder, _ = packed_llama(tmp_path, gptq_layer, GPTQ | {"rotation": "hadamard"})
    with woq.install(), pytest.raises(woq.Unsupported, match="its weights are rotated"):
        AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda t: t.update({"model.layers.0.mlp.act_fn.scales": torch.ones(128)}),
            "no place in the model: model.layers.0.mlp.act_fn.scales",
        ),
        (lambda t: t.pop("model.norm.weight"), "lacks tensors of the model: model.norm.weight"),
    ],
)
def test_what_would_change_the_model_is_refused(tmp_path, edit, message):
    folder, _ = packed_llama(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with woq.install(), pytest.raises(woq.InvalidArgument, match=message):
        AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("device_map", ["cuda:0", {"": 0}, {"model": "cpu", "lm_head": "disk"}])
def test_another_device_is_refused(tmp_path, device_map):
    folder, _ = packed_llama(tmp_path)
    with woq.install(), pytest.raises(woq.Unsupported, match="woq's kernels run on the CPU"):
        AutoModelForCausalLM.from_pretrained(folder, device_map=device_map)


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}])
def test_the_cpu_by_any_name(tmp_path, device_map):
    folder, model = packed_llama(tmp_path)
    with woq.install():
        loaded = AutoModelForCausalLM.from_pretrained(folder, device_map=device_map)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-4, atol=1e-4)


def test_the_compute_dtype_is_that_of_the_last_call(tmp_path):
    folder, _ = packed_llama(tmp_path)
    with woq.install(compute_dtype="int8"):
        first = AutoModelForCausalLM.from_pretrained(folder)
        with woq.install():
            second = AutoModelForCausalLM.from_pretrained(folder)
    assert {layer.requested_compute_dtype for layer in layers(first)} == {"int8"}
    assert {layer.requested_compute_dtype for layer in layers(second)} == {"fp32"}
    with pytest.raises(woq.InvalidArgument, match="fp12"):
        woq.install(compute_dtype="fp12")


def is_installed():
    return auto.AUTO_QUANTIZER_MAPPING["gptq"].__module__ == "woq.hf.install"


def test_switched_on_and_off():
    assert not is_installed()
    woq.install()
    woq.install()
    assert is_installed()
    woq.uninstall()
    assert not is_installed()
    with woq.install():
        with woq.install():
            woq.install()
        assert is_installed()
        woq.uninstall()  # the block goes on
        assert is_installed()
    assert not is_installed()
    with pytest.raises(KeyError), woq.install():
        raise KeyError
    assert not is_installed()


def test_blocks_of_several_threads(tmp_path):
    folder, model = packed_llama(tmp_path)
    expected = logits(model)
    failures = []
    start = threading.Barrier(4)
    # transformers replaces methods of its classes while it loads, and puts back what it found: two
    # loads at once could leave one's replacement there for good.
    loading = threading.Lock()

    def load():
        start.wait()
        try:
            for _ in range(3):
                with woq.install(), loading:
                    loaded = AutoModelForCausalLM.from_pretrained(folder)
                torch.testing.assert_close(logits(loaded), expected, rtol=1e-4, atol=1e-4)
        except BaseException as error:  # noqa: BLE001 (shown below)
            failures.append(error)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert not is_installed()


def test_what_others_put_there_meanwhile_stays():
    original = auto.AUTO_QUANTIZER_MAPPING["awq"]
    woq.install()
    auto.AUTO_QUANTIZER_MAPPING["awq"] = "theirs"
    try:
        woq.uninstall()
        assert auto.AUTO_QUANTIZER_MAPPING["awq"] == "theirs"
    finally:
        auto.AUTO_QUANTIZER_MAPPING["awq"] = original


@pytest.mark.parametrize("table", TABLES, ids=["configs", "quantizers"])
def test_another_transformers_is_refused_by_name(monkeypatch, table):
    monkeypatch.delitem(table, "auto-round")
    before = [dict(each) for each in TABLES]
    with pytest.raises(woq.Unsupported, match=r"does not know the .* methods auto-round"):
        woq.install()
    assert [dict(each) for each in TABLES] == before


def test_a_transformers_that_does_not_tell_is_refused(tmp_path, monkeypatch):
    from transformers import PreTrainedModel

    folder, _ = packed_llama(tmp_path)
    monkeypatch.delattr(PreTrainedModel, "_adjust_missing_and_unexpected_keys")
    with pytest.raises(woq.Unsupported, match="does not tell which tensors"):
        woq.AutoModelForCausalLM.from_pretrained(folder)


def test_float_models_are_left_alone(tmp_path):
    model = llama()
    model.save_pretrained(tmp_path)
    with woq.install():
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model))


@pytest.mark.parametrize(
    ("given", "own"),
    [
        (
            BitsAndBytesConfig(load_in_4bit=True),  # fp4 is its default
            {"weight_dtype": "fp4_e2m1_bnb", "group_size": 64},
        ),
        (
            BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                llm_int8_skip_modules=["o_proj"],
            ),
            {
                "weight_dtype": "nf4",
                "group_size": 64,
                "use_double_quant": True,
                "modules_to_not_convert": ["o_proj"],
            },
        ),
        (BitsAndBytesConfig(load_in_8bit=True), {"weight_dtype": "int8", "group_size": -1}),
    ],
)
def test_bitsandbytes_config_quantizes_a_float_model(tmp_path, given, own):
    model = llama()
    model.save_pretrained(tmp_path)
    with woq.install():
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=given)
    expected = woq.quantize(model, woq.WeightOnlyQuantConfig(**own))
    assert torch.equal(logits(loaded), logits(expected))
    loaded.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(again), logits(loaded))


TEXTS = ["the quick brown fox jumps over the lazy dog. " * 4, "a b c d e f g h. " * 8, "short"] * 2


def test_gptq_config_quantizes_a_float_model(tmp_path, caplog):
    """A list is samples as they are, however short."""
    folder = letters_checkpoint(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with woq.install(), caplog.at_level(logging.INFO, "woq"):
        given = GPTQConfig(
            bits=4,
            dataset=TEXTS,
            tokenizer=tokenizer,
            group_size=32,
            damp_percent=0.05,
            use_exllama=False,
            exllama_config={"version": 2},
        )
        loaded = AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=given, device_map="auto"
        )
    assert loaded.config.quantization_config.algorithm == "GPTQ"
    assert "exllama_config={'version': 2} is about kernels of GPUs" in caplog.text
    model = AutoModelForCausalLM.from_pretrained(folder)
    config = woq.GPTQConfig(
        bits=4,
        dataset=Examples(TEXTS),
        tokenizer=tokenizer,
        group_size=32,
        damp_percent=0.05,
        true_sequential=True,
    )
    assert torch.equal(letters(loaded), letters(woq.quantize(model, config)))


@pytest.mark.parametrize("name", ["c4", "c4-new", "wikitext2"])
def test_data_sets_by_the_names_that_optimum_had(tmp_path, monkeypatch, name):
    asked = []
    module = ModuleType("datasets")
    module.__spec__ = object()
    module.load_dataset = lambda **kwargs: asked.append(kwargs) or [{"text": t} for t in TEXTS]
    folder = letters_checkpoint(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with woq.install():
        monkeypatch.setitem(sys.modules, "datasets", module)
        given = GPTQConfig(bits=4, dataset=name, tokenizer=tokenizer, group_size=32)
        loaded = AutoModelForCausalLM.from_pretrained(folder, quantization_config=given)
    assert len(layers(loaded)) == 14
    assert asked[0]["path"] == ("Salesforce/wikitext" if name == "wikitext2" else "allenai/c4")


def test_awq_config_quantizes_a_float_model(tmp_path):
    folder = letters_checkpoint(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    given = AwqConfig(
        bits=4,
        group_size=32,
        zero_point=False,
        modules_to_not_convert=["down_proj"],
        dataset=TEXTS,
        tokenizer=tokenizer,
        fuse_max_seq_len=512,
        do_fuse=True,
    )
    with woq.install():
        loaded = AutoModelForCausalLM.from_pretrained(folder, quantization_config=given)
    assert len(layers(loaded)) == 12
    model = AutoModelForCausalLM.from_pretrained(folder)
    config = woq.AwqConfig(
        bits=4,
        group_size=32,
        zero_point=False,
        modules_to_not_convert=["down_proj"],
        dataset=TEXTS,
        tokenizer=tokenizer,
    )
    assert torch.equal(letters(loaded), letters(woq.quantize(model, config)))


def letters(model):
    with torch.no_grad():
        return model(torch.arange(2, 18)[None]).logits


def test_other_configs_do_not_quantize(tmp_path):
    llama().save_pretrained(tmp_path)
    with woq.install(), pytest.raises(woq.Unsupported, match="not quantize by a AutoRoundConfig"):
        AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=AutoRoundConfig())


@pytest.mark.parametrize("device_map", ["cuda:0", {"": 0}, "cuda"])
def test_a_gpu_is_the_cpu_if_asked(tmp_path, device_map, caplog):
    folder, model = packed_llama(tmp_path / "packed")
    model.save_pretrained(tmp_path / "float")
    with woq.install(on_cpu=True):
        loaded = AutoModelForCausalLM.from_pretrained(folder, device_map=device_map)
        quantized = AutoModelForCausalLM.from_pretrained(
            tmp_path / "float",
            device_map=device_map,
            quantization_config=BitsAndBytesConfig(load_in_8bit=True),
        )
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-4, atol=1e-4)
    assert len(layers(quantized)) == 14
    assert loaded.device == quantized.device == torch.device("cpu")
    assert caplog.text.count("the model runs on the CPU") == 2


OLD = {
    "gptq": (
        gptq_layer,
        GPTQ,
        "quantize_config.json",
        {"bits": 4, "group_size": 32, "damp_percent": 0.01, "desc_act": False, "sym": True},
    ),
    "awq": (
        awq_layer,
        AWQ,
        "quant_config.json",
        {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"},
    ),
}


@pytest.mark.parametrize(
    ("method", "weights"), [("gptq", "gptq_model-4bit-32g"), ("gptq", "model"), ("awq", "model")]
)
def test_old_checkpoints(tmp_path, method, weights):
    """Settings beside config.json; AutoGPTQ's own name of the weights."""
    pack, settings, name, old = OLD[method]
    folder, model = packed_llama(tmp_path, pack, settings)
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / name).write_text(json.dumps(old))
    (folder / "model.safetensors").rename(folder / f"{weights}.safetensors")
    with woq.install():
        loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert len(layers(loaded)) == 14
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(woq.AutoModelForCausalLM.from_pretrained(folder)), logits(loaded))
    loaded.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(again), logits(loaded))
    (folder / name).write_text("{")
    with woq.install(), pytest.raises(woq.InvalidArgument, match=f"{name} is damaged"):
        AutoModelForCausalLM.from_pretrained(folder)
