# SPDX-License-Identifier: Apache-2.0
"""woq.compat.awq: scripts for AutoAWQ run unchanged, and its own files come out."""

from __future__ import annotations

import importlib
import json
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from foreign_support import AWQ, GPTQ, awq_layer, gptq_layer, write_checkpoint
from model_support import letters_checkpoint, llama, logits
from safetensors.torch import load_file

import woq
from woq import InvalidArgument, Unsupported
from woq.compat import _arguments, awq

TEXTS = ["the quick brown fox jumps over the lazy dog. " * 3, "pack my box with five dozen. " * 4]
QUANT_CONFIG = {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}
CALIBRATION = {"calib_data": TEXTS, "max_calib_samples": 8, "max_calib_seq_len": 32}


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    awq.uninstall()
    _arguments._said.clear()
    assert not [name for name in sys.modules if name.partition(".")[0] == "awq"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return letters_checkpoint(tmp_path_factory.mktemp("letters"))


@pytest.fixture
def library():
    awq.install()
    return importlib.import_module("awq")


def quantized(library, folder, **arguments):
    model = library.AutoAWQForCausalLM.from_pretrained(folder)
    model.quantize(quant_config=QUANT_CONFIG, **{**CALIBRATION, **arguments})
    return model


def letters(model):
    with torch.no_grad():
        return model(torch.arange(2, 18)[None]).logits


def test_the_example_script(folder, tmp_path, monkeypatch):
    """As AutoAWQ's examples go, in our words, with a local model and local text."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").symlink_to(folder)
    (tmp_path / "corpus.txt").write_text("\n".join(TEXTS * 3))
    awq.install()
    script = """
from awq import AutoAWQForCausalLM
from transformers import AutoTokenizer, TextStreamer

source, target = "tiny", "tiny-awq"
quant_config = {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}
model = AutoAWQForCausalLM.from_pretrained(
    source, **{"low_cpu_mem_usage": True, "use_cache": False}, device_map="auto"
)
tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=True)
model.quantize(
    tokenizer, quant_config=quant_config, calib_data="corpus.txt", max_calib_samples=4,
    max_calib_seq_len=64, n_parallel_calib_samples=None,
)
tokens = tokenizer("to be or not", return_tensors="pt").input_ids
before = model.generate(tokens, max_new_tokens=8)
model.save_quantized(target)
tokenizer.save_pretrained(target)

