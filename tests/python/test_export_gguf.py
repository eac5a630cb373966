# SPDX-License-Identifier: Apache-2.0
"""`woq.export(format="gguf")`: a file that was read comes out with the same tensors, byte for byte;
a model of woq's becomes a file that woq's reader and the package gguf read as that model; what a
file cannot say is refused. That llama.cpp runs the files is shown in test_export_llama_cpp.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_support import MODELS, build, gguf, permuted, smollm2_file, write
from model_support import llama, logits, mixtral
from tokenizer_support import byte_tokenizer, sentence_tokenizer
from tokenizers import Regex, models, normalizers, pre_tokenizers
from transformers import MistralConfig, MistralForCausalLM

import woq
from woq import InvalidArgument, Unsupported, WeightOnlyQuantConfig
from woq.core import native
from woq.formats.export.gguf_tokenizer import tokenizer_metadata

SETTINGS = {"weight_dtype": "int4", "scale_dtype": "fp16"}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return sentence_tokenizer(prefix=True, fallback=False)


def quantized(kind: str = "llama", **settings: Any) -> Any:
    return woq.quantize(build(kind), WeightOnlyQuantConfig(**{**SETTINGS, **settings}))


def read(path: Path) -> Any:
    return woq.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)


def tensors_of(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {
        name: (kind, shape, data.tobytes())
        for name, (kind, shape, data) in native.GgufModel(str(path)).tensors.items()
    }


def fields_of(path: Path) -> dict[str, Any]:
    """The metadata, as the package gguf reads them."""
    return {
        name: field.contents()
        for name, field in gguf.GGUFReader(path).fields.items()
        if not name.startswith("GGUF.")
    }


ARCHITECTURES = [kind for kind in MODELS if not kind.startswith("llama_256")]
# Those of rows in blocks of 256, and one with a table.
BLOCKS = ("Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS",
          "TQ1_0", "TQ2_0")  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "quantized"),
    [
        *((kind, "Q8_0") for kind in ARCHITECTURES),
        *(("llama_256", each) for each in BLOCKS),
    ],
)
def test_a_file_comes_out_as_it_was(kind: str, quantized: str, tmp_path: Path) -> None:
    source, folder, out = tmp_path / "a.gguf", tmp_path / "woq", tmp_path / "b.gguf"
    write(build(kind), source, kind, quantized)
    woq.save_pretrained(read(source), folder)
    report = woq.export(folder, out, format="gguf", template=source)
    assert tensors_of(out) == tensors_of(source)
    assert report.nbytes == sum(len(data) for _, _, data in tensors_of(source).values())
    said = fields_of(out)
    assert said.pop("general.quantization_version") == 2
    named = said.pop("general.file_type", None)
    assert named == getattr(gguf.LlamaFileType, f"MOSTLY_{quantized}", named)
    assert said == fields_of(source)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_models_say_what_they_are(kind: str, tokenizer: Any, tmp_path: Path) -> None:
    model, out = quantized(kind), tmp_path / "x.gguf"
    report = woq.export(model, out, format="gguf", tokenizer=tokenizer)
    assert report.folder == str(out)
    assert "loads in: llama.cpp" in str(report)
    again = read(out)
    assert torch.allclose(logits(again), logits(model), rtol=0, atol=1e-6)
    said, config = fields_of(out), model.config
    name = kind.partition("_")[0]
    assert said["general.architecture"] == name
    assert said[f"{name}.block_count"] == config.num_hidden_layers
    assert said[f"{name}.attention.head_count"] == 4
    assert said[f"{name}.attention.head_count_kv"] == 2
    assert said[f"{name}.attention.key_length"] == (getattr(config, "head_dim", None) or 16)
    assert said[f"{name}.feed_forward_length"] == 96
    assert said[f"{name}.context_length"] == config.max_position_embeddings
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    assert said[f"{name}.rope.freq_base"] == rope["rope_theta"]
    assert said["tokenizer.ggml.pre"] == "default"
    assert said["tokenizer.chat_template"] == "{{ messages }}"
    assert len(said["tokenizer.ggml.tokens"]) == 128
    if name == "gemma3":
        assert said["gemma3.attention.sliding_window"] == 4
    if kind == "gemma3_linear":
        assert said["gemma3.rope.scaling.factor"] == 8.0
    names = tensors_of(out).keys()
    assert ("rope_freqs.weight" in names) == (kind == "llama_3")
    assert ("output.weight" in names) != config.tie_word_embeddings


def test_every_weight_as_the_package_gguf_reads_it(tokenizer: Any, tmp_path: Path) -> None:
    """Row permutation, norms and types, against numpy's own arrangement."""
    model, out = quantized("llama_bias"), tmp_path / "x.gguf"
    woq.export(model, out, format="gguf", tokenizer=tokenizer)
    found = {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for tensor in gguf.GGUFReader(out).tensors
    }
    first = model.model.layers[0]
    attention = first.self_attn
    expected = {
        "attn_q.weight": permuted(attention.q_proj.dequantize().numpy(), 4),
        "attn_k.weight": permuted(attention.k_proj.dequantize().numpy(), 2),
        "attn_v.weight": attention.v_proj.dequantize().numpy(),
        "attn_q.bias": permuted(attention.q_proj.bias.detach().numpy(), 4),
        "attn_v.bias": attention.v_proj.bias.detach().numpy(),
        "attn_norm.weight": first.input_layernorm.weight.detach().numpy(),
        "ffn_down.weight": first.mlp.down_proj.dequantize().numpy(),
    }
    for name, value in expected.items():
        np.testing.assert_array_equal(found[f"blk.0.{name}"], value, err_msg=name)
    np.testing.assert_array_equal(
        found["token_embd.weight"], model.model.embed_tokens.weight.detach().numpy()
    )
    gemma = quantized("gemma3")
    woq.export(gemma, out, format="gguf", tokenizer=tokenizer, overwrite=True)
    norms = {tensor.name: tensor.data for tensor in gguf.GGUFReader(out).tensors}
    np.testing.assert_array_equal(
        norms["blk.3.post_ffw_norm.weight"],
        gemma.model.layers[3].post_feedforward_layernorm.weight.detach().numpy() + np.float32(1),
    )


