# SPDX-License-Identifier: Apache-2.0
"""Which modules of a model are quantized, and with which dtype.

One rule for `woq.quantize`, for loading with transformers and for reading a saved checkpoint back:
a checkpoint names its settings, and the rule finds the same modules again.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from ..config.patterns import pattern_of_names
from ..config.quant_config import WeightOnlyQuantConfig
from ..core import native
from .layer import WeightOnlyLinear

if TYPE_CHECKING:
    import torch

__all__ = [
    "Target",
    "is_transposed",
    "left_alone",
    "output_embeddings",
    "parameter_count",
    "scheme_for",
    "select",
    "skip_patterns",
    "warn_of_idle_patterns",
]

logger = logging.getLogger("woq")


@dataclasses.dataclass(frozen=True)
class Target:
    """A module to quantize."""

    name: str
    module: nn.Module
    scheme: native.QuantScheme
    transposed: bool  # the float weight is [in_features, out_features]
    tied: bool  # shares its weight with another module
    # float32 [K], not negative: how much the errors of each column count; None: all alike.
    importance: Any = dataclasses.field(default=None, compare=False)

    @property
    def weight_dtype(self) -> str:
        return self.scheme.dtype

    @property
    def shape(self) -> tuple[int, int]:
        """[out_features, in_features]"""
        rows, cols = self.module.weight.shape
        return (cols, rows) if self.transposed else (rows, cols)


def is_transposed(module: nn.Module) -> bool | None:
    """False for nn.Linear, True for transformers' Conv1D, None for what is not quantized.

    Subclasses are not touched: torch's own attention reads the weight of its output projection
    without calling the module.
    """
    if type(module) is nn.Linear:
        return False
    # Without importing transformers: a model that has a Conv1D has imported it already.
    pytorch_utils = sys.modules.get("transformers.pytorch_utils")
    conv1d = getattr(pytorch_utils, "Conv1D", None)
    return True if conv1d is not None and type(module) is conv1d else None


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a pattern means the module `name`, by transformers' rule: a regular expression that
    matches from the start up to the end of a path component, or a literal suffix."""
    return any(
        pattern_of_names(pattern).match(name) or name.endswith(pattern) for pattern in patterns
    )


def output_embeddings(model: nn.Module) -> list[str]:
    """Names of the output embedding (lm_head); empty for a model that has none."""
    getter = getattr(model, "get_output_embeddings", None)
    head = getter() if callable(getter) else None
    if head is None:
        return []
    return [name for name, module in model.named_modules() if module is head]


def tied_modules(model: nn.Module) -> set[str]:
    """Modules whose weight is also another module's, by storage or by transformers' declaration."""
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    tied = {name for names in owners.values() if len(names) > 1 for name in names}
    declared = getattr(model, "all_tied_weights_keys", None) or {}
    tied.update(declared.keys(), declared.values())
    return {name.rpartition(".")[0] for name in tied}


def _last_module(model: nn.Module) -> list[str]:
    # A classification head is small, decides the output, and is often untrained: transformers'
    # quantizers leave the last module alone, whatever its name.
    names = [name for name, _ in model.named_parameters()]
    return [names[-1].rpartition(".")[0]] if names else []


