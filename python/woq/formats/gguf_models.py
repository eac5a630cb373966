# SPDX-License-Identifier: Apache-2.0
"""What a GGUF file says of its model: transformers' config, and where each tensor belongs. For
those who write files: the tensor of each of the model's parameters.

One row of `_ARCHITECTURES` an architecture. A file that says anything which its row does not know
is `Unsupported`: it would be another model.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np

from ..core.native import InvalidArgument, Unsupported

__all__ = [
    "FIELDS",
    "ROPE_DIVISORS",
    "GgufContents",
    "GgufPlan",
    "Place",
    "llama3_divisors",
    "plan_of",
    "written_names",
]

Metadata = Mapping[str, Any]


class GgufContents(Protocol):
    """What a plan is made from: a file, or what is to become one."""

    @property
    def metadata(self) -> Metadata: ...

    @property
    def tensors(self) -> Mapping[str, tuple[str, tuple[int, ...], Any]]:
        """{name: (type, shape, bytes)}; only those of ROPE_DIVISORS are looked at."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a tensor of the file belongs."""

    name: str  # of the parameter in the model
    heads: int = 0  # its rows are those of so many heads, and permuted; 0: they are not
    plus_one: bool = False  # the file has a norm's weight plus 1

    def row_order(self, rows: int) -> list[int] | None:
        """The file's row of each row of the model; None: the same.

        Rotary embeddings turn pairs of rows. transformers has the first ones of all pairs of a head
        before the second ones, llama.cpp each pair together.
        """
        if not self.heads:
            return None
        size = rows // self.heads
        if rows % self.heads or size % 2:
            raise InvalidArgument(f"{self.name} has {rows} rows for {self.heads} heads")
        half = size // 2
        return [
            head * size + 2 * pair + part
            for head in range(self.heads)
            for part in range(2)
            for pair in range(half)
        ]


@dataclasses.dataclass(frozen=True)
class GgufPlan:
    """What to make of a file."""

    model_type: str
    config: dict[str, Any]  # fields of transformers' config
    places: dict[str, Place]  # by the names that tensors have in the file


# Names in a block -> those in transformers' layer, for all architectures; a suffix follows.
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_SANDWICH = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
# Of Llama 3.1 and later, what the frequencies of rotary embeddings are divided by.
ROPE_DIVISORS = "rope_freqs.weight"

_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}

# Keys behind the architecture's name -> fields that all configs have.
FIELDS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
# Keys that have another place in a config, or say the same again.
_READ = frozenset(
    (
        *FIELDS,
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.sliding_window",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.freq_base_swa",
        "rope.scaling.factor",
        "rope.scaling.type",
        "vocab_size",
    )
)


class _Keys:
    """The metadata of the file's architecture."""

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata
        self.architecture = str(metadata.get("general.architecture", ""))

    def get(self, key: str, default: Any = None) -> Any:
        return self._metadata.get(f"{self.architecture}.{key}", default)

    def number(self, key: str) -> Any:
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            # A list has a number for each layer, which none of these configs can say.
            raise Unsupported(f"{self.architecture}.{key} is {value!r}, and not one number")
        return value

    def unknown(self) -> list[str]:
        """Keys that would be ignored."""
        start = f"{self.architecture}."
        keys = (key.removeprefix(start) for key in self._metadata if key.startswith(start))
        return sorted(set(keys) - _READ)

    def token(self, name: str) -> int | None:
        value = self._metadata.get(f"tokenizer.ggml.{name}_token_id")
        return value if isinstance(value, int) else None


def _rope(keys: _Keys, theta: float = 10000.0) -> dict[str, Any]:
    """The rotary embedding that the keys say, with `theta` where they have none."""
    theta = float(keys.get("rope.freq_base", theta))
    kind = keys.get("rope.scaling.type", "none")
    if kind == "none":
        return {"rope_type": "default", "rope_theta": theta}
    if kind != "linear":
        raise Unsupported(f"its rotary embeddings are scaled by {kind!r}, and not linearly")
    factor = float(keys.number("rope.scaling.factor"))
    return {"rope_type": "linear", "rope_theta": theta, "factor": factor}


