# SPDX-License-Identifier: Apache-2.0
"""woq.compat.auto_gptq: scripts for AutoGPTQ run unchanged, and its own files come out."""

from __future__ import annotations

import importlib
import json
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_support import GPTQ, awq_layer, gptq_layer, write_checkpoint
from model_support import letters_checkpoint, llama, logits
from safetensors import safe_open
from safetensors.torch import load_file

import woq
from woq import InvalidArgument, Unsupported
from woq.compat import _arguments, auto_gptq

TEXTS = ["the quick brown fox jumps over the lazy dog", "pack my box with five dozen liquor jugs."]


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    auto_gptq.uninstall()
    _arguments._said.clear()
    assert not [name for name in sys.modules if name.partition(".")[0] == "auto_gptq"]
    assert not [finder for finder in sys.meta_path if "_stand_in" in type(finder).__module__]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return letters_checkpoint(tmp_path_factory.mktemp("letters"))


@pytest.fixture
def library():
    auto_gptq.install()
    return importlib.import_module("auto_gptq")


def quantized(library, folder, *, texts=TEXTS, **settings):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = library.BaseQuantizeConfig(**{"bits": 4, "group_size": 32, **settings})
    model = library.AutoGPTQForCausalLM.from_pretrained(folder, config)
    model.quantize([tokenizer(text) for text in texts])
    return model


def letters(model):
    with torch.no_grad():
        return model(torch.arange(2, 18)[None]).logits


# Scripts


def test_the_quick_start_script(folder, tmp_path, monkeypatch):
    """As in AutoGPTQ's documentation, in our words, with a local model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").symlink_to(folder)
    auto_gptq.install()
    script = """
from auto_gptq import AutoGPTQForCausalLM, BaseQuantizeConfig
from transformers import AutoTokenizer, TextGenerationPipeline

source, target = "tiny", "tiny-4bit"
tokenizer = AutoTokenizer.from_pretrained(source, use_fast=True)
examples = [tokenizer("the library quantizes language models. it is easy to use.")]
settings = BaseQuantizeConfig(bits=4, group_size=32, desc_act=False)
model = AutoGPTQForCausalLM.from_pretrained(source, settings)
model.quantize(examples, use_triton=False, cache_examples_on_gpu=False)
inputs = tokenizer("to be", return_tensors="pt").to(model.device)
before = model.generate(**inputs, max_new_tokens=8)
model.save_quantized(target)
model.save_quantized(target, use_safetensors=True)
tokenizer.save_pretrained(target)

model = AutoGPTQForCausalLM.from_quantized(target, device="cpu", use_triton=False)
after = model.generate(**inputs, max_new_tokens=8)
pipeline = TextGenerationPipeline(model=model, tokenizer=tokenizer)
text = pipeline("to be", max_new_tokens=8)[0]["generated_text"]
"""
    seen: dict[str, object] = {}
    exec(script, seen)
    assert torch.equal(seen["before"], seen["after"])
    assert seen["text"].startswith("to be")
    assert sorted(path.name for path in (tmp_path / "tiny-4bit").iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors", "quantize_config.json",
        "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip


def test_a_script_for_a_gpu_runs_on_the_cpu_if_asked(folder, tmp_path, caplog):
    with auto_gptq.install(on_cpu=True):
        library = importlib.import_module("auto_gptq")
        quantized(library, folder).to("cuda:0").save_quantized(tmp_path)
        for _ in range(2):
            model = library.AutoGPTQForCausalLM.from_quantized(
                tmp_path,
                device="cuda:0",
                use_triton=True,
                inject_fused_attention=True,
                inject_fused_mlp=False,
                disable_exllama=None,
            )
    assert model.device == torch.device("cpu")
    said = [line for line in caplog.messages if line.startswith("AutoGPTQForCausalLM: ")]
    assert len(said) == 3  # each once
    assert "device='cuda:0': it runs on the CPU" in said[0]
    assert "use_triton=True has no effect: woq runs its own kernels" in said[1]
    assert "inject_fused_attention=True has no effect" in said[2]
    assert "auto_gptq" not in sys.modules


# What is written


@pytest.mark.parametrize(
    ("bits", "desc_act"), [(2, True), (3, False), (4, False), (4, True), (8, False)]
)
def test_the_file_is_autogptqs(library, folder, tmp_path, bits, desc_act):
    """Its tensors, unpacked here as AutoGPTQ's kernels do, are the weights that the model has."""
    model = quantized(library, folder, bits=bits, desc_act=desc_act)
    model.save_quantized(tmp_path, safetensors_metadata={"made": "here"})
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "made": "here"}
    tensors = load_file(tmp_path / "model.safetensors")
    layers = {n: m for n, m in model.model.named_modules() if isinstance(m, woq.WeightOnlyLinear)}
    assert len(layers) == 14
    for name, layer in layers.items():
        qweight, qzeros, scales, g_idx = (
            tensors[f"{name}.{part}"].numpy() for part in ("qweight", "qzeros", "scales", "g_idx")
        )
        assert scales.dtype == np.float16
        codes = unpacked(qweight.T, bits).T  # [K, N]
        zeros = unpacked(qzeros, bits) + 1  # [G, N]
        assert (zeros == 1 << (bits - 1)).all()
        assert (np.diff(g_idx) >= 0).all() == (not desc_act)
        weight = scales.astype(np.float32)[g_idx] * (codes - zeros[g_idx])
        np.testing.assert_array_equal(weight.T, layer.quantized().dequantize())
    stored = json.loads((tmp_path / "quantize_config.json").read_text())
    assert stored["bits"] == bits
    assert (stored["group_size"], stored["desc_act"], stored["sym"]) == (32, desc_act, True)
    assert (stored["quant_method"], stored["checkpoint_format"]) == ("gptq", "gptq")
    assert stored["damp_percent"] == 0.01
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert stored.pop("model_name_or_path") == str(tmp_path)
    assert stored == {name: config[name] for name in stored}


