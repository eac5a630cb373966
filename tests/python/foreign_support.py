# SPDX-License-Identifier: Apache-2.0
"""Checkpoints as other libraries write them, packed with numpy by what is known of the formats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from model_support import logits
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

import woq

# From a generator and [N, K]: the tensors of a layer, and the float32 weight that they mean.
Packer = Callable[[np.random.Generator, tuple[int, int]], tuple[dict[str, Any], np.ndarray]]


def words(codes: np.ndarray, bits: int) -> np.ndarray:
    """One stream of bits, the lowest first, in int32: [n] codes to ceil(n * bits / 32) words."""
    stream = ((codes[:, None] >> np.arange(bits)) & 1).astype(np.uint8).reshape(-1)
    packed = np.packbits(stream, bitorder="little")
    packed = np.concatenate([packed, np.zeros(-len(packed) % 4, np.uint8)])
    return packed.view(np.int32)


def gptq_layer(rng, shape, *, group_size=32, zero=7, bits=4):
    """Symmetric, with v1's zero points unless `zero` says otherwise."""
    rows, cols = shape
    codes = rng.integers(0, 1 << bits, shape)
    groups = cols // group_size
    scales = rng.uniform(0.001, 0.01, (groups, rows)).astype(np.float16)
    tensors = {
        "qweight": np.stack([words(codes[n], bits) for n in range(rows)], axis=1),
        "qzeros": np.stack([words(np.full(rows, zero), bits) for _ in range(groups)]),
        "scales": scales,
        "g_idx": (np.arange(cols) // group_size).astype(np.int32),
    }
    centre = float(1 << (bits - 1))
    weight = scales.astype(np.float32).T.repeat(group_size, 1) * (codes - centre)
    return tensors, weight.astype(np.float32)


def awq_layer(rng, shape, *, group_size=32):
    rows, cols = shape
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def pack(codes):  # [lines, rows] -> [lines, rows / 8]
        nibbles = codes.reshape(len(codes), -1, 8)[:, :, order].astype(np.uint32)
        return (
            (nibbles << (4 * np.arange(8, dtype=np.uint32))).sum(-1, dtype=np.uint32).view(np.int32)
        )

    codes = rng.integers(0, 16, (cols, rows))
    zeros = rng.integers(0, 16, (cols // group_size, rows))
    scales = rng.uniform(0.001, 0.01, zeros.shape).astype(np.float16)
    centred = (codes - zeros.repeat(group_size, 0)).astype(np.float32)
    weight = scales.astype(np.float32).repeat(group_size, 0) * centred
    return {"qweight": pack(codes), "qzeros": pack(zeros), "scales": scales}, weight.T.copy()


def compressed_layer(rng, shape, *, group_size=32):
    rows, cols = shape
    codes = rng.integers(0, 16, shape)
    scales = rng.uniform(0.001, 0.01, (rows, cols // group_size)).astype(np.float16)
    weight = scales.astype(np.float32).repeat(group_size, 1) * (codes - 8).astype(np.float32)
    tensors = {
        "weight_packed": np.stack([words(row, 4) for row in codes]),
        "weight_scale": scales,
        "weight_shape": np.array(shape, np.int64),
    }
    return tensors, weight


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


def hqq_layer(rng, shape, *, group_size=32, bits=4):
    codes = rng.integers(0, 1 << bits, (shape[0] * shape[1] // group_size, group_size))
    scale = rng.uniform(0.001, 0.01, (len(codes), 1)).astype(np.float16)
    zero = rng.uniform(0, (1 << bits) - 1, scale.shape).astype(np.float16)
    parts = {2: 4, 3: 10, 4: 2}.get(bits, 1)
    pieces = np.pad(codes, ((0, -len(codes) % parts), (0, 0))).reshape(parts, -1, group_size)
    packed = np.zeros(pieces.shape[1:], np.int32 if bits == 3 else np.uint8)
    for piece in pieces:
        packed = (packed << bits | piece).astype(packed.dtype)
    tensors = {"W_q": packed, "scale": scale, "zero": zero, "shape": np.array(shape, np.int64)}
    for name, value in {"nbits": bits, "group_size": group_size, "axis": 1}.items():
        tensors[name] = np.array(value, np.int32)
    for name in ("view_as_float", "quant_scale", "quant_zero", "optimize", "round_zero"):
        tensors[name] = np.array(0, np.uint8)
    text = {2: b"2bit_u8", 3: b"3bit_32", 4: b"4bit_u8"}.get(bits, b"8bit_u8")
    tensors["packing"] = np.frombuffer(text, np.uint8).copy()
    weight = (codes.astype(np.float32) - zero.astype(np.float32)) * scale.astype(np.float32)
    return tensors, weight.reshape(shape)


E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
E2M1 = np.concatenate([E2M1, -E2M1])


def fp4_layer(rng, shape, *, kind):
    """kind: "nvfp4" and "mxfp4" of compressed-tensors, or "modelopt"."""
    rows, cols = shape
    codes = rng.integers(0, 16, shape).astype(np.uint8)
    packed = codes[:, 0::2] | codes[:, 1::2] << 4  # the even column is the low nibble
    group = 32 if kind == "mxfp4" else 16
    if kind == "mxfp4":
        stored = rng.integers(118, 124, (rows, cols // group)).astype(np.uint8)
        scales = np.float32(2) ** (stored.astype(np.float32) - 127)
        tensors = {"weight_packed": packed, "weight_scale": stored}
    else:
        stored = torch.from_numpy(rng.uniform(0.5, 400, (rows, cols // group)).astype(np.float32))
        stored = stored.to(torch.float8_e4m3fn)
        scales = stored.float().numpy()
        if kind == "nvfp4":
            factor = np.array([5000.0], np.float32)
            scales = scales / factor
            tensors = {"weight_packed": packed, "weight_global_scale": factor}
        else:
            factor = np.array(1 / 4000, np.float32)
            scales = scales * factor
            tensors = {"weight": packed, "weight_scale_2": factor, "input_scale": factor}
        tensors["weight_scale"] = stored
    return tensors, E2M1[codes] * scales.astype(np.float32).repeat(group, 1)


GPTQ = {
    "quant_method": "gptq",
    "bits": 4,
    "group_size": 32,
    "sym": True,
    "desc_act": False,
    "checkpoint_format": "gptq",
}
AWQ = {
    "quant_method": "awq",
    "bits": 4,
    "group_size": 32,
    "zero_point": True,
    "version": "gemm",
    "modules_to_not_convert": None,
}
AUTO_ROUND = {
    "quant_method": "auto-round",
    "bits": 4,
    "group_size": 32,
    "sym": True,
    "packing_format": "auto_round:auto_gptq",
}
COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32},
        }
    },
}
NVFP4 = COMPRESSED | {
    "format": "nvfp4-pack-quantized",
    "config_groups": {
        "group_0": {
            "format": "nvfp4-pack-quantized",
            "targets": ["Linear"],
            "input_activations": {"num_bits": 4, "type": "float"},
            "weights": {"num_bits": 4, "type": "float", "group_size": 16},
        }
    },
}
MXFP4 = COMPRESSED | {"format": "mxfp4-pack-quantized", "config_groups": {}}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "NVFP4", "exclude_modules": ["lm_head"]}
HQQ = {
    "quant_method": "hqq",
    "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 32, "axis": 1}},
    "skip_modules": ["lm_head"],
}
BITSANDBYTES = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "load_in_8bit": False,
    "bnb_4bit_quant_type": "fp4",  # the default; what the layers say holds
}


def write_checkpoint(
    folder: Path,
    model: Any,
    pack: Packer,
    settings: dict[str, Any],
    *,
    head: bool = False,
    shards: int = 1,
) -> Path:
    """Write `model` with packed linear layers; its float weights become those that they mean."""
    rng = np.random.default_rng(0)
    tensors: dict[str, torch.Tensor] = {}
    packed = set()
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | Conv1D) or (name == "lm_head" and not head):
            continue
        transposed = isinstance(module, Conv1D)
        shape = tuple(module.weight.shape)[:: -1 if transposed else 1]
        parts, weight = pack(rng, shape)
        for key, value in parts.items():
            value = value if isinstance(value, torch.Tensor) else torch.from_numpy(value)
            tensors[f"{name}.{key}"] = value.clone().contiguous()
        float_weight = torch.from_numpy(weight.T.copy() if transposed else weight)
        module.weight.data = float_weight.to(module.weight.dtype)
        packed.add(f"{name}.weight")
    for key, value in model.state_dict().items():
        if key not in packed:
            tensors[key] = value.clone()
    model.config.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": settings}))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder
    where: dict[str, str] = {}
    for i in range(shards):  # the parts of a layer lie in different files
        name = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = dict(sorted(tensors.items())[i::shards])
        save_file(part, folder / name, {"format": "pt"})
        where |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def same_model(folder: Path, model: nn.Module, layers: int) -> Any:
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


def edit_layer(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Write the file again with the tensors of one layer, the first q_proj, as `edit` leaves
    them."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    layer = "model.layers.0.self_attn.q_proj."
    parts = {key.removeprefix(layer): tensors.pop(key) for key in list(tensors) if layer in key}
    edit(parts)
    save_file({**tensors, **{layer + k: v for k, v in parts.items()}}, path, {"format": "pt"})
