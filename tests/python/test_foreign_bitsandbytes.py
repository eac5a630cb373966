# SPDX-License-Identifier: Apache-2.0
"""Models that bitsandbytes quantized, packed with numpy (foreign_support.py) and loaded without
it."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from foreign_support import (
    BITSANDBYTES,
    edit_layer,
    json_bytes,
    pack_4bit,
    pack_8bit,
    same_model,
    write_checkpoint,
)
from model_support import gpt2, llama, logits
from torch import nn

import woq


def checkpoint(folder, model, pack, *, bits=4, **options):
    settings = BITSANDBYTES | {"load_in_4bit": bits == 4, "load_in_8bit": bits == 8}
    return write_checkpoint(folder, model, pack, settings, **options)


def packer(**options):
    return lambda rng, shape: pack_4bit(rng, shape, **options)


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
    edit_layer(tmp_path, edit)
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