# name: (settings, the type of most weights, of the embedding)
TYPES: dict[str, tuple[dict[str, Any], str, str]] = {
    "int4": ({}, "Q4_0", "F32"),
    "signed": ({"weight_dtype": "int4_fullrange"}, "Q4_0", "F32"),
    "int4 g64": ({"group_size": 64, "modules_to_not_convert": ["down_proj"]}, "Q4_0", "F32"),
    "int8": ({"weight_dtype": "int8"}, "Q8_0", "F32"),
    "int5": ({"weight_dtype": "int5"}, "Q5_0", "F32"),
    "int3": ({"weight_dtype": "int3"}, "Q4_0", "F32"),
    "int6": ({"weight_dtype": "int6"}, "Q8_0", "F32"),
    "iq4_nl": ({"weight_dtype": "iq4_nl"}, "IQ4_NL", "F32"),
    "embedding": ({"quantize_embedding": True, "quantize_lm_head": True}, "Q4_0", "Q4_0"),
}


@pytest.mark.parametrize("case", TYPES)
def test_types(case: str, tokenizer: Any, tmp_path: Path) -> None:
    settings, kind, embedding = TYPES[case]
    model, out = quantized("llama_bias", **settings), tmp_path / "x.gguf"
    report = woq.export(model, out, format="gguf", tokenizer=tokenizer)
    kinds = {name: each for name, (each, _, _) in tensors_of(out).items()}
    assert kinds["blk.1.attn_q.weight"] == kind
    assert kinds["token_embd.weight"] == embedding
    assert report.layers[0].rounding == 0
    again = read(out)
    for name, module in again.named_modules():
        if isinstance(module, woq.WeightOnlyLinear) and name != "lm_head":
            assert torch.equal(module.dequantize(), model.get_submodule(name).dequantize()), name
    assert torch.allclose(logits(again), logits(model), rtol=0, atol=1e-5)


