# SPDX-License-Identifier: Apache-2.0
"""What a GGUF file says of its model: transformers' config, and where each tensor belongs.

One row of `_ARCHITECTURES` an architecture. A file that says anything which its row does not know
is `Unsupported`: it would be another model.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from ..core.native import GgufModel, InvalidArgument, Unsupported

__all__ = ["GgufPlan", "Place", "plan_of"]

Metadata = Mapping[str, Any]


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
_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}

# Keys behind the architecture's name -> fields that all configs have.
_FIELDS = {
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
        *_FIELDS,
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.sliding_window",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.freq_base_swa",
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


def _rope(theta: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta}


def _theta(keys: _Keys) -> float:
    return float(keys.get("rope.freq_base", 10000.0))


def _llama(keys: _Keys, names: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "attention_bias": "blk.0.attn_q.bias" in names,
        "mlp_bias": "blk.0.ffn_down.bias" in names,
        "rope_parameters": _rope(_theta(keys)),
    }


def _qwen(keys: _Keys, names: Mapping[str, Any]) -> dict[str, Any]:
    return {"use_sliding_window": False, "rope_parameters": _rope(_theta(keys))}


def _gemma3(keys: _Keys, names: Mapping[str, Any]) -> dict[str, Any]:
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
            "full_attention": _rope(float(keys.get("rope.freq_base", 1000000.0))),
            "sliding_attention": _rope(local),
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


def plan_of(model: GgufModel) -> GgufPlan:
    """The plan for an opened file.

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
    tensors = {name: tuple(shape) for name, (_, shape, _) in model.tensors.items()}
    config = _config(keys, known, tensors)
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    places, unknown = {}, []
    for name in tensors:
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


def _config(
    keys: _Keys, known: _Architecture, tensors: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    embedding = tensors.get("token_embd.weight", ())
    if len(embedding) != 2:
        raise InvalidArgument("it has no tensor token_embd.weight of two dimensions")
    heads = keys.number("attention.head_count")
    size = keys.get("attention.key_length", keys.get("rope.dimension_count"))
    size = keys.number("embedding_length") // heads if size is None else size
    for key in ("attention.value_length", "rope.dimension_count"):
        if keys.get(key, size) != size:
            raise Unsupported(f"{key} is {keys.get(key)}, and not {size} like the others")
    ids: dict[str, Any] = {"bos": keys.token("bos"), "pad": keys.token("padding")}
    # An answer also ends where the model's turn does.
    ends = [each for each in (keys.token("eos"), keys.token("eot")) if each is not None]
    ids["eos"] = ends[0] if len(set(ends)) == 1 else sorted(set(ends)) or None
    return {
        **{field: keys.number(key) for key, field in _FIELDS.items()},
        "num_key_value_heads": keys.get("attention.head_count_kv", heads),
        "head_dim": size,
        "vocab_size": embedding[0],
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
