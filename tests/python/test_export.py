# SPDX-License-Identifier: Apache-2.0
"""`woq.export`: what is written is read back as the same model, bit for bit; settings are those
that the formats' engines want; what a format has no place for is refused before a file exists."""

from __future__ import annotations

import json
import weakref

import pytest
import torch
from model_support import gpt2, letters_checkpoint, llama, logits
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

import woq
from woq import InvalidArgument, Unsupported, WeightOnlyQuantConfig
from woq.formats.export.gptq import GptqExport
from woq.formats.export.names import EXPORT_FORMATS

INTEGERS = {"weight_dtype": "int4", "scale_dtype": "fp16"}
NF4 = {"weight_dtype": "nf4", "group_size": 64}

# name: (format, settings of woq's, what quantization_config has to say)
CASES = {
    "ct": ("compressed-tensors", INTEGERS, {"format": "pack-quantized"}),
    "ct asym": ("compressed-tensors", {**INTEGERS, "scheme": "asym"}, {}),
    "ct int8": ("compressed-tensors", {**INTEGERS, "weight_dtype": "int8"}, {}),
    "ct int3": ("compressed-tensors", {**INTEGERS, "weight_dtype": "int3"}, {}),
    "ct channel": ("compressed-tensors", {**INTEGERS, "group_size": -1}, {}),
    "ct mixed": (
        "compressed-tensors",
        {**INTEGERS, "layer_config": {"down_proj": {"weight_dtype": "int8"}}},
        {},
    ),
    "ct w8a8": (
        "compressed-tensors-int8",
        {**INTEGERS, "weight_dtype": "int8", "group_size": -1},
        {"format": "int-quantized"},
    ),
    "gptq": ("gptq", INTEGERS, {"checkpoint_format": "gptq", "sym": True, "desc_act": False}),
    "gptq asym": (
        "gptq",
        {**INTEGERS, "scheme": "asym"},
        {"checkpoint_format": "gptq_v2", "sym": False},
    ),
    "gptq signed": ("gptq", {**INTEGERS, "weight_dtype": "int4_fullrange"}, {"bits": 4}),
    "gptq int8": ("gptq", {**INTEGERS, "weight_dtype": "int8"}, {"bits": 8}),
    "awq": ("awq", INTEGERS, {"zero_point": True, "version": "gemm", "group_size": 32}),
    "awq asym": ("awq", {**INTEGERS, "scheme": "asym"}, {}),
    "awq with a float layer": (
        "awq",
        {**INTEGERS, "modules_to_not_convert": ["layers.1.mlp.down_proj"]},
        {"modules_to_not_convert": ["model.layers.1.mlp.down_proj", "lm_head"]},
    ),
    "bnb": ("bitsandbytes", NF4, {"bnb_4bit_quant_type": "nf4"}),
    "bnb fp4": ("bitsandbytes", {**NF4, "weight_dtype": "fp4"}, {"bnb_4bit_quant_type": "fp4"}),
    "bnb nested": (
        "bitsandbytes",
        {**NF4, "use_double_quant": True},
        {"bnb_4bit_use_double_quant": True},
    ),
}


def quantized(tied=False, **settings):
    """In float16, but for the rotation's frequencies, which a loader keeps in float32."""
    torch.manual_seed(0)
    model = llama(intermediate_size=128, initializer_range=0.2, tied=tied)
    rotation = model.model.rotary_emb
    frequencies = rotation.inv_freq.clone()
    model.half()
    rotation.inv_freq = frequencies
    return woq.quantize(model, WeightOnlyQuantConfig(**settings))


def settings_of(folder):
    return json.loads((folder / "config.json").read_text())["quantization_config"]


def tensors_of(folder):
    tensors = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors


def test_every_format_has_a_case():
    assert {form for form, _, _ in CASES.values()} == set(EXPORT_FORMATS)


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_is_read_as_the_same_model(case, tmp_path):
    form, settings, said = CASES[case]
    model = quantized(**settings)
    report = woq.export(model, tmp_path / "out", format=form)
    assert settings_of(tmp_path / "out").items() >= said.items()
    again = woq.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert again.dtype == torch.float16
    assert torch.equal(logits(again), logits(model))
    assert report.possible
    assert report.folder == str(tmp_path / "out")
    assert all(layer.rounding == 0 for layer in report.layers)
    assert report.nbytes == sum(t.nbytes for t in tensors_of(tmp_path / "out").values())
    assert "written to" in str(report)
    assert "no tokenizer" in str(report)