def test_zero_points_become_minima_where_float16_has_them(tokenizer: Any, tmp_path: Path) -> None:
    model = quantized(scheme="asym")
    with pytest.raises(Unsupported, match=r"minimum .* is not exact in float16"):
        woq.export(model, tmp_path / "x.gguf", format="gguf", tokenizer=tokenizer)
    report = woq.export(
        model, tmp_path / "x.gguf", format="gguf", tokenizer=tokenizer, round_scales=True
    )
    assert 0 < max(layer.rounding for layer in report.layers) <= 2**-11
    layer = model.model.layers[0].mlp.up_proj.quantized()
    kind, shape, data = native.GgufModel(str(tmp_path / "x.gguf")).tensors["blk.0.ffn_up.weight"]
    assert kind == "Q4_1"
    found = gguf.quants.dequantize(data.reshape(shape[0], -1), gguf.GGMLQuantizationType.Q4_1)
    minima = (-(layer.zero_points() * layer.scales())).astype(np.float16)
    group = np.arange(shape[1]) // 32
    expected = layer.scales()[:, group] * layer.codes() + minima[:, group].astype(np.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "table": ({"weight_dtype": "nf4"}, r"dtype is nf4, and GGUF has no type for that: .*iq4_nl"),
    "groups": ({"group_size": 16}, r"groups of 16 are no blocks of 32.*group_size=32"),
    "scales": ({"scale_dtype": "fp32"}, r"not exact in float16.*scale_dtype='fp16'"),
    "int8 asym": ({"weight_dtype": "int8", "scheme": "asym"}, "Q8_0 is symmetric"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_is_written(case: str, tokenizer: Any, tmp_path: Path) -> None:
    settings, message = REFUSED[case]
    model = quantized(**settings)
    with pytest.raises(Unsupported, match=message):
        woq.export(model, tmp_path / "x.gguf", format="gguf", tokenizer=tokenizer)
    report = woq.export(
        model, tmp_path / "x.gguf", format="gguf", tokenizer=tokenizer, dry_run=True
    )
    assert not report.possible
    assert not any(tmp_path.iterdir())


def test_act_scales_and_act_order_are_refused(tokenizer: Any, tmp_path: Path) -> None:
    for change, message in (
        (lambda m: m.with_act_scales(torch.full((m.cols,), 0.5)), "act_scales"),
        (lambda m: m.with_g_idx(torch.arange(m.cols, dtype=torch.int32) % 2), "act_order=False"),
    ):
        model = quantized()
        mlp = model.model.layers[0].mlp
        mlp.up_proj = woq.WeightOnlyLinear.from_quantized(change(mlp.up_proj.quantized()))
        with pytest.raises(Unsupported, match=rf"layers\.0\.mlp\.up_proj: .*{message}"):
            woq.export(model, tmp_path / "x.gguf", format="gguf", tokenizer=tokenizer)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("change", "message"), [
    ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
     r"rope_parameters is .*'dynamic'.*the file would say"),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu', and the file would say 'silu'"),
])  # fmt: skip
def test_what_a_file_cannot_say_is_refused(
    change: dict[str, Any], message: str, tokenizer: Any, tmp_path: Path
) -> None:
    model = llama(**change)
    woq.quantize(model, WeightOnlyQuantConfig(**SETTINGS))
    with pytest.raises(Unsupported, match=message):
        woq.export(model, tmp_path / "x.gguf", format="gguf", tokenizer=tokenizer)