def unpacked(words, bits):
    """[n, w] int32 words of codes, the lowest bits first: int [n, 32 w / bits]."""
    stream = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")
    fields = stream.reshape(len(words), -1, bits).astype(np.int64)
    return (fields << np.arange(bits)).sum(-1)


def test_zero_points_make_it_v2(library, folder, tmp_path):
    model = quantized(library, folder, sym=False)
    model.save_quantized(tmp_path)
    stored = json.loads((tmp_path / "quantize_config.json").read_text())
    assert (stored["sym"], stored["checkpoint_format"]) == (False, "gptq_v2")
    again = library.AutoGPTQForCausalLM.from_quantized(tmp_path)
    assert again.quantize_config.checkpoint_format == "gptq_v2"
    assert torch.equal(letters(again), letters(model))
    with pytest.raises(Unsupported, match="checkpoint_format='gptq', and a model with sym=False"):
        model.save_quantized(tmp_path, checkpoint_format="gptq")


def test_one_group_a_row_in_the_librarys_own_order(library, folder, tmp_path):
    """AutoGPTQ's defaults: group_size -1, desc_act."""
    model = quantized(library, folder, group_size=-1)
    assert model.quantize_config == library.BaseQuantizeConfig(bits=4)
    model.save_quantized(tmp_path)
    stored = json.loads((tmp_path / "quantize_config.json").read_text())
    assert stored["group_size"] == -1
    again = library.AutoGPTQForCausalLM.from_quantized(tmp_path)
    torch.testing.assert_close(letters(again), letters(model), rtol=1e-5, atol=1e-5)


def test_saved_again_it_is_the_same_file(library, folder, tmp_path):
    quantized(library, folder).save_quantized(tmp_path / "one")
    library.AutoGPTQForCausalLM.from_quantized(tmp_path / "one").save_pretrained(tmp_path / "two")
    one, two = ((tmp_path / each / "model.safetensors").read_bytes() for each in ("one", "two"))
    assert one == two


def test_others_read_it(library, folder, tmp_path):
    model = quantized(library, folder)
    model.save_quantized(tmp_path)
    loaded = woq.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(letters(loaded), letters(model))