def test_settings_of_compressed_tensors(tmp_path):
    """What vLLM asks for, facts that were found by loading such a folder there."""
    form, settings, _ = CASES["ct mixed"]
    woq.export(quantized(**settings), tmp_path / "out", format=form)
    said = settings_of(tmp_path / "out")
    assert said["quantization_status"] == "compressed"
    assert said["ignore"] == ["lm_head"]
    common, other = said["config_groups"].values()
    assert common["targets"] == ["Linear"]
    assert common["weights"] == {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": 32,
        "dynamic": False,
    }
    assert common["input_activations"] is None
    assert other["targets"] == [f"model.layers.{i}.mlp.down_proj" for i in range(2)]
    assert other["weights"]["num_bits"] == 8
    tensors = tensors_of(tmp_path / "out")
    assert tensors["model.layers.0.mlp.up_proj.weight_scale"].dtype == torch.float16
    assert tensors["model.layers.0.mlp.up_proj.weight_shape"].tolist() == [128, 64]


def test_settings_of_w8a8(tmp_path):
    model = quantized(weight_dtype="int8", scale_dtype="fp16", group_size=-1)
    report = woq.export(model, tmp_path / "out", format="compressed-tensors-int8")
    assert "round the inputs of these layers to 8 bits" in str(report)
    (group,) = settings_of(tmp_path / "out")["config_groups"].values()
    assert group["weights"]["strategy"] == "channel"
    activations = group["input_activations"]
    assert (activations["num_bits"], activations["strategy"]) == (8, "token")
    assert activations["dynamic"] is True
    tensors = tensors_of(tmp_path / "out")
    assert tensors["model.layers.0.mlp.up_proj.weight"].dtype == torch.int8
    assert tensors["model.layers.0.mlp.up_proj.weight_scale"].shape == (128, 1)


