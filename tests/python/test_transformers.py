# SPDX-License-Identifier: Apache-2.0
"""woq inside transformers: quantize while loading, save, read back, convert back."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import warnings

import pytest
import torch
from model_support import gpt2, llama, logits, mixtral, seed, t5
from torch import nn

pytest.importorskip("transformers")

from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, pipeline

import woq
from woq import InvalidArgument, RtnConfig, Unsupported, WeightOnlyLinear, WeightOnlyQuantConfig
from woq.core import native

MODELS = {"llama": llama, "tied": lambda **k: llama(tied=True, **k), "t5": t5, "gpt2": gpt2}
CONFIGS = {
    "default": WeightOnlyQuantConfig(),
    "nf4-head8": WeightOnlyQuantConfig("nf4", quantize_lm_head="int8"),
    "asym-bf16": WeightOnlyQuantConfig("int4_clip", scheme="asym", scale_dtype="bf16"),
    "double": WeightOnlyQuantConfig(use_double_quant=True, quantize_lm_head=True),
    "row-int8": WeightOnlyQuantConfig("int8", group_size=-1, compute_dtype="int8"),
    "rtn": RtnConfig(bits=4, sym=False, scale_dtype="fp16"),
}


@pytest.fixture(autouse=True)
def _seed(request):
    seed(request)


def auto(model):
    return AutoModelForSeq2SeqLM if model.config.is_encoder_decoder else AutoModelForCausalLM


@pytest.fixture
def saved(tmp_path):
    """Saves a float model and returns the folder."""

    def save(model, **kwargs):
        folder = tmp_path / "float"
        model.save_pretrained(folder, **kwargs)
        return folder

    return save


def layers(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, WeightOnlyLinear)}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("kind", MODELS)
def test_load_save_reload(kind, config, saved, tmp_path):
    model = MODELS[kind]()
    folder = saved(model)
    loaded = auto(model).from_pretrained(folder, quantization_config=config)
    quantized = logits(loaded)
    # Loading quantizes exactly as woq.quantize does.
    assert torch.equal(quantized, logits(woq.quantize(model, config)))
    assert layers(loaded).keys() == layers(model).keys()
    assert loaded.woq_report.layers == model.woq_report.layers or {
        layer.name: layer for layer in loaded.woq_report.layers
    } == {layer.name: layer for layer in model.woq_report.layers}
    assert loaded.woq_report.total_parameters == model.woq_report.total_parameters
    for save in (loaded.save_pretrained, lambda path: woq.save_pretrained(loaded, path)):
        save(tmp_path / "woq")
        reloaded = auto(model).from_pretrained(tmp_path / "woq")
        assert torch.equal(logits(reloaded), quantized)
        stored = json.loads((tmp_path / "woq" / "config.json").read_text())["quantization_config"]
        assert len(stored.pop("digest")) == 64
        assert stored == config.to_dict()
        assert not reloaded.training


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(kind, dtype, saved, tmp_path):
    model = MODELS[kind](dtype=dtype)
    config = WeightOnlyQuantConfig("int8", quantize_lm_head=True)
    loaded = auto(model).from_pretrained(saved(model), quantization_config=config)
    quantized = logits(loaded)
    assert quantized.dtype == dtype == loaded.dtype
    loaded.save_pretrained(tmp_path / "woq")
    assert torch.equal(logits(auto(model).from_pretrained(tmp_path / "woq")), quantized)


def test_cast_while_loading(saved, tmp_path):
    folder = saved(llama(dtype=torch.bfloat16))
    config = WeightOnlyQuantConfig("nf4")
    half = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)
    full = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, dtype=torch.float32
    )
    for name, layer in layers(half).items():
        assert torch.equal(layer.dequantize(), layers(full)[name].dequantize())
    half.save_pretrained(tmp_path / "woq")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "woq", dtype=torch.float32)
    assert torch.equal(logits(again), logits(full))


def test_sharded_checkpoints(saved, tmp_path):
    model = llama()
    folder = saved(model, max_shard_size="40KB")
    assert len(list(folder.glob("*.safetensors"))) > 3
    loaded = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=WeightOnlyQuantConfig("int8")
    )
    quantized = logits(loaded)
    for save in (loaded.save_pretrained, lambda path, **k: woq.save_pretrained(loaded, path, **k)):
        save(tmp_path / "woq", max_shard_size="30KB")
        assert len(list((tmp_path / "woq").glob("*.safetensors"))) > 2
        reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "woq")
        assert torch.equal(logits(reloaded), quantized)


def test_mixture_of_experts(saved, tmp_path):
    model = mixtral()
    loaded = AutoModelForCausalLM.from_pretrained(
        saved(model), quantization_config=WeightOnlyQuantConfig("int8")
    )
    assert layers(loaded)
    assert any("expert" in entry.name for entry in loaded.woq_report.left)
    expected = logits(loaded)
    loaded.save_pretrained(tmp_path / "woq")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "woq")), expected)


def test_bert_with_biases(tmp_path):
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        num_labels=3,
    )
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) / 8)
    model.save_pretrained(tmp_path / "float")
    loaded = BertForSequenceClassification.from_pretrained(
        tmp_path / "float", quantization_config=WeightOnlyQuantConfig("nf4")
    )
    woq.quantize(model, WeightOnlyQuantConfig("nf4"))
    ids = torch.arange(8)[None]
    with torch.no_grad():
        expected = model(ids).logits
        assert torch.equal(loaded(ids).logits, expected)
        loaded.save_pretrained(tmp_path / "woq")
        again = BertForSequenceClassification.from_pretrained(tmp_path / "woq")
        assert torch.equal(again(ids).logits, expected)
    # The classification head decides the output and is small.
    assert type(again.classifier) is nn.Linear


def test_modules_to_not_convert(saved, tmp_path):
    config = WeightOnlyQuantConfig("nf4", modules_to_not_convert=[r"model\.layers\.0", "k_proj"])
    loaded = AutoModelForCausalLM.from_pretrained(saved(llama()), quantization_config=config)
    names = set(layers(loaded))
    assert names
    assert not any("layers.0" in name or "k_proj" in name for name in names)
    loaded.save_pretrained(tmp_path / "woq")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "woq")
    assert set(layers(again)) == names
    assert torch.equal(logits(again), logits(loaded))


@pytest.mark.parametrize("make", [lambda: llama(tied=True), t5, gpt2], ids=["llama", "t5", "gpt2"])
def test_tied_head_survives(make, saved, tmp_path):
    model = make()
    config = WeightOnlyQuantConfig("int4_clip", quantize_lm_head="int8")
    loaded = auto(model).from_pretrained(saved(model), quantization_config=config)
    assert loaded.lm_head.scheme["dtype"] == "int8"
    embedding = loaded.get_input_embeddings().weight
    assert torch.equal(embedding, model.get_input_embeddings().weight)
    woq.save_pretrained(loaded, tmp_path / "woq")
    again = auto(model).from_pretrained(tmp_path / "woq")
    assert isinstance(again.lm_head, WeightOnlyLinear)
    assert torch.equal(logits(again), logits(loaded))
    again.tie_weights()
    assert torch.equal(logits(again), logits(loaded))
    # What the class declares is untouched: another model of it still ties its weights.
    other = make()
    assert other.get_output_embeddings().weight is other.get_input_embeddings().weight


def test_generate_and_pipeline(saved):
    folder = saved(llama())
    config = WeightOnlyQuantConfig("int8")
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)
    ids = torch.arange(3, 9)[None]
    out = model.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert out.shape == (1, 10)
    for device in (None, "cpu", -1):
        pipe = pipeline("text-generation", model=model, tokenizer=_Tokenizer(), device=device)
        assert pipe.device.type == "cpu"


class _Tokenizer:
    """Enough of one to construct a pipeline."""

    pad_token_id = 0
    eos_token_id = 1
    padding_side = "left"

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return


def test_pickle_and_deepcopy(saved):
    model = AutoModelForCausalLM.from_pretrained(
        saved(llama(tied=True)), quantization_config=WeightOnlyQuantConfig("nf4")
    )
    expected = logits(model)
    assert torch.equal(logits(copy.deepcopy(model)), expected)
    assert torch.equal(logits(pickle.loads(pickle.dumps(model))), expected)


def test_training_mode_gives_input_gradients(saved):
    model = AutoModelForCausalLM.from_pretrained(
        saved(llama()), quantization_config=WeightOnlyQuantConfig("int8")
    )
    embedding = model.get_input_embeddings().weight
    model.train()
    model(torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    assert embedding.grad.abs().sum() > 0


# -- devices --------------------------------------------------------------------------------------


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}, None], ids=str)
def test_stays_on_the_cpu(device_map, saved):
    model = AutoModelForCausalLM.from_pretrained(
        saved(llama()), quantization_config=WeightOnlyQuantConfig(), device_map=device_map
    )
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    logits(model)


@pytest.mark.parametrize("device_map", ["cuda", {"": "disk"}, {"": 0}, "meta"], ids=str)
def test_other_devices_are_refused(device_map, saved):
    folder = saved(llama())
    with pytest.raises(Unsupported, match="run on the CPU"):
        AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=WeightOnlyQuantConfig(), device_map=device_map
        )


def test_moving_away_is_refused(saved):
    model = AutoModelForCausalLM.from_pretrained(
        saved(llama()), quantization_config=WeightOnlyQuantConfig()
    )
    with pytest.raises(Unsupported, match=r"model\.dequantize\(\)"):
        model.to("meta")


def test_pipelines_leave_it_on_the_cpu_where_a_gpu_is(saved, monkeypatch, tmp_path):
    folder = saved(llama())
    if not hasattr(torch, "accelerator"):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    else:
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=WeightOnlyQuantConfig("int8")
    )
    # pipeline() moves a model without a device map to the first GPU.
    assert model.hf_device_map == {"": torch.device("cpu")}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "saving a model with offloaded modules"
        model.save_pretrained(tmp_path / "woq")


# -- converting back ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
def test_dequantize(kind, saved, tmp_path):
    model = MODELS[kind]()
    config = WeightOnlyQuantConfig("int8", quantize_lm_head=True)
    loaded = auto(model).from_pretrained(saved(model), quantization_config=config)
    expected = logits(loaded)
    weights = {name: layer.dequantize() for name, layer in layers(loaded).items()}
    plain = loaded.dequantize()
    assert not layers(plain)
    assert not hasattr(plain.config, "quantization_config")
    for name, weight in weights.items():
        module = plain.get_submodule(name)
        assert type(module) is type(model.get_submodule(name))
        assert torch.equal(
            module.weight if type(module) is nn.Linear else module.weight.t(), weight
        )
    torch.testing.assert_close(logits(plain), expected, rtol=1e-4, atol=1e-4)
    plain.save_pretrained(tmp_path / "plain")
    again = auto(model).from_pretrained(tmp_path / "plain")
    torch.testing.assert_close(logits(again), logits(plain), rtol=1e-5, atol=1e-5)


# -- auto classes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "dtype"),
    [
        ({"load_in_4bit": True}, "nf4"),
        ({"load_in_8bit": True}, "int8"),
        ({"load_in_4bit": True, "quantization_config": RtnConfig()}, "int4_clip"),
        ({"quantization_config": WeightOnlyQuantConfig}, "int4_fullrange"),
        ({"quantization_config": {"weight_dtype": "fp4"}}, "fp4_e2m1_bnb"),
        ({"load_in_4bit": False, "load_in_8bit": False, "quantization_config": None}, None),
        ({"use_llm_runtime": False, "device_map": "cpu", "load_in_8bit": True}, "int8"),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_auto_classes(kind, arguments, dtype, saved):
    model = MODELS[kind]()
    classes = {"llama": woq.AutoModelForCausalLM, "t5": woq.AutoModelForSeq2SeqLM}
    loaded = classes[kind].from_pretrained(saved(model), **arguments)
    assert isinstance(loaded, type(model))
    assert {layer.scheme["dtype"] for layer in layers(loaded).values()} == {dtype} - {None}


def test_auto_class_reads_a_checkpoint_whatever_is_passed(saved, tmp_path):
    model = woq.AutoModelForCausalLM.from_pretrained(saved(llama()), load_in_4bit=True)
    model.save_pretrained(tmp_path / "woq")
    with pytest.warns(UserWarning, match="already has a `quantization_config`"):
        again = woq.AutoModelForCausalLM.from_pretrained(
            tmp_path / "woq", quantization_config=RtnConfig(bits=8)
        )
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize(
    "arguments",
    [
        {"load_in_4bit": True, "load_in_8bit": True},
        {"load_in_8bit": True, "quantization_config": WeightOnlyQuantConfig("nf4")},
        {"load_in_4bit": True, "quantization_config": object()},
    ],
    ids=["both", "8-bit-nf4", "foreign"],
)
def test_contradicting_arguments(arguments, tmp_path):
    with pytest.raises(InvalidArgument):
        woq.AutoModelForCausalLM.from_pretrained(tmp_path, **arguments)


@pytest.mark.parametrize("arguments", [{}, {"load_in_4bit": True}], ids=["as it is", "4 bits"])
def test_a_checkpoint_of_another_library(arguments, saved):
    """That woq does not read: one clear error, and the same as the command line's."""
    folder = saved(llama())
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "quanto", "weights": "int4"}
    (folder / "config.json").write_text(json.dumps(config))
    match = r"is quantized already \(quanto\): start from the model in floating point"
    with pytest.raises(InvalidArgument, match=match):
        woq.AutoModelForCausalLM.from_pretrained(folder, **arguments)


