# SPDX-License-Identifier: Apache-2.0
"""`quantize_embedding`: packed input embeddings, alone and as one matrix with a tied head."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from model_support import llama, logits, t5
from safetensors import safe_open
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig
from transformers.models.bart.modeling_bart import BartScaledWordEmbedding

import woq
from woq import InvalidArgument, Unsupported, WeightOnlyEmbedding, WeightOnlyQuantConfig
from woq.modules.embedding import scale_of
from woq.reports.inspection import layer_facts, model_bytes

SHARED = {"quantize_lm_head": "int8", "quantize_embedding": True}
IDS = torch.tensor([[3, 127, 0, 3], [1, 2, 64, 126]])


def config(dtype="nf4", **settings):
    return WeightOnlyQuantConfig(dtype, **settings)


def gemma(dtype=torch.float32):
    settings = Gemma3TextConfig(
        vocab_size=128,
        hidden_size=48,  # its root is no bfloat16
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
    )
    torch.manual_seed(0)
    return Gemma3ForCausalLM(settings).to(dtype).eval()


def stored_names(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_are_those_of_the_dequantized_weight(dtype):
    model = woq.quantize(llama(dtype=dtype), config(quantize_embedding="int8"))
    embedding = model.model.embed_tokens
    expected = nn.functional.embedding(IDS, embedding.dequantize(dtype))
    assert torch.equal(embedding(IDS), expected)
    assert torch.equal(embedding(IDS.int()), expected)
    assert torch.equal(embedding(IDS.t()), expected.transpose(0, 1))
    assert embedding(IDS[:0]).shape == (0, 4, 64)
    assert embedding.weight.dtype == dtype
    with pytest.raises(
        InvalidArgument, match=r"model\.embed_tokens: id 128 .* none of the 128 rows"
    ):
        embedding(torch.tensor([128]))
    with pytest.raises(InvalidArgument, match="float32"):
        embedding(torch.tensor([1.0]))
    with pytest.raises(Unsupported, match="exists packed only"):
        embedding.weight + 1


def test_compilers_see_an_operation():
    embedding = woq.quantize(llama(), config(quantize_embedding=True)).model.embed_tokens
    compiled = torch.compile(lambda ids: embedding(ids) * 2, backend="eager", fullgraph=True)
    assert torch.equal(compiled(IDS), embedding(IDS) * 2)


@pytest.mark.parametrize("build", [lambda: llama(tied=True), gemma], ids=["llama", "gemma3"])
def test_tied_embedding_and_head_are_one_matrix(build, tmp_path):
    model = woq.quantize(build(), config(**SHARED))
    before = logits(model)
    head, embedding = model.lm_head, model.model.embed_tokens
    assert embedding.layer is head
    assert embedding.nbytes == 0
    assert len(model.woq_report.layers) == 2 * 7 + 1
    assert not model.woq_report.left
    # The head's dequantized weight is the embedding's: a float model with it gives the same.
    float_model = build()
    weight = head.dequantize()
    float_model.model.embed_tokens.weight = nn.Parameter(weight)
    rows = float_model.model.embed_tokens(IDS)
    assert torch.equal(embedding(IDS), rows)

    woq.save_pretrained(model, tmp_path)
    names = stored_names(tmp_path)
    assert "model.embed_tokens.qweight" in names
    assert not any(name.startswith("lm_head") for name in names)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.model.embed_tokens.layer is again.lm_head
    assert torch.equal(logits(again), before)
    again.save_pretrained(tmp_path / "again")
    third = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert torch.equal(logits(third), before)
    # A model without a head finds its embedding.
    base = AutoModel.from_pretrained(tmp_path)  # int8, as nothing else in there is
    assert torch.equal(base.get_input_embeddings()(IDS), embedding(IDS))


def test_copies_and_state_dicts_keep_the_tie():
    model = woq.quantize(llama(tied=True), config(**SHARED))
    before = logits(model)
    other = woq.quantize(llama(tied=True), config(**SHARED))
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), other):
        again.load_state_dict(model.state_dict())
        assert again.model.embed_tokens.layer is again.lm_head is not model.lm_head
        assert torch.equal(logits(again), before)
    assert model.to(torch.bfloat16).model.embed_tokens(IDS).dtype == torch.bfloat16


@pytest.mark.parametrize("tied", [False, True], ids=["own", "tied"])
def test_quantized_while_loading(tied, tmp_path):
    float_model = llama(tied=tied)
    float_model.save_pretrained(tmp_path / "float")
    settings = config(quantize_lm_head="int8", quantize_embedding=True if tied else "int8")
    loaded, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "float", quantization_config=settings, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert torch.equal(logits(loaded), logits(woq.quantize(float_model, settings)))
    loaded.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(again), logits(loaded))
    assert isinstance(again.model.embed_tokens, WeightOnlyEmbedding)


@pytest.mark.parametrize("tied", [False, True], ids=["own", "tied"])
def test_calibrated(tied, tmp_path):
    settings = woq.GPTQConfig(
        bits=4,
        desc_act=True,
        dataset=[torch.arange(64) % 128, torch.arange(64) * 3 % 128],
        seqlen=64,
        nsamples=2,
        quantize_lm_head=True,
        quantize_embedding=True,
    )
    model = woq.quantize(llama(tied=tied), settings)
    embedding = model.model.embed_tokens
    assert (embedding.layer is model.lm_head) == tied
    assert torch.equal(embedding(IDS), nn.functional.embedding(IDS, embedding.dequantize()))
    woq.save_pretrained(model, tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model))


def test_dequantized_model_is_tied_again():
    model = woq.quantize(gemma(), config(**SHARED))
    before = logits(model)
    # Not a bit of the weight changes; the sums are torch's.
    rows = model.model.embed_tokens(IDS)
    model = model.dequantize()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.model.embed_tokens(IDS), rows)
    assert type(model.model.embed_tokens) is type(gemma().model.embed_tokens)
    assert torch.allclose(logits(model), before, atol=1e-4, rtol=1e-4)


def test_a_settled_config_says_what_the_model_is():
    for tied, asked, expected in (
        (True, "tied", "int8"),
        (True, True, "int8"),
        (False, "tied", False),
        (False, True, True),
        (False, "int8", "int8"),
    ):
        model = woq.quantize(
            llama(tied=tied), config(quantize_lm_head="int8", quantize_embedding=asked)
        )
        assert model.config.quantization_config.quantize_embedding == expected
        assert isinstance(model.model.embed_tokens, WeightOnlyEmbedding) == bool(expected)
    model = woq.quantize(llama(tied=True), config(quantize_embedding="tied"))
    assert not model.config.quantization_config.quantize_embedding  # its head is not quantized


def test_bytes_count_the_matrix_once():
    model = woq.quantize(llama(tied=True), config(**SHARED))
    float_model = llama(tied=True)
    assert model.num_parameters() == float_model.num_parameters()
    layers = layer_facts(model)
    assert [entry.name for entry in layers if entry.shape == (128, 64)] == ["lm_head"]
    norms = sum(t.numel() * 4 for t in (*model.parameters(), *model.buffers()))
    assert model_bytes(model) == sum(entry.nbytes for entry in layers) + norms
    assert model.get_memory_footprint() == model_bytes(model)

    model = woq.quantize(llama(), config(quantize_embedding="int8"))
    assert model.num_parameters() == llama().num_parameters()
    (entry,) = (entry for entry in layer_facts(model) if entry.name == "model.embed_tokens")
    assert (entry.quantized, entry.is_linear, entry.weight_dtype) == (True, False, "int8")
    assert entry.nbytes == 128 * (64 + 2 * 4)
    with pytest.raises(Unsupported, match=r"embed_tokens is quantized"):
        model.resize_token_embeddings(200)


def test_float_weights_go():
    model = llama(tied=True)
    weight = weakref.ref(model.lm_head.weight)
    woq.quantize(model, config(**SHARED))
    gc.collect()
    assert weight() is None


def test_what_cannot_be_is_refused_by_name():
    with pytest.raises(InvalidArgument, match=r"embed_tokens and lm_head have one weight.*set"):
        woq.quantize(llama(tied=True), config(quantize_embedding=True))
    with pytest.raises(InvalidArgument, match=r"'int8', but .* is to be 'nf4'"):
        woq.quantize(llama(tied=True), config(quantize_lm_head=True, quantize_embedding="int8"))
    with pytest.raises(Unsupported, match=r"the weight of shared is also that of decoder"):
        woq.quantize(t5(), config(quantize_lm_head=True, quantize_embedding=True))
    with pytest.raises(Unsupported, match=r"names no nn\.Embedding"):
        woq.quantize(nn.Sequential(nn.Linear(32, 32)), config(quantize_embedding=True))

    class Normed(nn.Embedding):
        def forward(self, input):
            return nn.functional.normalize(super().forward(input))

    model = llama()
    model.model.embed_tokens = Normed(128, 64)
    with pytest.raises(Unsupported, match=r"embed_tokens: Normed may compute something else"):
        woq.quantize(model, config(quantize_embedding=True))
    # Nothing was quantized before the refusal.
    assert not hasattr(model, "woq_report")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scaled_embeddings(dtype):
    model = gemma(dtype)
    reference = copy.deepcopy(model.model.embed_tokens)
    woq.quantize(model, config(**SHARED))
    embedding = model.model.embed_tokens
    reference.weight = nn.Parameter(embedding.dequantize(dtype))
    assert torch.equal(embedding(IDS), reference(IDS))

    bart = BartScaledWordEmbedding(128, 64, padding_idx=1, embed_scale=7.3).to(dtype)
    scale = scale_of(bart)
    assert torch.equal(scale.times(nn.Embedding.forward(bart, IDS)), bart(IDS))