@pytest.mark.parametrize("tied", [False, True])
def test_a_quantized_head_goes_to_gptq(tied, tmp_path):
    """Beside a float embedding, which it may have shared its weight with."""
    model = quantized(tied=tied, **INTEGERS, quantize_lm_head=True)
    woq.export(model, tmp_path / "out", format="gptq")
    said = settings_of(tmp_path / "out")
    assert said["lm_head"] is True
    assert said["dynamic"] == {}
    tensors = tensors_of(tmp_path / "out")
    assert tensors["lm_head.qweight"].shape == (64 // 8, 128)
    assert "model.embed_tokens.weight" in tensors
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    again = woq.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert torch.equal(logits(again), logits(model))


def test_gptq_says_which_layers_are_float(tmp_path):
    settings = {**INTEGERS, "modules_to_not_convert": ["layers.1.mlp.down_proj"]}
    woq.export(quantized(**settings), tmp_path / "out", format="gptq")
    said = settings_of(tmp_path / "out")
    assert said["dynamic"] == {
        r"-:^model\.layers\.1\.mlp\.down_proj$": {},
        r"-:^lm_head$": {},
    }
    groups = tensors_of(tmp_path / "out")["model.layers.0.mlp.up_proj.g_idx"]
    assert groups.tolist() == [k // 32 for k in range(64)]


def test_folders_in_shards_with_their_tokenizer(tmp_path):
    source = letters_checkpoint(tmp_path / "float")
    config = WeightOnlyQuantConfig(**INTEGERS)
    model = AutoModelForCausalLM.from_pretrained(
        source, quantization_config=config, dtype=torch.float16
    )
    woq.save_pretrained(model, tmp_path / "woq")
    AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path / "woq")
    out = tmp_path / "out"
    report = woq.export(tmp_path / "woq", out, format="awq", max_shard_size="20KB")
    assert "tokenizer" not in str(report)
    names = {path.name for path in out.iterdir()}
    assert names >= {"config.json", "generation_config.json", "tokenizer.json"}
    assert "model.safetensors.index.json" in names
    assert len([name for name in names if name.endswith(".safetensors")]) > 2
    again = woq.AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert torch.equal(logits(again), logits(model))
    text = "the quick brown fox"
    assert AutoTokenizer.from_pretrained(out)(text) == AutoTokenizer.from_pretrained(source)(text)


@pytest.mark.parametrize("second", ["compressed-tensors", "awq", "gptq"])
@pytest.mark.parametrize("scheme", ["sym", "asym"])
def test_formats_are_converted_without_loss(scheme, second, tmp_path):
    """There and back: the tensors are the same bytes."""
    model = quantized(**INTEGERS, scheme=scheme)
    woq.export(model, tmp_path / "one", format="gptq")
    woq.export(tmp_path / "one", tmp_path / "two", format=second)
    woq.export(tmp_path / "two", tmp_path / "three", format="gptq")
    first, last = tensors_of(tmp_path / "one"), tensors_of(tmp_path / "three")
    assert first.keys() == last.keys()
    assert all(torch.equal(first[name], last[name]) for name in first)
    assert settings_of(tmp_path / "one") == settings_of(tmp_path / "three")


def test_scales_are_rounded_only_when_asked(tmp_path):
    model = quantized(weight_dtype="int4", scale_dtype="fp32")
    with pytest.raises(Unsupported, match=r"14 layers cannot be written as gptq(.|\n)*scale_dtype"):
        woq.export(model, tmp_path / "out", format="gptq")
    assert not any(tmp_path.iterdir())
    report = woq.export(model, tmp_path / "out", format="gptq", round_scales=True)
    assert 0 < max(layer.rounding for layer in report.layers) <= 2**-11
    assert "scales were rounded, by at most" in str(report)
    scales = model.model.layers[0].mlp.up_proj.quantized().scales()
    written = tensors_of(tmp_path / "out")["model.layers.0.mlp.up_proj.scales"]
    assert torch.equal(written, torch.from_numpy(scales).T.half())


def test_dry_run_lists_and_writes_nothing(tmp_path):
    model = quantized(weight_dtype="int4", scale_dtype="fp16")
    report = woq.export(model, tmp_path / "out", format="awq", dry_run=True)
    assert report.folder is None
    assert report.possible
    up = next(layer for layer in report.layers if layer.name.endswith("0.mlp.up_proj"))
    assert up.tensors == {
        "qweight": "int32 [64, 16]",
        "qzeros": "int32 [2, 16]",
        "scales": "float16 [2, 128]",
    }
    refused = woq.export(model, tmp_path / "out", format="bitsandbytes", dry_run=True)
    assert not refused.possible
    assert "dtype is int4_clip" in str(refused) or "groups of 32" in str(refused)
    assert not any(tmp_path.iterdir())


REFUSED = {
    "w8a8 bits": (
        {**INTEGERS, "group_size": -1},
        "compressed-tensors-int8",
        "it has 4 bits, and compressed-tensors-int8 8: write compressed-tensors",
    ),
    "w8a8 groups": (
        {**INTEGERS, "weight_dtype": "int8"},
        "compressed-tensors-int8",
        "groups of 32, and W8A8 one scale a row: quantize with group_size=-1",
    ),
    "w8a8 asym": (
        {**INTEGERS, "weight_dtype": "int8", "group_size": -1, "scheme": "asym"},
        "compressed-tensors-int8",
        "zero points have no place in W8A8: quantize with scheme='sym'",
    ),
    "head": (
        {**INTEGERS, "quantize_lm_head": True},
        "awq",
        r"lm_head: it is the output embedding.*quantize_lm_head=False",
    ),
    "widths": (
        {**INTEGERS, "layer_config": {"down_proj": {"weight_dtype": "int8"}}},
        "gptq",
        "4 and 8 bits, and gptq has one width",
    ),
    "groups": (
        {**INTEGERS, "layer_config": {"down_proj": {"group_size": 64}}},
        "awq",
        "groups of 32 and 64, and awq has one",
    ),
    "joined": (
        {**INTEGERS, "layer_config": {"k_proj": {"weight_dtype": "int8"}}},
        "compressed-tensors",
        r"self_attn: k_proj, q_proj, v_proj are joined",
    ),
    "half of them float": (
        {**INTEGERS, "modules_to_not_convert": ["up_proj"]},
        "compressed-tensors",
        r"mlp: gate_proj, up_proj are joined",
    ),
    "short last group": ({**INTEGERS, "group_size": 48}, "gptq", "groups of 48 do not divide"),
    "codes": ({"weight_dtype": "nf4"}, "awq", "its dtype is nf4, and awq has integers"),
    "blocks": ({"weight_dtype": "nf4"}, "bitsandbytes", "groups of 32, and bitsandbytes blocks"),
    "bfloat16 scales": (
        {"weight_dtype": "int4", "scale_dtype": "fp32"},
        "compressed-tensors",
        "not exact in float16",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_is_written(case, tmp_path):
    settings, form, message = REFUSED[case]
    model = quantized(**settings)
    with pytest.raises(Unsupported, match=message):
        woq.export(model, tmp_path / "out", format=form)
    assert not any(tmp_path.iterdir())
    report = woq.export(model, tmp_path / "out", format=form, dry_run=True)
    assert not report.possible
    assert "cannot hold this model" in str(report)


def test_one_layer_is_unpacked_at_a_time(tmp_path, monkeypatch):
    """Also where a file has the types of many layers in turn."""
    real, alive, most = GptqExport.tensors, [], []

    def tensors(self, layer, matrix):
        most.append(sum(each() is not None for each in alive))
        made = real(self, layer, matrix)
        alive.extend(weakref.ref(tensor) for tensor in made.values())
        return made

    monkeypatch.setattr(GptqExport, "tensors", tensors)
    woq.export(quantized(**INTEGERS), tmp_path / "out", format="gptq")
    assert len(most) >= 2 * 14
    assert max(most) <= 1  # the tensor that the file has just got


def test_a_quantized_embedding_is_refused(tmp_path):
    model = quantized(**INTEGERS, quantize_embedding=True)
    with pytest.raises(Unsupported, match=r"embed_tokens is quantized .*quantize_embedding=False"):
        woq.export(model, tmp_path / "out", format="gptq")


def test_act_scales_are_refused(tmp_path):
    model = quantized(**INTEGERS)
    layer = model.model.layers[0].mlp.down_proj
    matrix = layer.quantized().with_act_scales(torch.full((128,), 0.5))
    model.model.layers[0].mlp.down_proj = woq.WeightOnlyLinear.from_quantized(matrix)
    with pytest.raises(Unsupported, match=r"layers\.0\.mlp\.down_proj.*act_scales"):
        woq.export(model, tmp_path / "out", format="gptq")


def test_act_order_goes_to_gptq_only(tmp_path):
    model = quantized(**INTEGERS)
    for block in model.model.layers:
        for name in ("gate_proj", "up_proj"):
            matrix = getattr(block.mlp, name).quantized()
            order = torch.randperm(64).to(torch.int32) // 32
            new = woq.WeightOnlyLinear.from_quantized(matrix.with_g_idx(order), dtype=torch.float16)
            setattr(block.mlp, name, new)
    with pytest.raises(Unsupported, match="act-order"):
        woq.export(model, tmp_path / "out", format="awq")
    report = woq.export(model, tmp_path / "out", format="gptq")
    assert settings_of(tmp_path / "out")["desc_act"] is True
    assert not any("CPU" in place for place in report.loads_in)
    again = woq.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert torch.equal(logits(again), logits(model))


def test_mistakes_are_named(tmp_path):
    model = quantized(**INTEGERS)
    with pytest.raises(
        InvalidArgument, match=r"known: compressed-tensors, .*gptq, awq, bitsandbytes, gguf"
    ):
        woq.export(model, tmp_path / "out", format="ggml")
    with pytest.raises(InvalidArgument, match=r"nothing in the model is quantized: woq\.quantize"):
        woq.export(llama(), tmp_path / "out", format="gptq")
    with pytest.raises(InvalidArgument, match="expected a transformers model, got Linear"):
        woq.export(torch.nn.Linear(1, 1), tmp_path / "out", format="gptq")
    with pytest.raises(Unsupported, match=r"c_attn and 7 more are Conv1D.*save_pretrained"):
        woq.export(
            woq.quantize(gpt2(), WeightOnlyQuantConfig(**INTEGERS)), tmp_path / "o", format="gptq"
        )
    assert not any(tmp_path.iterdir())


def test_what_is_there_is_kept_or_replaced_whole(tmp_path):
    model, out = quantized(**INTEGERS), tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InvalidArgument, match="exists: name another folder"):
        woq.export(model, out, format="gptq")
    with pytest.raises(InvalidArgument, match="holds no model"):
        woq.export(model, out, format="gptq", overwrite=True)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    (out / "notes.txt").unlink()
    woq.export(model, out, format="gptq")
    woq.export(model, out, format="awq", overwrite=True)
    assert settings_of(out)["quant_method"] == "awq"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(InvalidArgument, match="exists and is no folder"):
        woq.export(model, out / "config.json", format="gptq")


def test_a_tied_head_stays_tied(tmp_path):
    model = quantized(**INTEGERS, tied=True)
    woq.export(model, tmp_path / "out", format="awq")
    assert "lm_head.weight" not in tensors_of(tmp_path / "out")
    again = woq.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert torch.equal(logits(again), logits(model))