def test_output_loading_info(saved):
    model, info = woq.AutoModelForCausalLM.from_pretrained(
        saved(llama()), load_in_4bit=True, output_loading_info=True
    )
    assert layers(model)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_in_a_checkpoint_is_one_clear_error(value, saved):
    model = llama()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[5, 17] = value
    folder = saved(model)
    with pytest.raises(InvalidArgument) as error:
        AutoModelForCausalLM.from_pretrained(folder, quantization_config=WeightOnlyQuantConfig())
    for part in ("model.layers.1.mlp.down_proj", "row 5", "17"):
        assert part in str(error.value)


def test_all_bad_layers_of_a_checkpoint_are_named_at_once(saved):
    model = llama()
    bad = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"]
    with torch.no_grad():
        for name in bad:
            model.get_submodule(name).weight[5, 17] = float("nan")
    with pytest.raises(InvalidArgument, match="2 layers cannot be quantized") as error:
        AutoModelForCausalLM.from_pretrained(
            saved(model), quantization_config=WeightOnlyQuantConfig()
        )
    lines = str(error.value).split("\n-")[1:]
    assert [line.count(name) for name, line in zip(bad, lines, strict=True)] == [1, 1]


def test_an_error_that_is_not_the_checkpoints_comes_first(saved, monkeypatch):
    real, failed = native.quantize_rtn, RuntimeError("out of memory")
    calls = []

    def quantize_rtn(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise failed
        return real(*args, **kwargs)

    model = llama()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight[5, 17] = float("nan")
    folder = saved(model)
    monkeypatch.setattr("woq.core.native.quantize_rtn", quantize_rtn)
    with pytest.raises(RuntimeError, match="out of memory"):
        AutoModelForCausalLM.from_pretrained(folder, quantization_config=WeightOnlyQuantConfig())
    assert len(calls) > 2  # the others are looked at


def test_a_model_that_could_not_be_saved_is_not_quantized(monkeypatch):
    model = llama()
    monkeypatch.setattr("woq.quantizing.hooks._hooks", [])
    with pytest.raises(Unsupported, match="could not register itself with transformers"):
        woq.quantize(model, WeightOnlyQuantConfig())
    assert not layers(model)
    woq.quantize(torch.nn.Sequential(torch.nn.Linear(32, 8)), WeightOnlyQuantConfig())


def test_wrong_shape_in_a_checkpoint(saved):
    folder = saved(llama())
    config = json.loads((folder / "config.json").read_text())
    config["intermediate_size"] = 112
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidArgument, match=r"mlp\.\w+\.weight has shape .* in the checkpoint"):
        AutoModelForCausalLM.from_pretrained(folder, quantization_config=WeightOnlyQuantConfig())