def test_what_only_the_configs_file_knows_is_no_matter(tokenizer: Any, tmp_path: Path) -> None:
    model = quantized(scale_dtype="fp16")
    model.config.is_llama_config = True  # as SmolLM2's has it
    woq.export(model, tmp_path / "x.gguf", format="gguf", tokenizer=tokenizer)
    assert torch.allclose(logits(read(tmp_path / "x.gguf")), logits(model), atol=1e-6)


def test_mistral_is_llama_but_for_its_window(tokenizer: Any, tmp_path: Path) -> None:
    settings = {**llama().config.to_dict(), "model_type": "mistral"}
    for window in (None, 64):
        torch.manual_seed(0)
        model = MistralForCausalLM(MistralConfig(**{**settings, "sliding_window": window})).eval()
        woq.quantize(model, WeightOnlyQuantConfig(**SETTINGS))
        if window is None:
            woq.export(model, tmp_path / "x.gguf", format="gguf", tokenizer=tokenizer)
            assert torch.allclose(logits(read(tmp_path / "x.gguf")), logits(model), atol=1e-6)
        else:
            with pytest.raises(Unsupported, match="sliding_window is 64, and the file would"):
                woq.export(model, tmp_path / "y.gguf", format="gguf", tokenizer=tokenizer)


def test_mistakes_are_named(tokenizer: Any, tmp_path: Path) -> None:
    model, out = quantized(), tmp_path / "x.gguf"
    with pytest.raises(InvalidArgument, match=r"x does not end in \.gguf"):
        woq.export(model, tmp_path / "x", format="gguf", dry_run=True)
    with pytest.raises(InvalidArgument, match=r"give it \(tokenizer\), or a GGUF file"):
        woq.export(model, out, format="gguf")
    with pytest.raises(InvalidArgument, match="a template is for GGUF files"):
        woq.export(model, out, format="gptq", template=out)
    other = mixtral()
    woq.quantize(other, WeightOnlyQuantConfig(**SETTINGS))
    with pytest.raises(Unsupported, match="architecture is 'mixtral', and GGUF files are written"):
        woq.export(other, out, format="gguf", tokenizer=tokenizer)
    small = woq.quantize(llama(), WeightOnlyQuantConfig(**SETTINGS))
    with pytest.raises(Unsupported, match="a token 299, and the embedding 128 rows"):
        woq.export(small, out, format="gguf", tokenizer=byte_tokenizer(use_regex=True))
    woq.export(model, out, format="gguf", tokenizer=tokenizer)
    before = out.read_bytes()
    with pytest.raises(InvalidArgument, match="exists: name another file"):
        woq.export(model, out, format="gguf", tokenizer=tokenizer)
    with pytest.raises(
        Unsupported, match=r"x\.gguf is of another model: its architecture is qwen2"
    ):
        woq.export(quantized("qwen2"), tmp_path / "y.gguf", format="gguf", template=out)
    deep = woq.quantize(llama(num_hidden_layers=3), WeightOnlyQuantConfig(**SETTINGS))
    with pytest.raises(Unsupported, match="another model: num_hidden_layers is 3, and the file"):
        woq.export(deep, tmp_path / "y.gguf", format="gguf", template=out)
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"]


# Patterns as the tokenizer.json of these families have them.
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_2 = LLAMA_3.replace("{1,3}", "")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(pattern: str) -> pre_tokenizers.Split:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def test_pre_tokenizers_have_llama_cpps_names() -> None:
    def name(*steps: Any, **more: Any) -> str:
        return tokenizer_metadata(byte_tokenizer(*steps, **more), 384)["tokenizer.ggml.pre"]

    assert name(use_regex=True) == "gpt-2"
    assert name(pre_tokenizers.Digits(individual_digits=True), use_regex=True) == "smollm"
    assert name(split(LLAMA_3), ignore_merges=True) == "llama-bpe"
    assert name(split(TEKKEN), ignore_merges=True) == "tekken"
    assert name(split(QWEN_2)) == "qwen2"
    with pytest.raises(Unsupported, match="like llama-bpe, but for ignore_merges"):
        name(split(LLAMA_3))
    with pytest.raises(Unsupported, match=r"splits texts by \['a\+'\].*known are gpt-2.*template"):
        name(split("a+"))
    qwen = byte_tokenizer(split(QWEN_2))
    qwen.backend_tokenizer.normalizer = normalizers.NFC()
    assert tokenizer_metadata(qwen, 384)["tokenizer.ggml.pre"] == "qwen2"
    qwen.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(Unsupported, match=r"normalizes texts \(Lowercase\)"):
        tokenizer_metadata(qwen, 384)