model = AutoAWQForCausalLM.from_quantized(target, fuse_layers=False, safetensors=True)
tokenizer = AutoTokenizer.from_pretrained(target, trust_remote_code=True)
streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
after = model.generate(tokens, streamer=streamer, max_new_tokens=8)
"""
    seen: dict[str, object] = {}
    exec(script, seen)
    assert torch.equal(seen["before"], seen["after"])
    assert sorted(path.name for path in (tmp_path / "tiny-awq").iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip


def test_the_file_is_autoawqs(library, folder, tmp_path):
    """Its tensors, unpacked here as AutoAWQ's GEMM kernel does, are the weights of the model."""
    model = quantized(library, folder)
    model.save_quantized(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    layers = {n: m for n, m in model.model.named_modules() if isinstance(m, woq.WeightOnlyLinear)}
    assert len(layers) == 14
    for name, layer in layers.items():
        qweight, qzeros, scales = (
            tensors[f"{name}.{part}"].numpy() for part in ("qweight", "qzeros", "scales")
        )
        assert qweight.shape == (layer.in_features, layer.out_features // 8)
        codes, zeros = unpacked(qweight), unpacked(qzeros).repeat(32, 0)
        weight = scales.astype(np.float32).repeat(32, 0) * (codes - zeros)
        np.testing.assert_array_equal(weight.T, layer.quantized().dequantize())
        assert f"{name}.g_idx" not in tensors
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"] == {
        "quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm",
        "modules_to_not_convert": ["lm_head"],
    }  # fmt: skip
    assert torch.equal(letters(woq.AutoModelForCausalLM.from_pretrained(tmp_path)), letters(model))


def unpacked(words):
    """[n, w] int32 words of eight codes, in AutoAWQ's order: [n, 8 w]."""
    places = np.argsort([0, 2, 4, 6, 1, 3, 5, 7])
    nibbles = (words.view(np.uint32)[:, :, None] >> (4 * np.arange(8, dtype=np.uint32))) & 15
    return nibbles[:, :, places].reshape(len(words), -1).astype(np.int64)


def test_awq_is_better_than_rounding(library, folder):
    model = library.AutoAWQForCausalLM.from_pretrained(folder)
    exact = letters(model)
    woq.quantize(
        model.model, woq.WeightOnlyQuantConfig("int4_clip", scheme="asym", scale_dtype="fp16")
    )
    rounded = (letters(model) - exact).square().mean()
    better = (letters(quantized(library, folder)) - exact).square().mean()
    assert better < rounded


def test_symmetric_and_left_out(library, folder, tmp_path):
    model = library.AutoAWQForCausalLM.from_pretrained(folder)
    config = {**QUANT_CONFIG, "zero_point": False, "modules_to_not_convert": ["down"]}
    model.quantize(None, config, **CALIBRATION)
    model.save_quantized(tmp_path, shard_size="30KB")
    stored = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert stored["modules_to_not_convert"] == [
        "model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj", "lm_head",
    ]  # fmt: skip
    assert (tmp_path / "model.safetensors.index.json").is_file()
    again = library.AutoAWQForCausalLM.from_quantized(tmp_path, torch_dtype="auto")
    assert torch.equal(letters(again), letters(model))
    # Saved again, as one file: the shards are gone.
    again.save_quantized(tmp_path)
    assert not (tmp_path / "model.safetensors.index.json").exists()
    assert torch.equal(letters(library.AutoAWQForCausalLM.from_quantized(tmp_path)), letters(model))


@pytest.mark.parametrize("beside", [False, True])
def test_old_checkpoints(library, tmp_path, beside):
    """Settings in quant_config.json, under AutoAWQ's names; and a file of another name."""
    model = llama(intermediate_size=128)
    write_checkpoint(tmp_path, model, awq_layer, AWQ)
    arguments = {}
    if beside:
        config = json.loads((tmp_path / "config.json").read_text())
        del config["quantization_config"]
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "quant_config.json").write_text(json.dumps(QUANT_CONFIG))
        (tmp_path / "model.safetensors").rename(tmp_path / "mine.safetensors")
        arguments = {"quant_filename": "mine.safetensors"}
    loaded = library.AutoAWQForCausalLM.from_quantized(tmp_path, **arguments)
    torch.testing.assert_close(logits(loaded.model), logits(model), rtol=1e-4, atol=1e-4)
    assert loaded.quant_config.q_group_size == 32
    assert loaded.is_quantized


def test_a_data_set_by_name(library, folder, monkeypatch):
    asked = []
    module = ModuleType("datasets")
    module.__spec__ = object()

    def load_dataset(**kwargs):
        asked.append(kwargs)
        return [{"text": text, "code": text[::-1]} for text in TEXTS]

    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    plain = quantized(library, folder)
    same = quantized(library, folder, calib_data="pileval")
    other = quantized(library, folder, calib_data="mine/code", split="test", text_column="code")
    assert asked == [
        {"path": "mit-han-lab/pile-val-backup", "split": "validation", "streaming": True},
        {"path": "mine/code", "split": "test", "streaming": True},
    ]
    assert torch.equal(letters(same), letters(plain))
    assert not torch.equal(letters(other), letters(plain))
    with pytest.raises(InvalidArgument, match=r"text_column='prose': .* has code, text"):
        quantized(library, folder, calib_data="mine/code", text_column="prose")


