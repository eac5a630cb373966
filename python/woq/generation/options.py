# SPDX-License-Identifier: Apache-2.0
"""Generation arguments: which exist, and what a combination of them means."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig

from ..core import transformers_private
from ..core.native import InvalidArgument
from ..core.nearest import nearest
from .grammar import Grammar
from .text import normalize_stops

# As transformers' text-generation pipeline.
DEFAULT_MAX_NEW_TOKENS = 256

# Arguments of TextGenerator's own; `stop_strings` and `stop_sequence` are transformers' names.
_OWN = frozenset({"generation_config", "grammar", "logprobs", "seed", "stop", "stop_sequence"})
# Arguments of generate() that are objects and no part of a generation config.
_OBJECTS = frozenset(
    {"assistant_model", "logits_processor", "prefix_allowed_tokens_fn", "stopping_criteria"}
)
# Fields that decide what generate() returns or where its inputs are: TextGenerator's business.
_RESERVED = frozenset(
    {
        "output_attentions",
        "output_hidden_states",
        "output_logits",
        "output_scores",
        "return_dict_in_generate",
        "transformers_version",
    }
)
_SEEDS = 1 << 63  # torch's generators take no more, and answer j draws by seed + j
_INTEGERS = {
    **dict.fromkeys(("max_length", "max_new_tokens", "num_beams", "num_return_sequences"), 1),
    **dict.fromkeys(("min_length", "min_new_tokens", "no_repeat_ngram_size", "top_k"), 0),
}
_NUMBERS = (
    *("temperature", "top_p", "min_p", "typical_p", "repetition_penalty", "length_penalty"),
    "max_time",
)
_STOPS = ("stop", "stop_sequence", "stop_strings")
_SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
)


def unset_config() -> GenerationConfig:
    """A generation config with nothing set."""
    return GenerationConfig()  # type: ignore[no-untyped-call]


def _known() -> frozenset[str]:
    fields = {name for name in vars(unset_config()) if not name.startswith("_")}
    return frozenset((fields | _OBJECTS | _OWN) - _RESERVED)


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse all unknown names at once, each with the nearest known one."""
    known = _known()
    problems = []
    for name in options:
        if name in known:
            continue
        near = nearest(name, known)
        problems.append(repr(name) + (f" (did you mean {near!r}?)" if near else ""))
    if problems:
        raise InvalidArgument(
            f"unknown generation argument: {', '.join(problems)}. "
            "Known are the fields of transformers.GenerationConfig and "
            f"{', '.join(sorted(_OBJECTS | _OWN))}."
        )
    _stops(options)
    seed = options.get("seed")
    if seed is not None and (type(seed) is not int or not 0 <= seed < _SEEDS):
        raise InvalidArgument(f"seed must be an integer from 0 to 2**63 - 1, got {seed!r}")
    logprobs = options.get("logprobs")
    if logprobs is not None and (not isinstance(logprobs, int) or logprobs < 0):
        raise InvalidArgument(
            "logprobs must be True, or how many of the likeliest tokens to list at each step, got "
            f"{logprobs!r}"
        )
    _check_numbers(options)
    base = options.get("generation_config")
    if base is not None and not isinstance(base, GenerationConfig):
        raise InvalidArgument(
            f"generation_config must be a transformers.GenerationConfig, got {base!r}: pass its "
            "fields as arguments of their own, or GenerationConfig(**fields)"
        )
    grammar = options.get("grammar")
    if grammar is not None and not isinstance(grammar, Grammar):
        raise InvalidArgument(
            f"grammar must be a woq.generation.Grammar (Grammar.json_schema(...)), got {grammar!r}"
        )


def _check_numbers(options: Mapping[str, Any]) -> None:
    """transformers compares these with numbers at some step of a generation."""
    for name, least in _INTEGERS.items():
        value = options.get(name)
        if value is not None and (type(value) is not int or value < least):
            raise InvalidArgument(f"{name} must be an integer of at least {least}, got {value!r}")
    for name in _NUMBERS:
        value = options.get(name)
        if value is None:
            continue
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value):
            raise InvalidArgument(f"{name} must be a number, got {value!r}")
        if value < 0 and name == "temperature":
            raise InvalidArgument(f"temperature must be at least 0, got {value!r}")
        if value <= 0 and name == "max_time":
            raise InvalidArgument(f"max_time must be above 0, got {value!r}")


def merge_options(defaults: Mapping[str, Any], call: Mapping[str, Any]) -> dict[str, Any]:
    """A call's options on top of the defaults; what contradicts them goes."""
    merged = dict(defaults)
    if call.get("max_length") is not None and call.get("max_new_tokens") is None:
        merged.pop("max_new_tokens", None)  # the call's limit, not both
    if any(call.get(name) is not None for name in _STOPS):
        for name in _STOPS:
            merged.pop(name, None)
    merged.update(
        {name: value for name, value in call.items() if value is not None or name not in _OWN}
    )
    return merged


@dataclass(frozen=True)
class SplitOptions:
    """Options by where they go."""

    fields: dict[str, Any]  # of a generation config
    objects: dict[str, Any]  # arguments of generate() beside it
    base: GenerationConfig | None  # instead of the model's own
    stops: tuple[str, ...]
    seed: int | None
    logprobs: int | None  # how many of the likeliest tokens; None: no logprobs at all
    grammar: Grammar | None


def split_options(options: Mapping[str, Any]) -> SplitOptions:
    logprobs = options.get("logprobs")
    if isinstance(logprobs, bool):
        logprobs = 0 if logprobs else None
    return SplitOptions(
        fields={k: v for k, v in options.items() if k not in (_OBJECTS | _OWN | {"stop_strings"})},
        objects={k: v for k, v in options.items() if k in _OBJECTS},
        base=options.get("generation_config"),
        stops=tuple(dict.fromkeys(_stops(options))),
        seed=options.get("seed"),
        logprobs=logprobs,
        grammar=options.get("grammar"),
    )


def _stops(options: Mapping[str, Any]) -> list[str]:
    """Stop texts under all of their names."""
    found: list[str] = []
    for name in _STOPS:
        found += normalize_stops(options.get(name))
    return found


def imply_sampling(values: Mapping[str, Any]) -> dict[str, Any]:
    """A temperature (or top_k, ...) asks for sampling, temperature 0 for none.

    transformers itself ignores the first with a warning and refuses the second.
    """
    result = dict(values)
    if result.get("temperature") == 0:
        result["temperature"] = None
        result["do_sample"] = False
    elif result.get("do_sample") is None and any(
        result.get(name) is not None for name in _SAMPLING
    ):
        result["do_sample"] = True
    return result


def options_of_pipeline(pipeline: Any) -> dict[str, Any]:
    """The generation arguments that a transformers pipeline would use in a call without any."""
    keywords = transformers_private.keywords_of_pipeline(pipeline)
    config = keywords.pop("generation_config", None) or getattr(pipeline, "generation_config", None)
    known = _known()
    options: dict[str, Any] = {}
    if config is not None:
        options.update({k: v for k, v in config.to_diff_dict().items() if k in known})
    # prefix_length and tokenizer are bookkeeping of the pipeline's own steps.
    options.update({k: v for k, v in keywords.items() if k in known and v is not None})
    return options
