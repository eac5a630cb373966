# SPDX-License-Identifier: Apache-2.0
"""Models that bitsandbytes quantized: packed here with numpy, by what its documentation says of its
tensors, and loaded without it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from model_support import gpt2, llama, logits
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

import woq

# QLoRA's table (Dettmers et al. 2023, appendix E), and e2m1 over its largest value, 12.
NF4 = """-1.0 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453 -0.28444138169288635
    -0.18477343022823334 -0.09105003625154495 0.0 0.07958029955625534 0.16093020141124725
    0.24611230194568634 0.33791524171829224 0.44070982933044434 0.5626170039176941
    0.7229568362236023 1.0"""
FP4 = [0.0, 0.0625 / 12, 8 / 12, 1.0, 4 / 12, 6 / 12, 2 / 12, 3 / 12]
TABLES = {
    "nf4": np.array(NF4.split(), np.float32),
    "fp4": np.array([*FP4, *(-x for x in FP4)], np.float32),
}


def json_bytes(value):
    return np.frombuffer(json.dumps(value).encode(), np.uint8).copy()


def owners_map():
    """The map of bitsandbytes for scales, as it wrote it."""
    fixtures = Path(__file__).parents[1] / "formats" / "fixtures"
    tensors = load_file(fixtures / "bitsandbytes.safetensors")
    return tensors["nf4_64_nested.weight.nested_quant_map"].numpy()


def pack_4bit(rng, shape, *, table="nf4", block=64, nested=False, storage="uint8"):
    """Random tensors of a layer, and the float32 weight that they mean."""
    rows, cols = shape
    codes = rng.integers(0, 16, rows * cols)
    count = codes.size // block
    state = {"quant_type": table, "blocksize": block, "dtype": "float16", "shape": [rows, cols]}
    tensors = {"weight.quant_map": TABLES[table].copy()}
    if nested:
        map_ = np.sort(rng.uniform(-1, 1, 256)).astype(np.float32)
        if nested == "owners":
            map_ = owners_map()
        levels = rng.integers(0, 256, count).astype(np.uint8)
        maxima = rng.uniform(0.001, 0.01, -(-count // 256)).astype(np.float32)
        offset = np.float32(0.03)
        absmax = map_[levels] * maxima.repeat(256)[:count] + offset
        state |= {
            "nested_blocksize": 256,
            "nested_dtype": "float32",
            "nested_offset": float(offset),
        }
        tensors |= {
            "weight.absmax": levels,
            "weight.nested_absmax": maxima,
            "weight.nested_quant_map": map_,
        }
    else:
        absmax = rng.uniform(0.02, 0.1, count).astype(np.float32)
        tensors["weight.absmax"] = absmax
    tensors[f"weight.quant_state.bitsandbytes__{table}"] = json_bytes(state)
    tensors = {name: torch.from_numpy(value) for name, value in tensors.items()}
    data = torch.from_numpy((codes[0::2] << 4 | codes[1::2]).astype(np.uint8))
    tensors["weight"] = data.view(getattr(torch, storage)).reshape(-1, 1)
    weight = (TABLES[table][codes].reshape(-1, block) * absmax[:, None]).reshape(shape)
    return tensors, weight


def pack_8bit(rng, shape):
    codes = rng.integers(-127, 128, shape).astype(np.int8)
    scales = rng.uniform(0.02, 0.1, shape[0]).astype(np.float32)
    tensors = {
        "weight": torch.from_numpy(codes),
        "SCB": torch.from_numpy(scales),
        "weight_format": torch.tensor(0, dtype=torch.uint8),
    }
    scale = (scales * np.float32(7.874015718698502e-3))[:, None]  # 1 / 127 as bitsandbytes has it
    return tensors, scale * codes.astype(np.float32)


def checkpoint(folder, model, pack, *, head=False, bits=4, shards=1):
    """Write `model` with packed linear layers; its float weights become those that they mean."""
    rng = np.random.default_rng(0)
    tensors, packed = {}, set()
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | Conv1D) or (name == "lm_head" and not head):
            continue
        transposed = isinstance(module, Conv1D)
        shape = tuple(module.weight.shape)[:: -1 if transposed else 1]
        parts, weight = pack(rng, shape)
        tensors |= {f"{name}.{key}": value for key, value in parts.items()}
        weight = torch.from_numpy(weight.T.copy() if transposed else weight)
        module.weight.data = weight.to(module.weight.dtype)
        packed.add(f"{name}.weight")
    for key, value in model.state_dict().items():
        if key not in packed:
            tensors[key] = value.clone()
    model.config.save_pretrained(folder)
    path = folder / "config.json"
    settings = json.loads(path.read_text())
    settings["quantization_config"] = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": bits == 4,
        "load_in_8bit": bits == 8,
        "bnb_4bit_quant_type": "fp4",  # the default; what the layers say holds
    }
    path.write_text(json.dumps(settings))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder
    where = {}
    for i in range(shards):  # the parts of a layer lie in different files
        name = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = dict(sorted(tensors.items())[i::shards])
        save_file(part, folder / name, {"format": "pt"})
        where |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def packer(**options):
    return lambda rng, shape: pack_4bit(rng, shape, **options)


def same_model(folder, model, layers):
    """Loads `folder`; its weights are those of `model` bit for bit, also after saving it."""
    loaded = woq.AutoModelForCausalLM.from_pretrained(folder)
    found = {n: m for n, m in loaded.named_modules() if isinstance(m, woq.WeightOnlyLinear)}
    assert len(found) == layers
    for name, layer in found.items():
        weight = model.get_submodule(name).weight
        weight = weight.T if isinstance(model.get_submodule(name), Conv1D) else weight
        assert torch.equal(layer.dequantize(weight.dtype), weight)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-4, atol=1e-4)
    loaded.save_pretrained(folder / "saved")
    again = woq.AutoModelForCausalLM.from_pretrained(folder / "saved")
    assert torch.equal(logits(again), logits(loaded))
    return loaded


def even_llama(**options):
    """All of its widths are multiples of the blocks."""
    return llama(intermediate_size=128, **options)


@pytest.mark.parametrize("table", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, "owners", "another map"])
def test_4_bits(tmp_path, table, nested, caplog):
    model = even_llama(attention_bias=True)
    for name, bias in model.named_parameters():
        if name.endswith("bias"):
            bias.data.normal_()
    checkpoint(tmp_path, model, packer(table=table, nested=nested))
    with caplog.at_level(logging.INFO, "woq"):
        loaded = same_model(tmp_path, model, 14)
    kind = "quantized scales" if nested else "scales as stored"
    assert f"14 layers: {table}, {kind}" in caplog.text
    layer = loaded.model.layers[0].self_attn.q_proj
    assert layer.scheme.dtype == {"nf4": "nf4", "fp4": "fp4_e2m1_bnb"}[table]
    assert layer.scheme.scales == ("double" if nested == "owners" else "fp32")
    assert layer.bias is not None


@pytest.mark.parametrize("storage", ["bfloat16", "float16", "float32"])
def test_bytes_in_another_dtype(tmp_path, storage):
    model = even_llama(dtype=torch.float32)
    same_model(checkpoint(tmp_path, model, packer(storage=storage)), model, 14)


def test_the_head_and_shards(tmp_path):
    model = even_llama()
    loaded = same_model(checkpoint(tmp_path, model, packer(), head=True, shards=3), model, 15)
    assert loaded.config.quantization_config.quantize_lm_head == "nf4"


def test_a_tied_head_that_is_packed(tmp_path):
    model = even_llama(tied=True)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    loaded = same_model(checkpoint(tmp_path, model, packer(), head=True), model, 15)
    assert isinstance(loaded.lm_head, woq.WeightOnlyLinear)


def test_conv1d(tmp_path):
    model = gpt2()
    same_model(checkpoint(tmp_path, model, packer()), model, 8)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_8_bits(tmp_path, make, caplog):
    model = make()
    with caplog.at_level(logging.INFO, "woq"):
        same_model(
            checkpoint(tmp_path, model, pack_8bit, bits=8), model, 14 if make is llama else 8
        )
    assert "outliers are not computed apart" in caplog.text


def test_rows_that_blocks_do_not_divide_are_refused_by_name(tmp_path):
    model = llama()  # down_proj has 96 columns
    checkpoint(tmp_path, model, packer())
    with pytest.raises(
        woq.Unsupported, match=r"2 layers cannot be read:\n- .*down_proj.*rows of 96"
    ):
        woq.AutoModelForCausalLM.from_pretrained(tmp_path)


STATE = "weight.quant_state.bitsandbytes__nf4"


def state(**changes):
    def edit(tensors):
        values = json.loads(bytes(tensors[STATE].tolist()))
        tensors[STATE] = torch.from_numpy(json_bytes({**values, **changes}))

    return edit


def put(**changes):
    names = {"absmax": "weight.absmax", "quant_map": "weight.quant_map", "weight": "weight"}

    def edit(tensors):
        for name, change in changes.items():
            tensors[names[name]] = change(tensors[names[name]]).contiguous()

    return edit


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (state(shape=[32, 128]), woq.InvalidArgument, r"shape \[32, 128\], the model's layer"),
        (state(shape=None), woq.InvalidArgument, "says shape None"),
        (state(blocksize=0), woq.InvalidArgument, "blocksize of its quant_state is 0"),
        (state(blocksize=2**70), woq.InvalidArgument, "blocksize of its quant_state is"),
        (state(blocksize=1), woq.InvalidArgument, "blocks of 1 weights, expected an even number"),
        (state(blocksize=48), woq.Unsupported, "blocks of 48 weights do not divide rows of 64"),
        (state(blocksize=32), woq.InvalidArgument, r"'absmax' has shape \[64\], expected \[128\]"),
        (state(quant_type="fp4"), woq.InvalidArgument, "is not the state of nf4"),
        (
            lambda t: t.update({STATE: torch.zeros(0, dtype=torch.uint8)}),
            woq.InvalidArgument,
            "is damaged",
        ),
        (
            lambda t: t.update({STATE: torch.full((9,), 91, dtype=torch.uint8)}),
            woq.InvalidArgument,
            "is damaged",
        ),
        (lambda t: t.pop(STATE), woq.InvalidArgument, "has 0 of the tensors"),
        (
            lambda t: t.update({STATE.replace("nf4", "fp4"): t[STATE].clone()}),
            woq.InvalidArgument,
            "has 2 of the tensors",
        ),
        (lambda t: t.pop("weight"), woq.InvalidArgument, "'weight' is missing"),
        (put(weight=lambda w: w[:-1]), woq.InvalidArgument, r"shape \[2047, 1\], expected"),
        (put(absmax=lambda a: a * float("nan")), woq.InvalidArgument, "q_proj.*decodes to nan"),
        (put(quant_map=lambda m: m * 2), woq.Unsupported, "quant_map has other values than nf4"),
        (
            lambda t: t.update({"weight.zero": torch.zeros(3)}),
            woq.InvalidArgument,
            "no place in the model: .*q_proj.weight.zero",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, edit, error, message):
    checkpoint(tmp_path, even_llama(), packer())
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    layer = "model.layers.0.self_attn.q_proj."
    parts = {key.removeprefix(layer): tensors.pop(key) for key in list(tensors) if layer in key}
    edit(parts)
    save_file({**tensors, **{layer + k: v for k, v in parts.items()}}, path, {"format": "pt"})
    with pytest.raises(error, match=message):
        woq.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_nested_blocks_of_another_size_are_refused(tmp_path):
    def pack(rng, shape):
        tensors, weight = pack_4bit(rng, shape, nested=True)
        state(nested_blocksize=128)(tensors)
        return tensors, weight

    checkpoint(tmp_path, even_llama(), pack)
    with pytest.raises(woq.Unsupported, match="quantized in blocks of 128; woq reads 256"):
        woq.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_an_order_for_gpus_is_refused(tmp_path):
    def pack(rng, shape):
        tensors, weight = pack_8bit(rng, shape)
        return tensors | {"weight_format": torch.tensor(1, dtype=torch.uint8)}, weight

    checkpoint(tmp_path, llama(), pack, bits=8)
    with pytest.raises(woq.Unsupported, match="weight_format is 1"):
        woq.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_what_bitsandbytes_itself_saved(tmp_path):
    """Where it is installed."""
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("accelerate")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    even_llama().save_pretrained(tmp_path / "float")
    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path / "float", quantization_config=settings, device_map="cpu"
    )
    theirs.save_pretrained(tmp_path / "bnb")
    ours = woq.AutoModelForCausalLM.from_pretrained(tmp_path / "bnb")
    assert sum(isinstance(m, woq.WeightOnlyLinear) for m in ours.modules()) == 14
    torch.testing.assert_close(logits(ours), logits(theirs).float(), rtol=0.02, atol=0.02)