def test_byte_tokens() -> None:
    tokenizer = byte_tokenizer(use_regex=True)
    said = tokenizer_metadata(tokenizer, 384)
    tokens, kinds = said["tokenizer.ggml.tokens"], said["tokenizer.ggml.token_type"]
    size = len(tokenizer)
    assert tokens[:size] == tokenizer.convert_ids_to_tokens(range(size))
    assert tokens[size:] == [f"[PAD{i}]" for i in range(size, 384)]
    assert kinds == [3, 3, *[1] * (size - 2), *[5] * (384 - size)]
    assert said["tokenizer.ggml.bos_token_id"] == 0
    assert said["tokenizer.ggml.add_bos_token"] is False


@pytest.mark.parametrize("prefix", [False, True])
def test_pieces(prefix: bool) -> None:
    tokenizer = sentence_tokenizer(prefix=prefix)
    said = tokenizer_metadata(tokenizer, 384)
    assert said["tokenizer.ggml.model"] == "llama"
    assert said["tokenizer.ggml.add_space_prefix"] is prefix
    assert said["tokenizer.ggml.add_bos_token"] is True
    kinds, tokens = said["tokenizer.ggml.token_type"], said["tokenizer.ggml.tokens"]
    assert kinds[:3] == [2, 3, 3]
    assert set(kinds[3:259]) == {6}
    blanks = tokenizer.convert_tokens_to_ids("▁▁")
    assert (tokens[blanks], kinds[blanks]) == (("▁▁", 1) if prefix else ("  ", 4))
    scores = dict(zip(tokens, said["tokenizer.ggml.scores"], strict=True))
    assert scores["th"] > scores["the"] > scores["▁the"] > scores["ver"] > scores["▁l"]
    assert scores["▁l"] > scores["t"]


def test_pieces_that_llama_cpp_would_merge_otherwise() -> None:
    tokenizer = sentence_tokenizer(prefix=True)
    vocab = tokenizer.get_vocab()
    bpe = {"unk_token": "<unk>", "byte_fallback": True}
    tokenizer.backend_tokenizer.model = models.BPE(vocab, [("t", "h"), ("th", "e")], **bpe)
    with pytest.raises(Unsupported, match=r"does not merge 't' and 'he', which llama\.cpp's does"):
        tokenizer_metadata(tokenizer, 384)
    merges = [("th", "e"), ("h", "e"), ("t", "he")]
    tokenizer.backend_tokenizer.model = models.BPE(vocab, merges, **bpe)
    with pytest.raises(Unsupported, match="merges to 'the' are not together"):
        tokenizer_metadata(tokenizer, 384)


def test_smollm2s_file_comes_out_as_it_was(tmp_path: Path) -> None:
    source, out = smollm2_file(), tmp_path / "out.gguf"
    woq.export(source, out, format="gguf")  # its own template
    assert tensors_of(out) == tensors_of(source)
    read = native.GgufModel(str(out)).metadata
    metadata = native.GgufModel(str(source)).metadata
    assert read.keys() == metadata.keys()
    own = woq.AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    for key, value in tokenizer_metadata(own, 49152).items():
        if key != "tokenizer.ggml.add_eos_token":  # False: the file does not say it
            assert np.array_equal(value, metadata[key]), key
            assert np.array_equal(read[key], metadata[key]), key
