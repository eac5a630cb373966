# SPDX-License-Identifier: Apache-2.0
"""Models in NVFP4 and MXFP4, packed with numpy (foreign_support.py)."""

from __future__ import annotations

import json
import logging
from functools import partial

import pytest
import torch
from foreign_support import (
    COMPRESSED,
    MODELOPT,
    MXFP4,
    NVFP4,
    compressed_layer,
    edit_layer,
    fp4_layer,
    same_model,
    write_checkpoint,
)
from model_support import llama
from safetensors.torch import load_file, save_file

import woq

SETTINGS = {"nvfp4": NVFP4, "mxfp4": MXFP4, "modelopt": MODELOPT}


def checkpoint(folder, model, kind):
    return write_checkpoint(folder, model, partial(fp4_layer, kind=kind), SETTINGS[kind])


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_model_runs_packed(tmp_path, kind, caplog):
    model = llama()
    checkpoint(tmp_path, model, kind)
    with caplog.at_level(logging.INFO, "woq"):
        loaded = same_model(tmp_path, model, 14)
    assert ("activations are not quantized" in caplog.text) == (kind != "mxfp4")
    layer = loaded.model.layers[0].mlp.up_proj
    assert layer.scheme.scales == ("e8m0" if kind == "mxfp4" else "e4m3")


def test_settings_in_modelopts_own_file(tmp_path):
    model = llama()
    checkpoint(tmp_path, model, "modelopt")
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    del config["quantization_config"]
    path.write_text(json.dumps(config))
    own = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(own))
    same_model(tmp_path, model, 14)


def test_layers_of_several_formats(tmp_path):
    """As llm-compressor writes a model whose attention is int4 and whose MLP is nvfp4."""
    model = llama()
    folder = checkpoint(tmp_path, model, "nvfp4")
    other = llama()
    write_checkpoint(tmp_path / "other", other, compressed_layer, COMPRESSED)
    tensors = load_file(folder / "model.safetensors")
    integers = load_file(tmp_path / "other" / "model.safetensors")
    attention = [name for name in integers if ".self_attn." in name]
    for name in [name for name in tensors if ".self_attn." in name]:
        del tensors[name]
    tensors |= {name: integers[name] for name in attention}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    for ours, theirs in zip(model.model.layers, other.model.layers, strict=True):
        ours.self_attn = theirs.self_attn
    path = folder / "config.json"
    config = json.loads(path.read_text())
    groups = {
        "group_0": NVFP4["config_groups"]["group_0"],
        "group_1": COMPRESSED["config_groups"]["group_0"] | {"format": "pack-quantized"},
    }
    config["quantization_config"] |= {"format": "mixed-precision", "config_groups": groups}
    path.write_text(json.dumps(config))
    same_model(folder, model, 14)


@pytest.mark.parametrize(
    ("kind", "edit", "error", "message"),
    [
        (
            "nvfp4",
            lambda t: t.update(weight_global_scale=torch.zeros(1)),
            woq.InvalidArgument,
            "q_proj",
        ),
        (
            "nvfp4",
            lambda t: t.update(weight_global_scale=torch.ones(2)),
            woq.InvalidArgument,
            r"'weight_global_scale' is torch.float32 \[2\], expected one float32",
        ),
        (
            "nvfp4",
            lambda t: t.update(weight_scale=t["weight_scale"].float()),
            woq.Unsupported,
            "'weight_scale' is torch.float32, expected torch.float8_e4m3fn",
        ),
        (
            "mxfp4",
            lambda t: t.update(weight_scale=torch.full_like(t["weight_scale"], 255)),
            woq.InvalidArgument,
            "scales",
        ),
        (
            "mxfp4",
            lambda t: t.update(weight_packed=t["weight_packed"][:, 1:].contiguous()),
            woq.InvalidArgument,
            r"'weight' has shape \[64, 31\], expected \[64, 32\]",
        ),
        (
            "modelopt",
            lambda t: t.update(pre_quant_scale=torch.ones(64)),
            woq.InvalidArgument,
            "tensors that the format does not know: pre_quant_scale",
        ),
        (
            "modelopt",
            lambda t: t.update(weight_scale=t["weight_scale"][:, :3].contiguous()),
            woq.InvalidArgument,
            "3 groups of scales do not divide 64 columns",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, kind, edit, error, message):
    checkpoint(tmp_path, llama(), kind)
    edit_layer(tmp_path, edit)
    with pytest.raises(error, match=message):
        woq.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_other_algorithms_of_modelopt_are_refused_by_name(tmp_path):
    folder = checkpoint(tmp_path, llama(), "modelopt")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["quant_algo"] = "FP8"
    path.write_text(json.dumps(config))
    with pytest.raises(woq.Unsupported, match="quant_algo 'FP8'; woq reads NVFP4"):
        woq.AutoModelForCausalLM.from_pretrained(folder)