def _llama3_rope(theta: float, size: int, divisors: np.ndarray) -> dict[str, Any]:
    """Llama 3's rotary embedding (from 3.1 on), of which a file has only what each frequency is
    divided by: 1 for wavelengths below an end, a factor for those above another, and in between a
    mean of the two. The ends are the same in all models of the family, and checked."""
    rope = {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": float(divisors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    expected = llama3_divisors(rope, size)
    if len(divisors) != size // 2 or not np.allclose(divisors, expected, rtol=1e-4):
        raise Unsupported("its rope_freqs are not those of Llama 3's rotary embeddings")
    return rope


def llama3_divisors(rope: Mapping[str, Any], size: int) -> np.ndarray:
    """What Llama 3's rotary embedding for heads of `size` divides each frequency by."""
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    wavelengths = 2 * np.pi * rope["rope_theta"] ** (np.arange(0, size, 2) / size)
    turns = rope["original_max_position_embeddings"] / wavelengths
    part = np.clip((turns - low) / (high - low), 0, 1)
    divisors: np.ndarray = (1 / ((1 - part) / rope["factor"] + part)).astype(np.float32)
    return divisors


def _llama(keys: _Keys, tensors: Mapping[str, Any]) -> dict[str, Any]:
    rope = _rope(keys)
    if ROPE_DIVISORS in tensors:
        kind, _, data = tensors[ROPE_DIVISORS]
        if kind != "F32" or rope["rope_type"] != "default":
            raise Unsupported(f"{ROPE_DIVISORS} is of type {kind}, beside other scaling")
        rope = _llama3_rope(rope["rope_theta"], _head_size(keys), np.frombuffer(data, "<f4"))
    return {
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_down.bias" in tensors,
        "rope_parameters": rope,
    }


def _qwen(keys: _Keys, tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {"use_sliding_window": False, "rope_parameters": _rope(keys)}


def _gemma3(keys: _Keys, tensors: Mapping[str, Any]) -> dict[str, Any]:
    heads, width = keys.number("attention.head_count"), keys.number("embedding_length")
    layers = keys.number("block_count")
    # Not in the file; as llama.cpp has it. Of the published sizes only that of 27 billion, which
    # has 62 layers, does not divide by the root of the head's size.
    scalar = width // heads if layers == 62 else keys.number("attention.key_length")
    # The window's layers have a theta of their own, which older files do not say.
    local = float(keys.get("rope.freq_base_swa", 10000.0))
    return {
        "sliding_window": keys.number("attention.sliding_window"),
        "query_pre_attn_scalar": scalar,
        "rope_parameters": {
            "full_attention": _rope(keys, 1000000.0),
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        },
    }


@dataclasses.dataclass(frozen=True)
class _Architecture:
    model_type: str
    fields: Callable[[_Keys, Mapping[str, Any]], dict[str, Any]]  # beside those of all
    block: Mapping[str, str]
    permuted: bool = False  # rows of q and k
    plus_one: bool = False  # weights of norms


# By general.architecture. Files of Mistral have llama's: the model is the same.
_ARCHITECTURES = {
    "llama": _Architecture("llama", _llama, _BLOCK, permuted=True),
    "qwen2": _Architecture("qwen2", _qwen, _BLOCK),
    "qwen3": _Architecture("qwen3", _qwen, _BLOCK | _QK_NORMS),
    "gemma3": _Architecture("gemma3_text", _gemma3, _BLOCK | _QK_NORMS | _SANDWICH, plus_one=True),
}


def plan_of(model: GgufContents) -> GgufPlan:
    """The plan for a file.

    Raises:
        Unsupported: the architecture is none of the table, or the file says something that the
            table does not know.
        InvalidArgument: what it says cannot be.
    """
    keys = _Keys(model.metadata)
    known = _ARCHITECTURES.get(keys.architecture)
    if known is None:
        raise Unsupported(
            f"its architecture is {keys.architecture!r}; woq's own reader knows "
            f"{', '.join(_ARCHITECTURES)}"
        )
    if keys.unknown():
        raise Unsupported(f"it sets {', '.join(keys.unknown())}, which woq's own reader ignores")
    tensors = model.tensors
    config = _config(keys, known, tensors)
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    places, unknown = {}, []
    for name in tensors:
        if name == ROPE_DIVISORS and known.fields is _llama:
            continue  # the config says them
        place = _place(name, known, heads)
        if place is None:
            unknown.append(name)
        else:
            places[name] = place
    if unknown:
        raise Unsupported(
            f"it has tensors that woq's own reader does not know: {', '.join(unknown[:3])}"
            + (", ..." if len(unknown) > 3 else "")
        )
    return GgufPlan(known.model_type, config, places)


def written_names(
    architecture: str, heads: Mapping[str, int], parameters: Iterable[str]
) -> dict[str, tuple[str, Place]]:
    """{parameter: the name of its tensor, and how it lies there}, for a file that is written.
    `heads` are the numbers of heads of "q" and "k".

    Raises:
        Unsupported: the architecture has no place for a parameter; all of them are named.
    """
    known = _ARCHITECTURES[architecture]
    outside = {stem: name for name, stem in _OUTSIDE.items()}
    block = {stem: name for name, stem in known.block.items()}
    names: dict[str, tuple[str, Place]] = {}
    unknown = []
    for parameter in parameters:
        stem, _, suffix = parameter.rpartition(".")
        layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem)
        short = outside.get(stem) if layer is None else block.get(layer[2])
        name = short if layer is None else f"blk.{layer[1]}.{short}"
        place = None if short is None else _place(f"{name}.{suffix}", known, heads)
        if place is None:
            unknown.append(parameter)
        else:
            names[parameter] = (f"{name}.{suffix}", place)
    if unknown:
        raise Unsupported(
            f"GGUF's {architecture} has no place for {', '.join(unknown[:3])}"
            + (", ..." if len(unknown) > 3 else "")
        )
    return names


def _head_size(keys: _Keys) -> int:
    size = keys.get("attention.key_length", keys.get("rope.dimension_count"))
    if size is None:
        size = keys.number("embedding_length") // keys.number("attention.head_count")
    return int(size)


def _config(keys: _Keys, known: _Architecture, tensors: Mapping[str, Any]) -> dict[str, Any]:
    embedding = tensors.get("token_embd.weight")
    if embedding is None or len(embedding[1]) != 2:
        raise InvalidArgument("it has no tensor token_embd.weight of two dimensions")
    heads, size = keys.number("attention.head_count"), _head_size(keys)
    for key in ("attention.value_length", "rope.dimension_count"):
        if keys.get(key, size) != size:
            raise Unsupported(f"{key} is {keys.get(key)}, and not {size} like the others")
    ids: dict[str, Any] = {"bos": keys.token("bos"), "pad": keys.token("padding")}
    # An answer also ends where the model's turn does.
    ends = [each for each in (keys.token("eos"), keys.token("eot")) if each is not None]
    ids["eos"] = ends[0] if len(set(ends)) == 1 else sorted(set(ends)) or None
    return {
        **{field: keys.number(key) for key, field in FIELDS.items()},
        "num_key_value_heads": keys.get("attention.head_count_kv", heads),
        "head_dim": size,
        "vocab_size": embedding[1][0],
        "tie_word_embeddings": "output.weight" not in tensors,
        **{f"{name}_token_id": value for name, value in ids.items() if value is not None},
        **known.fields(keys, tensors),
    }


def _place(name: str, known: _Architecture, heads: Mapping[str, int]) -> Place | None:
    stem, _, suffix = name.rpartition(".")
    if suffix not in ("weight", "bias"):
        return None
    plus_one = known.plus_one and stem.endswith("norm")
    if stem in _OUTSIDE:
        return Place(f"{_OUTSIDE[stem]}.{suffix}", plus_one=plus_one)
    block = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if block is None or block[2] not in known.block:
        return None
    permuted = known.permuted and block[2] in ("attn_q", "attn_k")
    return Place(
        f"model.layers.{block[1]}.{known.block[block[2]]}.{suffix}",
        heads=heads[block[2][-1]] if permuted else 0,
        plus_one=plus_one,
    )