@pytest.mark.parametrize("beside", [False, True])
def test_uploading(library, folder, tmp_path, monkeypatch, beside):
    """The library's own files, with what lies in the folder; not woq's."""
    import huggingface_hub

    seen = {}

    class Api:
        def __init__(self, token):
            seen["token"] = token

        def create_repo(self, name, **kwargs):
            seen.update(kwargs)
            return huggingface_hub.RepoUrl(f"https://huggingface.co/{name}")

        def upload_folder(self, repo_id, folder_path, **kwargs):
            path = Path(folder_path)
            seen.update(kwargs, name=repo_id, path=path)
            seen["files"] = sorted(file.name for file in path.iterdir())
            seen["method"] = json.loads((path / "config.json").read_text())["quantization_config"]
            return "commit"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    (tmp_path / "tokenizer.json").write_text("{}")
    model = quantized(library, folder)
    arguments = {"save_dir": tmp_path, "use_safetensors": True} if beside else {}
    assert model.push_to_hub("me/mine", use_auth_token="t", private=True, **arguments) == "commit"
    files = ["config.json", "generation_config.json", "model.safetensors", "quantize_config.json"]
    assert seen["files"] == files + ["tokenizer.json"] * beside
    assert (seen["name"], seen["token"], seen["private"]) == ("me/mine", "t", True)
    assert seen["method"]["quant_method"] == "gptq"
    assert seen["path"].exists() == beside


# What is read


def rewrite(folder: Path, name: str, settings: dict | None) -> None:
    """As the library wrote before config.json had settings: weights by its own name, and settings
    beside them or nowhere."""
    (folder / "model.safetensors").rename(folder / f"{name}.safetensors")
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    if settings is not None:
        (folder / "quantize_config.json").write_text(json.dumps(settings))


OLD = {"bits": 4, "group_size": 32, "damp_percent": 0.01, "desc_act": False, "sym": True}


@pytest.mark.parametrize(
    ("name", "settings", "arguments"),
    [
        ("gptq_model-4bit-32g", OLD, {}),
        ("model", OLD, {}),
        ("mine", OLD, {"model_basename": "mine"}),
        ("mine", OLD | {"model_file_base_name": "mine"}, {}),
        ("mine", None, {"model_basename": "mine", "quantize_config": OLD}),
    ],
)
def test_old_checkpoints(library, tmp_path, name, settings, arguments):
    model = llama(intermediate_size=128)
    write_checkpoint(tmp_path, model, gptq_layer, GPTQ)
    rewrite(tmp_path, name, settings)
    if "quantize_config" in arguments:
        arguments = {**arguments, "quantize_config": library.BaseQuantizeConfig(**OLD)}
    loaded = library.AutoGPTQForCausalLM.from_quantized(tmp_path, **arguments)
    torch.testing.assert_close(logits(loaded.model), logits(model), rtol=1e-4, atol=1e-4)
    assert loaded.quantize_config.bits == 4
    assert loaded.quantized


@pytest.mark.parametrize("wrong", [{"bits": 8}, {"group_size": 64}, {"group_size": -1}])
def test_a_passed_config_must_be_that_of_the_tensors(library, tmp_path, wrong):
    write_checkpoint(tmp_path, llama(intermediate_size=128), gptq_layer, GPTQ)
    config = library.BaseQuantizeConfig(**{**OLD, **wrong})
    with pytest.raises(InvalidArgument, match="has 4 bits in groups of 32: pass what"):
        library.AutoGPTQForCausalLM.from_quantized(tmp_path, quantize_config=config)


def test_autoawqs_checkpoints(library, tmp_path):
    model = llama(intermediate_size=128)
    settings = {"w_bit": 4, "q_group_size": 32, "zero_point": True, "version": "GEMM"}
    write_checkpoint(tmp_path, model, awq_layer, {"quant_method": "awq", **settings})
    loaded = library.AutoGPTQForCausalLM.from_quantized(tmp_path)
    torch.testing.assert_close(logits(loaded.model), logits(model), rtol=1e-4, atol=1e-4)
    assert loaded.quantize_config.quant_method == "awq"


# Calibration


def test_padding_does_not_calibrate(library, folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, pad_token="</s>")
    padded = tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert (padded["attention_mask"] == 0).any()
    config = library.BaseQuantizeConfig(bits=4, group_size=32)
    model = library.AutoGPTQForCausalLM.from_pretrained(folder, config)
    rows = [{name: padded[name][i] for name in padded} for i in range(2)]
    model.quantize(rows, batch_size=2)
    assert torch.equal(letters(model), letters(quantized(library, folder)))