def skip_patterns(model: nn.Module, config: WeightOnlyQuantConfig) -> list[str]:
    """Patterns of the modules to leave alone for other reasons than being (tied to) the head."""
    patterns = list(config.modules_to_not_convert or ())
    # Modules that transformers keeps in float32 under every dtype (routers, gates). Its other list,
    # `_keep_in_fp32_modules` (T5's wo), guards against overflow in float16 activations: these
    # layers compute in float32 and give the dtype they are given.
    patterns.extend(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    return patterns


def warn_of_idle_patterns(model: nn.Module, config: WeightOnlyQuantConfig) -> None:
    """Log the patterns of a config that mean no module of the model: a misspelt one would leave a
    layer with settings that were not wanted."""
    names = [name for name, _ in model.named_modules() if name]
    for field in ("modules_to_not_convert", "layer_config"):
        idle = [
            pattern
            for pattern in getattr(config, field) or ()
            if not any(matches(name, [pattern]) for name in names)
        ]
        if idle:
            example = next(
                (n for n, m in model.named_modules() if is_transposed(m) is not None), ""
            )
            logger.warning(
                "%s: no module matches %s; a layer of this model is called %s",
                field,
                ", ".join(map(repr, idle)),
                example,
            )


def select(model: nn.Module, config: WeightOnlyQuantConfig) -> list[Target]:
    """The modules to quantize, in the model's order."""
    patterns = skip_patterns(model, config)
    heads = set(output_embeddings(model))
    tied = tied_modules(model)
    if getattr(model, "get_output_embeddings", None) is not None:
        patterns += [re.escape(name) for name in _last_module(model) if name not in heads]
    targets = []
    for name, module in model.named_modules():
        transposed = is_transposed(module)
        if transposed is None or not name or matches(name, patterns):
            continue
        if name in tied and name not in heads:
            continue
        scheme = scheme_for(config, name, head=name in heads)
        if scheme is not None:
            targets.append(Target(name, module, scheme, transposed, name in tied))
    return targets


def scheme_for(
    config: WeightOnlyQuantConfig, name: str, *, head: bool = False
) -> native.QuantScheme | None:
    """The number format that `config` gives the module `name`; None: floating point. `head`: it is
    the output embedding, whose dtype `quantize_lm_head` gives before the rules of `layer_config`
    apply."""
    dtype = config.lm_head_dtype if head else config.weight_dtype
    rule = next((r for pattern, r in config.layer_config.items() if matches(name, [pattern])), {})
    if dtype is None or rule is None:
        return None
    try:
        return config.number_format(
            rule.get("weight_dtype", dtype),
            rule.get("group_size"),
            rule["scheme"] == "asym" if "scheme" in rule else None,
        )
    except native.InvalidArgument as error:
        # A rule for an output embedding meets its own dtype only here.
        raise type(error)(f"{name}, with its rule in layer_config: {error}") from error


def overridden(scheme: native.QuantScheme, rule: Mapping[str, Any]) -> native.QuantScheme:
    """`scheme` with what a rule of `layer_config`, in its canonical form, sets."""
    zeros = scheme.zeros
    if "scheme" in rule and (rule["scheme"] == "asym") != scheme.asym:
        zeros = "int" if rule["scheme"] == "asym" else "none"
    return scheme.replace(
        dtype=rule.get("weight_dtype"), group_size=rule.get("group_size"), zeros=zeros
    )


def left_alone(model: nn.Module) -> dict[str, tuple[tuple[int, ...], int]]:
    """Parameters of two or more dimensions that are still floats: {name: (shape, elements)}.

    Embeddings, skipped layers, and the fused [experts, rows, cols] weights of mixtures of experts.
    """
    left: dict[str, tuple[tuple[int, ...], int]] = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            left[name] = (tuple(parameter.shape), parameter.numel())
    return left


def is_fused_experts(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a parameter holds the weights of all experts of a layer, [experts, rows, cols]."""
    return len(shape) == 3 and "expert" in name.lower()


def quantized_layers(model: nn.Module) -> dict[str, WeightOnlyLinear]:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, WeightOnlyLinear)
    }


def parameter_count(model: nn.Module) -> int:
    """Parameters of the model before it was quantized, shared ones once."""
    floats = sum(parameter.numel() for parameter in model.parameters())
    layers = quantized_layers(model).values()
    biases = sum(layer.bias.numel() for layer in layers if layer.bias is not None)
    return floats + biases + sum(layer.out_features * layer.in_features for layer in layers)


def linear_parameters(module: nn.Module) -> torch.Tensor | Any:
    """The float weight of a target as [out_features, in_features], in_features contiguous."""
    weight = module.weight.detach()
    if is_transposed(module):
        weight = weight.t()
    return weight if weight.stride(-1) == 1 else weight.contiguous()