def test_missing_files(tmp_path):
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises((OSError, ValueError), match=str(tmp_path)):
            woq.AutoModelForCausalLM.from_pretrained(path, load_in_4bit=True)


@pytest.fixture
def checkpoint(saved, tmp_path):
    """A saved woq checkpoint."""
    model = AutoModelForCausalLM.from_pretrained(
        saved(llama()), quantization_config=WeightOnlyQuantConfig("nf4")
    )
    model.save_pretrained(tmp_path / "woq")
    return tmp_path / "woq"


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.99], ids=str)
def test_truncated_checkpoint(checkpoint, keep):
    path = checkpoint / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    for auto_class in (AutoModelForCausalLM, woq.AutoModelForCausalLM):
        with pytest.raises(InvalidArgument, match=r"model\.safetensors is damaged or incomplete"):
            auto_class.from_pretrained(checkpoint)


def forget_digest(folder):
    """As one has to do who changes the tensors of a checkpoint."""
    path = folder / "config.json"
    values = json.loads(path.read_text())
    del values["quantization_config"]["digest"]
    path.write_text(json.dumps(values))


@pytest.mark.parametrize("lost", ["q_proj.qweight", "q_proj.scales", "layers.1.", "weight"])
def test_checkpoint_that_lacks_tensors(checkpoint, lost):
    from safetensors.torch import load_file, save_file

    path = checkpoint / "model.safetensors"
    state = load_file(path)
    kept = {
        key: value.clone()
        for key, value in state.items()
        if not (key.endswith("proj.weight") if lost == "weight" else lost in key)
    }
    assert len(kept) < len(state)
    save_file(kept, path, {"format": "pt"})
    with pytest.raises(InvalidArgument, match=r"not of the same save \(it has no digest"):
        AutoModelForCausalLM.from_pretrained(checkpoint)
    forget_digest(checkpoint)
    message = (
        r"lacks \d+ of woq's tensors \(model\.layers|model\.layers\.0\.self_attn\.\S* is missing"
    )
    with pytest.raises(InvalidArgument, match=message):
        AutoModelForCausalLM.from_pretrained(checkpoint)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("weight_dtype", "int9", "int9"),
        ("format_version", 99, "newer woq"),
        ("group_size", 64, "the settings ask for tensors of the form"),
        ("scheme", "asymmetric", "asymmetric"),
        ("colour", "red", "no field 'colour'"),
    ],
)
def test_checkpoint_with_a_broken_config(checkpoint, field, value, message):
    path = checkpoint / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"][field] = value
    path.write_text(json.dumps(config))
    with pytest.raises(InvalidArgument, match=message):
        AutoModelForCausalLM.from_pretrained(checkpoint)


def test_checkpoint_of_a_newer_format(checkpoint):
    from safetensors.torch import load_file, save_file

    path = checkpoint / "model.safetensors"
    state = {key: value.clone() for key, value in load_file(path).items()}
    for key, value in state.items():
        if key.endswith("proj.weight"):
            state[key] = value + 1  # also the rest of it, which is not read then
    save_file(state, path, {"format": "pt"})
    forget_digest(checkpoint)
    with pytest.raises(InvalidArgument, match="format version 3"):
        AutoModelForCausalLM.from_pretrained(checkpoint)


def test_logging(saved, caplog):
    with caplog.at_level(logging.INFO, "woq"):
        model = AutoModelForCausalLM.from_pretrained(
            saved(llama()), quantization_config=WeightOnlyQuantConfig()
        )
    assert "14 layers quantized (14 x int4_fullrange)" in caplog.text
    assert model.lm_head is not None
    assert next(iter(layers(model).values())).explain()["kernel"] in caplog.text