def test_a_script_for_a_gpu_runs_on_the_cpu_if_asked(tmp_path, caplog):
    write_checkpoint(tmp_path, llama(intermediate_size=128), awq_layer, AWQ)
    with awq.install(on_cpu=True):
        library = importlib.import_module("awq")
        for _ in range(2):
            library.AutoAWQForCausalLM.from_quantized(
                tmp_path, device_map={"": 0}, fuse_layers=True, max_seq_len=4096, use_exllama=False
            ).cuda()
    said = [line for line in caplog.messages if line.startswith("AutoAWQForCausalLM: ")]
    assert len(said) == 4
    assert "device_map={'': 0}: it runs on the CPU" in said[0]
    assert any("fuse_layers=True has no effect" in line for line in said)
    assert any("max_seq_len=4096 has no effect" in line for line in said)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda a, f: a(), OSError, "use AutoAWQForCausalLM.from_pretrained"),
        (lambda a, f: a.from_pretrained(f, device_map="cuda:0"), Unsupported, "on_cpu=True"),
        (lambda a, f: a.from_pretrained(f, fuse_layer=True), InvalidArgument, "fuse_layers?"),
        (lambda a, f: a.from_pretrained(f / "no"), OSError, "no"),
        (lambda a, f: a.from_pretrained(f).save_quantized("x"), InvalidArgument, "call quantize"),
        (lambda a, f: a.from_quantized(f), InvalidArgument, "it is not quantized"),
        (lambda a, f: a.from_quantized(f, safetensors=False), Unsupported, "pickle files"),
        (lambda a, f: a.from_pretrained(f).to("cuda"), Unsupported, "run on the CPU"),
    ],
)
def test_mistakes(library, folder, call, error, said):
    with pytest.raises(error, match=said):
        call(library.AutoAWQForCausalLM, folder)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"quant_config": {"w_bit": 8}}, InvalidArgument, "'w_bit'] must be 4, got 8"),
        ({"quant_config": {"version": "GEMV"}}, Unsupported, "'GEMV' is a layout"),
        ({"quant_config": {"q_group_size": 0}}, InvalidArgument, "must be -1 or a positive"),
        ({"quant_config": {"zero_points": True}}, InvalidArgument, "did you mean zero_point?"),
        ({"quant_config": {"zero_point": 1}}, InvalidArgument, "must be True or False"),
        ({"quant_config": {"modules_to_not_convert": "lm"}}, InvalidArgument, "a list of names"),
        ({"quant_config": "GEMM"}, InvalidArgument, "quant_config must be a dict such as"),
        ({"export_compatible": True}, Unsupported, "export_compatible=True"),
        ({"quantizer_cls": object}, Unsupported, "quantizer_cls"),
        ({"calib_data": []}, InvalidArgument, "the calibration data is empty"),
        ({"calib_data": 5}, InvalidArgument, "dataset must be a list"),
        ({"calib_data": "no.txt"}, InvalidArgument, "no file no.txt"),
        ({"max_calib_samples": 0}, InvalidArgument, "nsamples must be"),
        ({"max_calib_sample": 8}, InvalidArgument, "no argument 'max_calib_sample'"),
    ],
)
def test_mistakes_in_quantize(library, folder, arguments, error, said):
    model = library.AutoAWQForCausalLM.from_pretrained(folder)
    with pytest.raises(error) as raised:
        model.quantize(**{**CALIBRATION, **arguments})
    assert said in str(raised.value)
    assert not model.is_quantized


def test_a_tokenizer_is_asked_for(library, folder, tmp_path):
    """Without one beside the model."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(folder / name)
    model = library.AutoAWQForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(InvalidArgument, match="pass tokenizer="):
        model.quantize(quant_config=QUANT_CONFIG, **CALIBRATION)


def test_checkpoints_of_others(library, tmp_path):
    write_checkpoint(tmp_path, llama(intermediate_size=128), gptq_layer, GPTQ)
    with pytest.raises(InvalidArgument, match="is quantized by gptq, not by AWQ"):
        library.AutoAWQForCausalLM.from_quantized(tmp_path)
    with pytest.raises(InvalidArgument, match="is quantized already"):
        library.AutoAWQForCausalLM.from_pretrained(tmp_path)


def test_modules(library):
    from awq.models.auto import AutoAWQForCausalLM
    from awq.models.base import BaseAWQForCausalLM

    assert library.AutoAWQForCausalLM is AutoAWQForCausalLM
    assert issubclass(BaseAWQForCausalLM, torch.nn.Module)
    assert library.__version__.endswith("+woq")
    with pytest.raises(ModuleNotFoundError, match=r"no awq\.evaluation: it covers"):
        importlib.import_module("awq.evaluation")
