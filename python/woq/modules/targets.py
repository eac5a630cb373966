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
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from ..config.patterns import pattern_of_names
from ..config.quant_config import WeightOnlyQuantConfig
from ..core import native
from .bypassed import reads_weight
from .embedding import WeightOnlyEmbedding, quantized_embeddings
from .layer import WeightOnlyLinear

__all__ = [
    "Target",
    "embedding_layers",
    "input_embedding",
    "is_linear",
    "is_transposed",
    "left_alone",
    "output_embeddings",
    "parameter_count",
    "passed_over",
    "scheme_for",
    "select",
    "skip_patterns",
    "tied_groups",
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


# Subclasses of nn.Linear with a forward of their own that is x W^T + bias: Falcon's rounds bfloat16
# before it adds the bias, Idefics's looks for a second layer, a child, which few have.
_SAME_PRODUCT = frozenset({"FalconLinear", "IdeficsDecoupledLinear"})


def is_transposed(module: nn.Module) -> bool | None:
    """False for nn.Linear, True for transformers' Conv1D, None for what is not quantized.

    A subclass counts where it computes what its base does: its forward is inherited (or known to be
    the same), and it has no parameters or children besides.
    """
    kind = _linear_kind(module)
    if kind is None or not _computes_as(module, kind):
        return None
    return kind is not nn.Linear


def is_linear(module: nn.Module) -> bool:
    """Whether it is an nn.Linear or a Conv1D, or derived from one."""
    return _linear_kind(module) is not None


def _linear_kind(module: nn.Module) -> type[nn.Module] | None:
    """nn.Linear or transformers' Conv1D, if `module` is one; None for a quantized layer, which is
    an nn.Linear, too."""
    if isinstance(module, WeightOnlyLinear):
        return None
    if isinstance(module, nn.Linear):
        return nn.Linear
    # Without importing transformers: a model that has a Conv1D has imported it already.
    pytorch_utils = sys.modules.get("transformers.pytorch_utils")
    conv1d: Any = getattr(pytorch_utils, "Conv1D", None)
    return conv1d if conv1d is not None and isinstance(module, conv1d) else None


def _computes_as(module: nn.Module, kind: type[nn.Module]) -> bool:
    own = type(module)
    if own is kind:
        return True
    # torch's own attention reads the weight of its output projection without calling the module,
    # and marks it by this class; a lazy layer has no weight yet.
    if isinstance(module, (NonDynamicallyQuantizableLinear, LazyModuleMixin)):
        return False
    same = own.forward is kind.forward or own.__name__ in _SAME_PRODUCT
    # A weight that is computed (torch.nn.utils.parametrize) is no parameter of that name.
    parameters = {name for name, value in module._parameters.items() if value is not None}
    return same and "weight" in parameters <= {"weight", "bias"} and not module._modules


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a pattern means the module `name`, by transformers' rule: a regular expression that
    matches from the start up to the end of a path component, or a literal suffix."""
    return any(
        pattern_of_names(pattern).match(name) or name.endswith(pattern) for pattern in patterns
    )


def output_embeddings(model: nn.Module) -> list[str]:
    """Names of the output embedding (lm_head); empty for a model that has none."""
    head = _embedding(model, "get_output_embeddings")
    if head is None:
        return []
    return [name for name, module in model.named_modules() if module is head]


def input_embedding(model: nn.Module) -> Any | None:
    """The module that turns token ids into vectors; None for a model that has none, or whose class
    does not say which it is (CLIP, CANINE)."""
    return _embedding(model, "get_input_embeddings")


def _embedding(model: nn.Module, getter: str) -> Any | None:
    method = getattr(model, getter, None)
    try:
        return method() if callable(method) else None
    except NotImplementedError:
        return None


def tied_modules(model: nn.Module) -> set[str]:
    """Modules whose weight is also another module's, by storage or by transformers' declaration."""
    return set(tied_groups(model))


def tied_groups(model: nn.Module) -> dict[str, frozenset[str]]:
    """{module: all modules that have its weight, itself among them}, for `tied_modules`."""
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    ties = [names for names in owners.values() if len(names) > 1]
    ties += [list(pair) for pair in (getattr(model, "all_tied_weights_keys", None) or {}).items()]
    groups: dict[str, set[str]] = {}
    for names in ties:
        joined = {name.rpartition(".")[0] for name in names}
        for name in list(joined):
            joined |= groups.get(name, set())
        groups.update(dict.fromkeys(joined, joined))
    return {name: frozenset(group) for name, group in groups.items()}


def _last_module(model: nn.Module) -> list[str]:
    # A classification head is small, decides the output, and is often untrained: transformers'
    # quantizers leave the last module alone, whatever its name. Modules count, not parameters: a
    # tied weight is listed once, under the first of its names, and a quantized layer has none.
    last = [
        name
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, (WeightOnlyLinear, WeightOnlyEmbedding))
        or any(parameter is not None for parameter in module._parameters.values())
    ]
    return last[-1:]


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
    return [found for _, found in _judged(model, config) if isinstance(found, Target)]


def passed_over(model: nn.Module, config: WeightOnlyQuantConfig) -> dict[str, str]:
    """Linear layers that `select` leaves in floating point though nobody has asked for it: {name:
    the reason}."""
    return {name: found for name, found in _judged(model, config) if isinstance(found, str)}


def _judged(
    model: nn.Module, config: WeightOnlyQuantConfig
) -> Iterator[tuple[str, Target | str | None]]:
    """Each linear layer of the model, in its order, with the target that it is; or why it is none;
    or None, where that is what the config or the model wants."""
    patterns = skip_patterns(model, config)
    heads = set(output_embeddings(model))
    tied = tied_modules(model)
    if getattr(model, "get_output_embeddings", None) is not None:
        patterns += [re.escape(name) for name in _last_module(model) if name not in heads]
    adapters = _adapters(model)
    for name, module in model.named_modules():
        if not name or _linear_kind(module) is None:
            continue
        transposed = is_transposed(module)
        unwanted = matches(name, patterns) or (name in tied and name not in heads)
        scheme = None if unwanted else scheme_for(config, name, head=name in heads)
        parent, _, child = name.rpartition(".")
        if scheme is None or f"{name}.".startswith(adapters):
            yield name, None
        elif reads_weight(model.get_submodule(parent), child):
            yield name, "its weight is read without calling it"
        elif transposed is None:
            yield name, f"{type(module).__name__} may compute something else than a linear layer"
        else:
            yield name, Target(name, module, scheme, transposed, name in tied)


def _adapters(model: nn.Module) -> tuple[str, ...]:
    """Beginnings of the names of what peft has put beside layers: trained, small, and kept.

    peft wraps a layer into a module of its own that holds it as `base_layer` (or
    `original_module`, and the whole model as `base_model`); all else in there is its own. Wrappers
    are known by where their class, or one that it derives from, is defined.
    """
    found = []
    for name, module in model.named_modules():
        if not any(base.__module__.partition(".")[0] == "peft" for base in type(module).__mro__):
            continue
        kept = {"base_layer", "base_model", "original_module"} & module._modules.keys()
        if kept:
            prefix = f"{name}." if name else ""
            found += [f"{prefix}{child}." for child in module._modules if child not in kept]
    return tuple(found)


def scheme_for(
    config: WeightOnlyQuantConfig, name: str, *, head: bool = False, embedding: bool = False
) -> native.QuantScheme | None:
    """The number format that `config` gives the module `name`; None: floating point. `head`: it is
    the output embedding, whose dtype `quantize_lm_head` gives before the rules of `layer_config`
    apply. `embedding`: an input embedding with a weight of its own."""
    dtype = config.lm_head_dtype if head else config.weight_dtype
    if embedding and isinstance(config.quantize_embedding, str):
        dtype = config.quantize_embedding
    rule = next((r for pattern, r in config.layer_config.items() if matches(name, [pattern])), {})
    if dtype is None or rule is None:
        return None
    try:
        return config.number_format(
            rule.get("weight_dtype", dtype),
            rule.get("group_size"),
            rule.get("scheme"),
            rule.get("scale_dtype"),
        )
    except native.InvalidArgument as error:
        # A rule for an output embedding meets its own dtype only here.
        raise type(error)(f"{name}, with its rule in layer_config: {error}") from error


def overridden(scheme: native.QuantScheme, rule: Mapping[str, Any]) -> native.QuantScheme:
    """`scheme` with what a rule of `layer_config`, in its canonical form, sets."""
    zeros = scheme.zeros
    if "scheme" in rule and rule["scheme"] != scheme.word:
        zeros = {"sym": "none", "asym": "int", "min": "min"}[rule["scheme"]]
    return scheme.replace(
        dtype=rule.get("weight_dtype"),
        group_size=rule.get("group_size"),
        zeros=zeros,
        scales=rule.get("scale_dtype"),
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
    packed = [*layers, *embedding_layers(model)]
    return floats + biases + sum(layer.out_features * layer.in_features for layer in packed)


def embedding_layers(model: nn.Module) -> list[WeightOnlyLinear]:
    """What holds the packed weights of embeddings that share them with no head: beside
    `quantized_layers`."""
    layers = [embedding.layer for embedding in quantized_embeddings(model).values()]
    return [layer for layer in layers if not layer.tied]


def linear_parameters(module: nn.Module) -> torch.Tensor | Any:
    """The float weight of a target as [out_features, in_features], in_features contiguous."""
    weight = module.weight.detach()
    if is_transposed(module):
        weight = weight.t()
    return weight if weight.stride(-1) == 1 else weight.contiguous()


def set_linear_parameters(module: nn.Module, weight: torch.Tensor) -> None:
    """Write `weight` [out_features, in_features] into the float weight of a target."""
    with torch.no_grad():
        module.weight.copy_(weight.t() if is_transposed(module) else weight)
