# SPDX-License-Identifier: Apache-2.0
"""What a GGUF file has to say of a model, from transformers' config; and whether what it says is
that model, by asking the reader."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ...core.native import Unsupported
from ..gguf_models import FIELDS, ROPE_DIVISORS, llama3_divisors, plan_of

__all__ = ["architecture_of", "differences", "file_type", "metadata_of", "rope_divisors"]

# transformers' model_type -> llama.cpp's architecture.
_ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3_text": "gemma3",
}

# llama.cpp's name of a file by the type that most of its weights have.
_FILE_TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10,
    "Q3_K": 12, "Q4_K": 15, "Q5_K": 17, "Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30, "BF16": 32,
    "TQ1_0": 36, "TQ2_0": 37,
}  # fmt: skip

# Fields of a config that say nothing of what the model computes, or are in the file otherwise: the
# embedding's presence as a head, the tokenizer's numbers.
_FREE = frozenset(
    (
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "id2label",
        "initializer_range",
        "label2id",
        "max_window_layers",
        "model_type",
        "pad_token_id",
        "pretraining_tp",
        "problem_type",
        "quantization_config",
        "sliding_window_pattern",
        "tie_word_embeddings",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    )
)


def architecture_of(config: Any) -> str:
    """llama.cpp's name of the model.

    Raises:
        Unsupported: woq does not know how llama.cpp has it.
    """
    known = _ARCHITECTURES.get(config.model_type)
    if known is None:
        raise Unsupported(
            f"its architecture is {config.model_type!r}, and GGUF files are written for "
            f"{', '.join(_ARCHITECTURES)}: keep the model in woq's format (woq.save_pretrained)"
        )
    return known


def metadata_of(config: Any) -> dict[str, Any]:
    """The keys of the architecture. What none of them can say is found by `differences`."""
    architecture = architecture_of(config)
    values: dict[str, Any] = {key: getattr(config, field) for key, field in FIELDS.items()}
    size = _head_size(config)
    values |= {
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": size,
        "attention.value_length": size,
        "rope.dimension_count": size,
        "vocab_size": config.vocab_size,
    }
    rope = config.rope_parameters
    if architecture == "gemma3":
        values["attention.sliding_window"] = config.sliding_window
        values["rope.freq_base_swa"] = float(rope["sliding_attention"]["rope_theta"])
        rope = rope["full_attention"]
    values["rope.freq_base"] = float(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        values["rope.scaling.type"] = "linear"
        values["rope.scaling.factor"] = float(rope["factor"])
    values["attention.layer_norm_rms_epsilon"] = float(config.rms_norm_eps)
    return {f"{architecture}.{key}": value for key, value in values.items()}


def rope_divisors(config: Any) -> np.ndarray | None:
    """The tensor `rope_freqs.weight` of Llama 3.1 and later; None: the model has none."""
    rope = config.rope_parameters
    if rope.get("rope_type") != "llama3":
        return None
    return llama3_divisors(rope, _head_size(config))


def file_type(type: str) -> int | None:
    """`general.file_type` of a file whose weights have mostly that type."""
    return _FILE_TYPES.get(type)


class _Contents(NamedTuple):
    metadata: Mapping[str, Any]
    tensors: Mapping[str, tuple[str, tuple[int, ...], Any]]


def differences(
    config: Any, metadata: Mapping[str, Any], tensors: Mapping[str, tuple[str, tuple[int, ...]]]
) -> list[str]:
    """What of `config` a file with these metadata and tensors (type and shape) would not say, or
    otherwise: llama.cpp would compute another model.

    Raises:
        Unsupported: the metadata say what woq's own reader does not know.
        InvalidArgument: they contradict themselves.
    """
    from transformers import AutoConfig

    architecture, said = architecture_of(config), metadata.get("general.architecture")
    if said != architecture:
        return [f"its architecture is {architecture}, and the file would say {said!r}"]
    divisors = rope_divisors(config)
    data = b"" if divisors is None else divisors.tobytes()
    contents = {
        name: (type, shape, data if name == ROPE_DIVISORS else b"")
        for name, (type, shape) in tensors.items()
    }
    plan = plan_of(_Contents(metadata, contents))
    read = AutoConfig.for_model(plan.model_type, **plan.config).to_dict()
    found = []
    # A config keeps what else its file has; only what its class knows has a meaning.
    known = type(config)().to_dict()
    for field, value in config.to_dict().items():
        if field in _FREE or field not in known:
            continue
        if field not in read and _means_nothing(field, value, config):
            continue
        if not _equal(value, read.get(field)):
            found.append(f"{field} is {value!r}, and the file would say {read.get(field)!r}")
    return found


def _head_size(config: Any) -> int:
    size = getattr(config, "head_dim", None)
    return int(size or config.hidden_size // config.num_attention_heads)


def _means_nothing(field: str, value: Any, config: Any) -> bool:
    """Whether a field that the file's architecture has not is as good as none."""
    if field == "sliding_window":  # Mistral's; no text is longer than the window
        return value is None or value >= config.max_position_embeddings
    return value in (None, False)


def _equal(one: Any, other: Any) -> bool:
    """Equal, but for what is lost where a file keeps floats in 32 bits."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-6)
    return bool(one == other)