def test_each_example_is_a_sample_as_it_is(library, folder, monkeypatch):
    """The model sees the examples, not a stream of them that is cut into pieces."""
    seen = []
    model_class = type(library.AutoGPTQForCausalLM.from_pretrained(
        folder, library.BaseQuantizeConfig(group_size=32)).model.model)  # fmt: skip
    forward = model_class.forward

    def note(self, input_ids=None, **kwargs):
        seen.append(input_ids.tolist())
        return forward(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(model_class, "forward", note)
    texts = ["a short one", "a longer text than the first", "another one"]
    quantized(library, folder, texts=texts)
    letters_of = {c: i + 2 for i, c in enumerate("abcdefghijklmnopqrstuvwxyz .")}
    expected = [[letters_of[c] for c in text] for text in texts]
    rows = [row for batch in seen for row in batch]
    assert all(row in rows for row in expected)
    assert all(row in expected for row in rows)


def test_an_example_longer_than_the_model_becomes_several(library, folder):
    quantized(library, folder, texts=["abcdefgh. " * 60])  # 600 letters, 256 positions


# Mistakes


def test_fields(library):
    config = library.BaseQuantizeConfig()
    assert (config.bits, config.group_size, config.damp_percent) == (4, -1, 0.01)
    assert (config.desc_act, config.static_groups, config.sym) == (True, False, True)
    for wrong, said in (
        ({"bits": 5}, "bits must be 2, 3, 4 or 8, got 5"),
        ({"bits": True}, "bits must be"),
        ({"group_size": 0}, "group_size must be -1 or a positive number, got 0"),
        ({"group_size": "128"}, "group_size must be"),
        ({"damp_percent": 1}, "damp_percent must be between 0 and 1, got 1"),
        ({"damp_percent": float("nan")}, "damp_percent must be"),
        ({"sym": 1}, "sym must be True or False, got 1"),
        ({"quant_method": "hqq"}, "quant_method must be gptq or awq"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format must be gptq or gptq_v2 for gptq"),
    ):
        with pytest.raises(InvalidArgument, match=said):
            library.BaseQuantizeConfig(**wrong)
    with pytest.raises(Unsupported, match="Marlin is a kernel of GPUs"):
        library.BaseQuantizeConfig(is_marlin_format=True)


def test_the_config_by_itself(library, tmp_path):
    config = library.BaseQuantizeConfig(bits=3, group_size=64, sym=False)
    config.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert library.BaseQuantizeConfig.from_pretrained(tmp_path) == config
    (tmp_path / "quantize_config.json").write_text("{")
    with pytest.raises(InvalidArgument, match=r"quantize_config.json is damaged"):
        library.BaseQuantizeConfig.from_pretrained(tmp_path)


def test_examples_must_be_tokens(library, folder):
    auto, config = library.AutoGPTQForCausalLM, library.BaseQuantizeConfig(group_size=32)
    model = auto.from_pretrained(folder, config)
    for examples, said in (
        ([], "hold fewer than two tokens"),
        ("text", "examples must be a list of what a tokenizer returns, got str"),
        ({"input_ids": [1, 2]}, "examples must be a list .* got dict"),
        (None, "examples must be a list"),
        ([{"input_ids": []}], "hold fewer than two tokens"),
        ([{"input_ids": [5, 6, 999]}], "token ids from 5 to 999, the model knows 0 to 29"),
        ([{"input_ids": [5, 6], "attention_mask": [1]}], "attention_mask of shape"),
        ([{"labels": [5, 6]}], "neither 'input_ids' nor text"),
    ):
        with pytest.raises(InvalidArgument, match=said):
            model.quantize(examples)
    assert not model.quantized
    model.quantize([{"input_ids": [3, 4, 5], "attention_mask": [1, 1, 1]}])
    with pytest.raises(InvalidArgument, match="quantized already"):
        model.quantize([{"input_ids": [3, 4, 5]}])


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda a, c, f: a(), OSError, "use AutoGPTQForCausalLM.from_pretrained"),
        (
            lambda a, c, f: a.from_pretrained(f, {"bits": 4}),
            InvalidArgument,
            "a BaseQuantizeConfig",
        ),
        (lambda a, c, f: a.from_pretrained(f, c, use_tritn=True), InvalidArgument, "use_triton?"),
        (lambda a, c, f: a.from_pretrained(f, c, device_map="cuda:0"), Unsupported, "on_cpu=True"),
        (lambda a, c, f: a.from_pretrained(f, c).save_quantized("x"), InvalidArgument, "quantize"),
        (lambda a, c, f: a.from_pretrained(f, c).to("cuda"), Unsupported, "run on the CPU"),
        (lambda a, c, f: a.from_pretrained(f / "no", c), OSError, "no"),
        (lambda a, c, f: a.from_quantized(f), InvalidArgument, "has no quantize_config.json"),
        (lambda a, c, f: a.from_quantized(f / "no"), OSError, "no"),
        (lambda a, c, f: a.from_quantized(f, quantize_config=c), InvalidArgument, "'qweight'"),
        (lambda a, c, f: a.from_quantized(f, device=0), Unsupported, "device=0"),
        (lambda a, c, f: a.from_quantized(f, use_safetensors=False), Unsupported, "a pickle file"),
        (
            lambda a, c, f: a.from_quantized(f, quantize_config=c, model_basename="mine"),
            InvalidArgument,
            "has no mine.safetensors",
        ),
    ],
)
def test_mistakes(library, folder, call, error, said):
    config = library.BaseQuantizeConfig(group_size=32)
    with pytest.raises(error, match=said):
        call(library.AutoGPTQForCausalLM, config, folder)


