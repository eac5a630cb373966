# SPDX-License-Identifier: Apache-2.0
"""Models whose checkpoints have one tensor where the model has several: transformers splits and
joins them. Quantized, saved by either function and read back they give the same numbers."""

from __future__ import annotations

import json

import pytest
import torch
from model_support import seed

pytest.importorskip("transformers")

import transformers
from safetensors import safe_open

import woq
from woq import Unsupported, WeightOnlyQuantConfig
from woq.core import transformers_private

TEXT = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
# Class -> its config's class and settings: q, k, v joined; gate and up, too; by their weights only.
KINDS = {
    "NomicBertModel": ("NomicBertConfig", {}),
    "GteModel": ("GteConfig", {}),
    "JinaEmbeddingsV3Model": ("JinaEmbeddingsV3Config", {}),
    "HrmTextForCausalLM": ("HrmTextConfig", {"head_dim": 16, "H_cycles": 1, "L_cycles": 1}),
}
CONFIGS = {
    "nf4": WeightOnlyQuantConfig("nf4"),
    "double": WeightOnlyQuantConfig(use_double_quant=True),
    # Tensors of q, k and v that cannot be joined.
    "v-int8": WeightOnlyQuantConfig("nf4", layer_config={"v_proj": {"bits": 8}}),
    "v-float": WeightOnlyQuantConfig("nf4", modules_to_not_convert=["v_proj"]),
}
IDS = torch.arange(3, 21).reshape(2, 9)


@pytest.fixture(autouse=True)
def _seed(request):
    seed(request)


def build(kind):
    config, more = KINDS[kind]
    config = getattr(transformers, config)(**TEXT, **more)
    return getattr(transformers, kind)(config).eval()


def run(model):
    with torch.no_grad():
        return model(IDS)[0]


def keys(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        *(("NomicBertModel", config) for config in CONFIGS),
        ("GteModel", "v-float"),
        ("JinaEmbeddingsV3Model", "double"),
        ("HrmTextForCausalLM", "v-int8"),
    ],
)
def test_both_savers(kind, config, tmp_path):
    model, config = build(kind), CONFIGS[config]
    model.save_pretrained(tmp_path / "float")
    loaded = type(model).from_pretrained(tmp_path / "float", quantization_config=config)
    woq.quantize(model, config)
    expected = run(model)
    assert torch.equal(run(loaded), expected)
    for name, each in (("memory", model), ("loaded", loaded)):
        woq.save_pretrained(each, tmp_path / f"{name}-woq")
        each.save_pretrained(tmp_path / f"{name}-theirs")
    folders = sorted(tmp_path.glob("*-*"))
    assert len(folders) == 4
    for folder in folders:
        assert keys(folder) == keys(folders[0])
        again = type(model).from_pretrained(folder)
        assert torch.equal(run(again), expected)
        # Once more, from what has been read back.
        woq.save_pretrained(again, tmp_path / "twice")
        assert keys(tmp_path / "twice") == keys(folder)
        assert torch.equal(run(type(model).from_pretrained(tmp_path / "twice")), expected)


def test_only_quantized_layers_are_spared(tmp_path):
    """Renamed as ever; and joined again, once the model is dequantized."""
    model = build("NomicBertModel")
    model.save_pretrained(tmp_path / "float")
    woq.quantize(model, WeightOnlyQuantConfig("nf4"))
    model.save_pretrained(tmp_path / "woq")
    saved = keys(tmp_path / "woq")
    assert "encoder.layers.0.self_attn.q_proj.qweight" in saved
    assert "encoder.layers.0.attn.out_proj.qweight" in saved
    assert "emb_ln.weight" in saved
    model.dequantize()
    model.save_pretrained(tmp_path / "again")
    assert keys(tmp_path / "again") == keys(tmp_path / "float")
    assert "encoder.layers.0.attn.Wqkv.weight" in keys(tmp_path / "again")


def test_joined_checkpoints_are_still_read(tmp_path, monkeypatch):
    """What transformers' function used to write for layers of one format."""
    model = woq.quantize(build("NomicBertModel"), WeightOnlyQuantConfig("nf4"))
    monkeypatch.setattr("woq.hf.quantizer.spare_quantized_layers", lambda model: None)
    monkeypatch.setattr("woq.hf.quantizer.describe_save", lambda model: {})
    model.save_pretrained(tmp_path)
    assert "encoder.layers.0.attn.Wqkv.qweight" in keys(tmp_path)
    assert torch.equal(run(type(model).from_pretrained(tmp_path)), run(model))


def test_stand_ins_are_never_written(tmp_path, monkeypatch):
    model = woq.quantize(build("NomicBertModel"), WeightOnlyQuantConfig("nf4"))
    monkeypatch.setattr("woq.hf.saving.spare_quantized_layers", lambda model: None)
    with pytest.raises(RuntimeError, match="made other tensors"):
        woq.save_pretrained(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_conversion_between_the_same_names_is_refused(tmp_path):
    """One that permutes the values of a tensor would be applied to the codes when they are read."""
    from transformers.core_model_loading import Transpose, WeightConverter

    model = build("NomicBertModel")
    conversion = WeightConverter("up_proj.weight", "up_proj.weight", [Transpose(0, 1)])
    transformers_private.set_weight_conversions(model, [conversion])
    woq.quantize(model, WeightOnlyQuantConfig("nf4"))
    for save in (model.save_pretrained, lambda path: woq.save_pretrained(model, path)):
        with pytest.raises(Unsupported, match="up_proj cannot be saved quantized"):
            save(tmp_path / "new")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_vision_model_with_joined_gate_and_up(tmp_path):
    config = transformers.Dinov2Config(
        hidden_size=32,
        mlp_ratio=2,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
        use_swiglu_ffn=True,
    )
    model = transformers.Dinov2Model(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.uniform_(-0.3, 0.3)
    woq.quantize(model, WeightOnlyQuantConfig("int8", group_size=16))
    pixels = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        expected = model(pixels)[0]
    for number, save in enumerate((model.save_pretrained, lambda p: woq.save_pretrained(model, p))):
        save(tmp_path / str(number))
        stored = json.loads((tmp_path / str(number) / "config.json").read_text())
        assert stored["quantization_config"]["quant_method"] == "woq"
        with torch.no_grad():
            again = type(model).from_pretrained(tmp_path / str(number))(pixels)[0]
        assert torch.equal(again, expected)
