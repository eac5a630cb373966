# SPDX-License-Identifier: Apache-2.0
"""Tells a transformers model that it is quantized: its config, its ties, its place."""

from __future__ import annotations

import copy
import logging
import re
import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers.quantizers.base import HfQuantizer

from ..config.quant_config import WeightOnlyQuantConfig
from ..core import native, transformers_private
from ..core.devices import is_cpu
from ..modules.embedding import quantized_embeddings
from ..modules.embedding_target import asked_for
from ..modules.targets import output_embeddings, quantized_layers, scheme_for, select
from .answers import answer_for

__all__ = ["attach_quantizer", "check_device_map", "declare_untied", "keep_on_cpu"]

logger = logging.getLogger("woq")


def attach_quantizer(
    model: nn.Module, config: WeightOnlyQuantConfig, kind: type[HfQuantizer]
) -> None:
    """Tell the transformers models in `model` that they are quantized, so that they save as such.

    Layers that `config` selects and that are still floats (after an interrupt) go into the
    attached config as modules not to convert: it describes the model as it is. So do rules for
    layers that the patterns of `config` mean by their names in `model`, which are longer. `kind` is
    the class of quantizers that a model is given.
    """
    for inner in _outermost_pretrained(model):
        if not getattr(inner, "is_quantized", False):
            _take_configs_of_its_own(inner)
        attached = config.stored()
        attached.digest = None  # that of the model that the config is from
        floats = [_only(inner, target.name) for target in select(inner, config)]
        if floats:
            attached.modules_to_not_convert = [*(config.modules_to_not_convert or ()), *floats]
        done = quantized_layers(inner)
        for name in output_embeddings(inner):
            if name in done and attached.lm_head_dtype is None:
                # Inside of another module it was a linear layer like any other.
                attached.quantize_lm_head = done[name].scheme.dtype
        attached.quantize_embedding = _what_embeddings_are(inner, attached)
        attached.layer_config = {**_exact_rules(inner, attached), **attached.layer_config}
        quantizer = getattr(inner, "hf_quantizer", None)
        if isinstance(quantizer, kind):
            quantizer.quantization_config, quantizer.pre_quantized = attached, True
        else:
            quantizer = inner.hf_quantizer = kind(attached, pre_quantized=True)
        inner.is_quantized = True
        inner.quantization_method = config.quant_method
        inner.config.quantization_config = quantizer.quantization_config
        for module in inner.modules():
            if hasattr(module, "config") and hasattr(module.config, "to_diff_dict"):
                transformers_private.mark_config_quantized(module.config)
        answer_for(inner)
        keep_on_cpu(inner)


def _what_embeddings_are(model: nn.Module, config: WeightOnlyQuantConfig) -> bool | str:
    """What `quantize_embedding` says of the model as it is."""
    found = next(iter(quantized_embeddings(model).values()), None)
    if found is None:
        return False
    return asked_for(found.layer.scheme.dtype, config)


def _take_configs_of_its_own(model: nn.Module) -> None:
    """Replace the configs of `model` and its modules by copies, the same one by the same: what is
    written into them must not be said of another model that was made from them."""
    from transformers.configuration_utils import PretrainedConfig

    copies: dict[int, Any] = {}
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, PretrainedConfig):
                setattr(module, name, copy.deepcopy(value, copies))


def _exact_rules(model: nn.Module, config: WeightOnlyQuantConfig) -> dict[str, dict[str, Any]]:
    """Rules for the layers that have another scheme than `config` gives their names."""
    heads = set(output_embeddings(model))
    rules: dict[str, dict[str, Any]] = {}
    schemes = {
        name: (layer.scheme, scheme_for(config, name, head=name in heads))
        for name, layer in quantized_layers(model).items()
    }
    for name, embedding in quantized_embeddings(model).items():
        schemes[name] = (embedding.layer.scheme, scheme_for(config, name, embedding=True))
    for name, (have, wanted) in schemes.items():
        rule = _rule_of(have)
        if have.scales != config.number_format().scales:
            rule["scale_dtype"] = have.scales
        if wanted is None or rule != _rule_of(wanted):
            rules[_only(model, name)] = rule
    return rules


def _only(model: nn.Module, name: str) -> str:
    """A pattern for the module `name` alone. It has another name, without the prefix or with one,
    where a checkpoint of the model with a head is loaded into one without, or the reverse."""
    prefix = str(getattr(model, "base_model_prefix", ""))
    start = f"(?:{re.escape(prefix)}\\.)?" if prefix else ""
    return f"{start}{re.escape(name.removeprefix(f'{prefix}.'))}$"


def _rule_of(scheme: native.QuantScheme) -> dict[str, Any]:
    """What a rule of `layer_config` can say of a scheme."""
    return {
        "weight_dtype": scheme.dtype,
        "group_size": scheme.group_size,
        "scheme": scheme.word,
    }


def declare_untied(model: nn.Module, names: Iterable[str]) -> None:
    """Take the weights of modules `names` out of what transformers considers tied.

    `config.tie_word_embeddings` keeps its value: T5 also scales its logits by it.
    """
    prefixed = {f"{name}.{key}" for name in names for key in ("weight", "bias")}
    if not prefixed:
        return
    for path, module in model.named_modules():
        start = f"{path}." if path else ""
        gone = {key.removeprefix(start) for key in prefixed if key.startswith(start)}
        expanded = getattr(module, "all_tied_weights_keys", None)
        if isinstance(expanded, dict):
            module.all_tied_weights_keys = {
                key: value
                for key, value in expanded.items()
                if key not in gone and value not in gone
            }
        declared = transformers_private.declared_ties(module)
        if declared is not None:
            kept = {
                key: value
                for key, value in declared.items()
                if not any(re.search(key, name) or re.search(value, name) for name in gone)
            }
            transformers_private.set_declared_ties(module, kept)


def _outermost_pretrained(model: nn.Module) -> list[Any]:
    modeling = sys.modules["transformers.modeling_utils"]
    found: list[Any] = []

    def visit(module: nn.Module) -> None:
        if isinstance(module, modeling.PreTrainedModel):
            found.append(module)
            return
        for child in module.children():
            visit(child)

    visit(model)
    return found


def check_device_map(device_map: Any, *, on_cpu: bool = False) -> None:
    """Raise Unsupported where the user asks for another device than the CPU; with `on_cpu` say that
    it is the CPU nevertheless."""
    places = device_map.values() if isinstance(device_map, dict) else [device_map]
    if all(place is None or is_cpu(place) for place in places):
        return
    if not on_cpu:
        raise native.Unsupported(
            f"device_map={device_map!r}: woq's kernels run on the CPU; leave device_map "
            "out or pass device_map='cpu'"
        )
    logger.warning("device_map=%r: the model runs on the CPU", device_map)


def keep_on_cpu(model: Any) -> None:
    """Keep pipelines from moving the model to a GPU: they leave models with a device map alone.

    Only where there is an accelerator, because a pipeline then refuses an explicit device="cpu".
    A torch.device rather than "cpu", which save_pretrained takes for an offloaded model.
    """
    accelerator = getattr(torch, "accelerator", torch.cuda)
    if accelerator.is_available():
        model.hf_device_map = {"": torch.device("cpu")}
