# SPDX-License-Identifier: Apache-2.0
"""What transformers says of a quantized model and does to it: biases, sizes, resizing, configs."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from model_support import gpt2, llama, logits, seed, t5

pytest.importorskip("transformers")

import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import woq
from woq import InvalidArgument, Unsupported, WeightOnlyLinear, WeightOnlyQuantConfig
from woq.core import transformers_private


@pytest.fixture(autouse=True)
def _seed(request):
    seed(request)


def quantized_layers(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, WeightOnlyLinear)}


# -- biases: initialisers of parents run over their children's -------------------------------------

VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}


def siglip():
    model = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**VISION))
    return model, {"pixel_values": torch.rand(1, 3, 16, 16)}


def paligemma():
    text = transformers.GemmaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
    )
    config = transformers.PaliGemmaConfig(
        text_config=text,
        vision_config=transformers.SiglipVisionConfig(**VISION, vision_use_head=False),
        projection_dim=64,
        image_token_index=95,
        hidden_size=64,
    )
    return transformers.PaliGemmaForConditionalGeneration(config), {
        "input_ids": torch.tensor([[95] * 16 + [1, 5, 6]]),
        "pixel_values": torch.rand(1, 3, 16, 16),
        "token_type_ids": torch.zeros(1, 19, dtype=torch.long),
    }


def recurrent_gemma():
    config = transformers.RecurrentGemmaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        lru_width=64,
        attention_window_size=16,
    )
    ids = torch.arange(3, 21).reshape(2, 9)
    return transformers.RecurrentGemmaForCausalLM(config), {"input_ids": ids}


def falcon_mamba():
    config = transformers.FalconMambaConfig(
        vocab_size=96, hidden_size=64, num_hidden_layers=2, state_size=8
    )
    ids = torch.arange(3, 21).reshape(2, 9)
    return transformers.FalconMambaForCausalLM(config), {"input_ids": ids}


def t5_classifier():
    config = transformers.T5Config(
        vocab_size=96,
        d_model=64,
        d_kv=16,
        d_ff=96,
        num_layers=1,
        num_heads=4,
        pad_token_id=0,
        decoder_start_token_id=0,
    )
    ids = torch.cat([torch.arange(3, 21).reshape(2, 9), torch.ones(2, 1, dtype=torch.long)], 1)
    return transformers.T5ForSequenceClassification(config), {"input_ids": ids}


def output(model, inputs):
    with torch.no_grad():
        result = model.eval()(**inputs)
    values = getattr(result, "logits", None)
    return result[0] if values is None else values


@pytest.mark.parametrize("build", [siglip, paligemma, recurrent_gemma, falcon_mamba, t5_classifier])
def test_biases_are_the_checkpoints(build, tmp_path):
    model, inputs = build()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") and parameter.dim() == 1:
                parameter.uniform_(-0.3, 0.3)
    model.save_pretrained(tmp_path / "float")
    held = dict(model.named_parameters())
    config = WeightOnlyQuantConfig("int8")
    loaded = type(model).from_pretrained(tmp_path / "float", quantization_config=config)
    biases = {n: m.bias for n, m in quantized_layers(loaded).items() if m.bias is not None}
    assert biases
    for name, bias in biases.items():
        assert torch.equal(bias, held[f"{name}.bias"]), name
    expected = output(loaded, inputs)
    loaded.save_pretrained(tmp_path / "theirs")
    woq.save_pretrained(loaded, tmp_path / "ours")
    for saved in ("theirs", "ours"):
        again = type(model).from_pretrained(tmp_path / saved)
        assert torch.equal(output(again, inputs), expected)


def test_initialisers_leave_all_of_a_layer_alone():
    """Also after what makes new tensors: a copy, a pickle, a state dict, dequantizing."""
    from transformers import initialization

    model = woq.quantize(gpt2(), WeightOnlyQuantConfig("int8"))
    copied, pickled = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    filled = woq.quantize(gpt2(), WeightOnlyQuantConfig("int8"))
    filled.load_state_dict(model.state_dict())
    for each in (model, copied, pickled, filled):
        expected = logits(each)
        for layer in quantized_layers(each).values():
            assert transformers_private.is_loaded(layer.bias)
            initialization.zeros_(layer.bias)
            initialization.normal_(layer.weight)
        assert torch.equal(logits(each), expected)
    names = list(quantized_layers(model))
    for module in map(model.dequantize().get_submodule, names):
        assert all(transformers_private.is_loaded(each) for each in module.parameters())


# -- sizes -----------------------------------------------------------------------------------------


def held_bytes(model):
    """What a quantized model holds: packed weights, and tensors."""
    tensors = [*model.parameters(), *model.buffers()]
    floats = sum(each.numel() * each.element_size() for each in tensors)
    return floats + sum(layer.nbytes for layer in quantized_layers(model).values())


@pytest.mark.parametrize("kind", [llama, gpt2, t5])
@pytest.mark.parametrize("dtype", ["int8", "nf4"])
def test_sizes(kind, dtype, tmp_path):
    model = kind(dtype=torch.bfloat16)
    count, trainable = model.num_parameters(), model.num_parameters(only_trainable=True)
    without = model.num_parameters(exclude_embeddings=True)
    before = model.get_memory_footprint()
    woq.quantize(model, WeightOnlyQuantConfig(dtype))
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    for each in (model, loaded, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert each.num_parameters() == count
        assert each.num_parameters(exclude_embeddings=True) == without
        assert each.num_parameters(only_trainable=True) < trainable
        assert each.get_memory_footprint() == held_bytes(each)
        inner = each.get_encoder() if kind is t5 else each.base_model
        assert inner is not each
        assert inner.get_memory_footprint() == held_bytes(inner)
    assert model.get_memory_footprint() < before
    model.dequantize()
    assert model.num_parameters() == count
    assert model.get_memory_footprint() == before


def test_sizes_when_the_loader_quantizes(tmp_path):
    model = llama()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=WeightOnlyQuantConfig("nf4", quantize_lm_head=True)
    )
    assert loaded.num_parameters() == model.num_parameters()
    assert loaded.get_memory_footprint() == held_bytes(loaded)


def test_a_model_goes_with_its_last_name():
    model = woq.quantize(llama(), WeightOnlyQuantConfig("nf4"))
    copied = copy.deepcopy(model)
    gone = weakref.ref(model)
    ask = model.num_parameters
    gc.disable()
    try:
        del model
        assert gone() is None
    finally:
        gc.enable()
    assert copied.num_parameters() == llama().num_parameters()
    with pytest.raises(ReferenceError, match="is gone"):
        ask()


# -- resizing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
def test_resizing_with_a_float_head(tied, tmp_path):
    model = woq.quantize(llama(tied=tied), WeightOnlyQuantConfig("nf4"))
    before = logits(model)
    model.resize_token_embeddings(131)
    after = logits(model)
    assert after.shape[-1] == 131
    assert torch.equal(after[..., :128], before)
    assert model.get_memory_footprint() == held_bytes(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), after)


@pytest.mark.parametrize("head", [True, "int8"])
@pytest.mark.parametrize("tied", [False, True])
def test_resizing_with_a_quantized_head(tied, head):
    model = woq.quantize(llama(tied=tied), WeightOnlyQuantConfig("nf4", quantize_lm_head=head))
    before = logits(model)
    for arguments in ({"new_num_tokens": 131}, {"pad_to_multiple_of": 100}):
        with pytest.raises(Unsupported, match=r"resize.*lm_head is quantized"):
            model.resize_token_embeddings(**arguments)
    # Nothing is half done, and what changes nothing is allowed.
    assert torch.equal(logits(model), before)
    for arguments in ({}, {"new_num_tokens": 128}, {"pad_to_multiple_of": 64}):
        assert model.resize_token_embeddings(**arguments) is model.get_input_embeddings()
    assert torch.equal(logits(model), before)


# -- configs ---------------------------------------------------------------------------------------

SMALL = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def test_models_of_one_config_object(tmp_path):
    config = LlamaConfig(**SMALL)
    models = [LlamaForCausalLM(config).eval() for _ in range(3)]
    woq.quantize(models[1], WeightOnlyQuantConfig("nf4"))
    woq.quantize(models[2], WeightOnlyQuantConfig("int8", group_size=64))
    assert models[0].config is config
    assert not hasattr(config, "quantization_config")
    for number, model in enumerate(models):
        expected = logits(model)
        model.save_pretrained(tmp_path / str(number))
        again = AutoModelForCausalLM.from_pretrained(tmp_path / str(number))
        assert torch.equal(logits(again), expected)
        assert len(quantized_layers(again)) == len(quantized_layers(model))


def test_a_models_modules_go_on_sharing_its_config():
    model, _ = paligemma()
    original = model.config
    woq.quantize(model, WeightOnlyQuantConfig("nf4"))
    assert model.config is not original
    of_text = [m.config for m in model.modules() if getattr(m, "config", None) is not None]
    known = {id(each) for each in (model.config, model.config.text_config)}
    known.add(id(model.config.vision_config))
    assert {id(each) for each in of_text} <= known
    mine = model.config
    woq.quantize(model, WeightOnlyQuantConfig("nf4"))
    assert model.config is mine


# -- settings of a call that loads a saved checkpoint ----------------------------------------------


def compute_dtypes(model):
    return {layer.computes_in for layer in quantized_layers(model).values()}


@pytest.fixture
def saved(tmp_path):
    model = woq.quantize(llama(), WeightOnlyQuantConfig("nf4", compute_dtype="int8"))
    woq.save_pretrained(model, tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("auto", [AutoModelForCausalLM, woq.AutoModelForCausalLM])
def test_compute_dtype_is_chosen_when_loading(auto, saved):
    for given, expected in (
        (WeightOnlyQuantConfig(compute_dtype="fp32"), "fp32"),
        (WeightOnlyQuantConfig(compute_dtype="bf16"), "bf16"),
        (WeightOnlyQuantConfig(), "int8"),  # not named: the checkpoint's
    ):
        with pytest.warns(UserWarning, match="already has a `quantization_config`"):
            model = auto.from_pretrained(saved, quantization_config=given)
        assert compute_dtypes(model) == {expected}
        assert {layer.scheme.dtype for layer in quantized_layers(model).values()} == {"nf4"}
        assert model.config.quantization_config.compute_dtype == expected
    changed = WeightOnlyQuantConfig()
    changed.compute_dtype = "bf16"
    with pytest.warns(UserWarning, match="compute_dtype"):
        model = auto.from_pretrained(saved, quantization_config=changed)
    assert compute_dtypes(model) == {"bf16"}


def test_configs_of_woqs_own_algorithms_choose_it_too(saved):
    with pytest.warns(UserWarning, match="compute_dtype"):
        model = woq.AutoModelForCausalLM.from_pretrained(
            saved, quantization_config=woq.GPTQConfig(bits=4, compute_dtype="fp32")
        )
    assert compute_dtypes(model) == {"fp32"}


def test_another_methods_config_for_a_saved_checkpoint(saved):
    given = transformers.GPTQConfig(bits=4)
    with pytest.raises(InvalidArgument, match=r"quantized already, by woq \(nf4\).*leave it out"):
        woq.AutoModelForCausalLM.from_pretrained(saved, quantization_config=given)