def test_a_checkpoint_that_is_quantized_is_not_quantized_again(library, tmp_path):
    write_checkpoint(tmp_path, llama(intermediate_size=128), gptq_layer, GPTQ)
    with pytest.raises(InvalidArgument, match="load it with AutoGPTQForCausalLM"):
        library.AutoGPTQForCausalLM.from_pretrained(tmp_path, library.BaseQuantizeConfig())


def test_what_the_format_cannot_hold_leaves_the_folder_alone(library, folder, tmp_path):
    model = quantized(library, folder, group_size=48)  # 64 and 128 columns
    (tmp_path / "model.safetensors").write_text("old")
    with pytest.raises(Unsupported, match="groups of 48 do not divide its 64 columns"):
        model.save_quantized(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidArgument, match="is no folder"):
        quantized(library, folder).save_quantized(tmp_path / "file")


# Installing


def test_modules(library):
    from auto_gptq.modeling import AutoGPTQForCausalLM, BaseGPTQForCausalLM
    from auto_gptq.quantization import BaseQuantizeConfig

    assert library.AutoGPTQForCausalLM is AutoGPTQForCausalLM
    assert library.BaseQuantizeConfig is BaseQuantizeConfig
    assert library.__version__.endswith("+woq")
    model = object()
    assert library.exllama_set_max_input_length(model, 4096) is model
    assert issubclass(BaseGPTQForCausalLM, torch.nn.Module)
    with pytest.raises(ImportError, match="take adapters as they are"):
        exec("from auto_gptq import get_gptq_peft_model")
    with pytest.raises(ModuleNotFoundError, match=r"no auto_gptq\.eval_tasks: it covers"):
        importlib.import_module("auto_gptq.eval_tasks")


def test_blocks():
    with auto_gptq.install():
        with auto_gptq.install(on_cpu=True):
            assert "auto_gptq" in sys.modules
        assert "auto_gptq" in sys.modules
        auto_gptq.uninstall()  # the block goes on
        assert "auto_gptq" in sys.modules
    assert "auto_gptq" not in sys.modules
    with pytest.raises(ModuleNotFoundError, match="auto_gptq"):
        importlib.import_module("auto_gptq")


def test_the_real_package_is_not_replaced(tmp_path, monkeypatch):
    (tmp_path / "auto_gptq").mkdir()
    (tmp_path / "auto_gptq" / "__init__.py").write_text("real = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Unsupported, match="pip uninstall auto-gptq"):
        auto_gptq.install()
    auto_gptq.uninstall()
    assert importlib.import_module("auto_gptq").real
    try:
        with pytest.raises(Unsupported, match="is installed in this environment"), \
                auto_gptq.install():  # fmt: skip
            raise AssertionError
    finally:
        del sys.modules["auto_gptq"]


def test_what_was_said_stays_quiet_for_nothing(library, folder, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "woq"):
        quantized(library, folder).save_quantized(tmp_path)
        library.AutoGPTQForCausalLM.from_quantized(
            tmp_path, device_map="auto", use_cuda_fp16=True, trust_remote_code=False
        )
    assert not caplog.messages
