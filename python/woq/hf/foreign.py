# SPDX-License-Identifier: Apache-2.0
"""Loads a checkpoint that another library quantized, and runs it packed.

The layers become holders of the tensors that the files have for them, which transformers fills like
any others; then each is packed, and the model is one of woq's: it saves, reports and runs as such.
Nothing is dequantized on the way. No package of the other library is needed.
"""

from __future__ import annotations

import collections
import json
import logging
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.quantizers import auto
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..core import native, transformers_private
from ..formats.foreign.methods import foreign_format
from ..modules.experts import fused_experts
from ..modules.layer import WeightOnlyLinear
from ..modules.targets import is_transposed, output_embeddings
from ..quantizing.quantize import replace_module
from .foreign_layers import ForeignExperts, ForeignLayer, packed_layers, renamings
from .location import file_arguments, find_files
from .packed_quantizer import PackedQuantizer
from .stored_experts import regroup_listed_experts, split_experts, stored_names

__all__ = [
    "METHOD",
    "ForeignConfig",
    "ForeignQuantizer",
    "load_foreign",
    "note_idle",
    "settings_beside",
    "stored_settings",
    "weights_beside",
]

logger = logging.getLogger("woq")

METHOD = "woq_foreign"

# Settings beside config.json, as AutoGPTQ, AutoAWQ and ModelOpt write them.
_FILES = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "hf_quant_config.json": "modelopt",
}


def stored_settings(path: Any, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The `quantization_config` of the checkpoint that `from_pretrained(path, **keywords)` would
    load; empty for one in floating point, and for a GGUF file. Raises OSError as transformers does
    where there is no config."""
    if keywords.get("gguf_file") is not None or not isinstance(path, str | PathLike):
        return {}
    config = keywords.get("config")
    if config is not None:
        settings = getattr(config, "quantization_config", None) or {}
        return dict(settings if isinstance(settings, dict) else settings.to_dict())
    values, _ = PreTrainedConfig.get_config_dict(path, **file_arguments(keywords))
    if values.get("quantization_config"):
        return dict(values["quantization_config"])
    return settings_beside(path, keywords)


def settings_beside(path: Any, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The `quantization_config` of an old checkpoint, from a file beside its config.json; empty
    where there is none."""
    for file in find_files(path, list(_FILES), keywords, required=False):
        try:
            stored = json.loads(Path(file).read_text(encoding="utf-8"))
            return {"quant_method": _FILES[Path(file).name], **stored}
        except (ValueError, TypeError) as error:
            raise native.InvalidArgument(f"{file} is damaged ({error})") from error
    return {}


def weights_beside(
    path: Any, settings: Mapping[str, Any], keywords: Mapping[str, Any]
) -> str | None:
    """The safetensors file of an old checkpoint of GPTQ, whose name was AutoGPTQ's own; None:
    it has one of the usual names, or shards."""
    if str(settings.get("quant_method")) != "gptq":
        return None
    own = settings.get("model_file_base_name")
    names = [f"{own}.safetensors"] if own else []
    bits, group_size = settings.get("bits"), settings.get("group_size")
    names += ["model.safetensors", "model.safetensors.index.json",
              f"gptq_model-{bits}bit-{group_size}g.safetensors"]  # fmt: skip
    for name in dict.fromkeys(names):
        if find_files(path, [name], keywords, required=False):
            return None if name in ("model.safetensors", "model.safetensors.index.json") else name
    return None


def load_foreign(
    auto_class: Any,
    path: Any,
    arguments: tuple[Any, ...],
    keywords: Mapping[str, Any],
    settings: Mapping[str, Any],
    compute_dtype: str,
) -> Any:
    """The model of `path`, whose quantization config is `settings`, its layers packed as the
    checkpoint has them.

    Raises:
        InvalidArgument: tensors of a layer are missing, or do not fit the model; or the checkpoint
            has tensors that the model does not.
        Unsupported: a layer has no form that woq's kernels compute with.
    """
    keywords = dict(keywords)
    config = keywords.pop("config", None)
    if config is None:
        config = AutoConfig.from_pretrained(path, **file_arguments(keywords))
    if getattr(config, "transformers_weights", None) is None:
        weights = weights_beside(path, settings, keywords)
        if weights is not None:
            config.transformers_weights = weights
    config.quantization_config = {
        "quant_method": METHOD,
        "source": dict(settings),
        "compute_dtype": compute_dtype,
    }
    return auto_class.from_pretrained(path, *arguments, config=config, **keywords)


def note_idle(name: str, chosen: Mapping[str, Any]) -> None:
    """Say which of the settings that were passed for a checkpoint have no meaning on a CPU."""
    shown = [f"{key}={value}" for key, value in chosen.items() if value not in (None, "auto")]
    if shown:
        logger.info(
            "%s: %s is about kernels of GPUs, and has no effect on a CPU", name, ", ".join(shown)
        )


class ForeignConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """What transformers is given in place of the other library's config: all that the checkpoint
    says, of which a config of transformers' own would drop a part.

    Args:
        source: the checkpoint's `quantization_config`.
        compute_dtype: what the kernels compute with.
        on_cpu: what asks for another device runs on the CPU, and is no error.
    """

    def __init__(
        self,
        source: Mapping[str, Any] | None = None,
        compute_dtype: str = "fp32",
        on_cpu: bool = False,
        **kwargs: Any,
    ) -> None:
        self.quant_method = METHOD
        self.on_cpu = on_cpu
        self.source = dict(source or {})
        self.compute_dtype = compute_dtype


class ForeignQuantizer(PackedQuantizer):
    """Puts holders in place of the layers that the files have packed, and packs them afterwards."""

    def __init__(self, quantization_config: Any, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        form = foreign_format(quantization_config.source)
        if form is None:
            raise native.InvalidArgument(
                f"{quantization_config.source.get('quant_method')!r} is no method that woq reads"
            )
        self.form, self.compute_dtype = form, quantization_config.compute_dtype
        self.on_cpu = quantization_config.on_cpu
        self._renamings = renamings(form)
        self._rules: collections.Counter[str] = collections.Counter()
        # transformers adds to a stored config what a passed one says about kernels.
        known = vars(ForeignConfig()).keys()
        note_idle(form.name, {k: v for k, v in vars(quantization_config).items() if k not in known})

    def get_weight_conversions(self) -> list[Any]:
        return self._renamings

    def _make_places(self, model: Any, files: Iterable[str]) -> list[str]:
        layers = packed_layers(tuple(files), self.form)
        # Those with a tensor "weight" would be stacked by transformers.
        split_experts(model, [n for n, found in layers.items() if "weight" not in found])
        modules = {n: m for n, m in model.named_modules() if self._may_hold(m)}
        packed = []
        for name, module in modules.items():
            at = next((n for n in stored_names(model, name) if n in layers), None)
            if at is not None:
                replace_module(model, name, self._holder(name, module, layers[at]))
                packed.append(name)
        if not packed:
            raise native.InvalidArgument(
                f"the checkpoint says it is of {self.form.name}, but none of the model's "
                f"{len(modules)} {'modules of experts' if self.form.experts else 'linear layers'} "
                f"has a tensor '{self.form.mark}' in its files"
            )
        # An embedding is no holder: what it shares with a packed head is a tie no longer.
        return [name for name in output_embeddings(model) if name in packed]

    def _may_hold(self, module: nn.Module) -> bool:
        if self.form.experts:
            return fused_experts(module) is not None
        return is_transposed(module) is not None

    def _holder(self, name: str, module: nn.Module, found: Any) -> ForeignLayer | ForeignExperts:
        fused = fused_experts(module)
        if fused is not None:
            return ForeignExperts(name, fused, found, self.form)
        return ForeignLayer(name, module, found, self.form)

    def _check_keys(self, missing: set[str], unexpected: set[str]) -> None:
        """A tensor without a place would change the model, and a place without a tensor is
        random."""
        for keys, what in (
            (unexpected, "has tensors that have no place in the model"),
            (missing, "lacks tensors of the model"),
        ):
            if keys:
                names = sorted(keys)
                shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
                raise native.InvalidArgument(
                    f"the checkpoint, one of {self.form.name}, {what}: {shown} ({len(names)} in "
                    "all). woq does not guess what they mean: start from the model in floating "
                    "point"
                )

    def _places(self, model: Any) -> list[str]:
        return [
            name
            for name, module in model.named_modules()
            if isinstance(module, ForeignLayer | ForeignExperts)
        ]

    def _pack(self, name: str, place: nn.Module) -> nn.Module:
        packed, rule = place.pack(self.compute_dtype)  # type: ignore[operator]
        self._rules[rule] += sum(isinstance(m, WeightOnlyLinear) for m in packed.modules())
        return packed  # type: ignore[no-any-return]

    def _describe(self, name: str) -> str:
        return f"{name}, of {self.form.name}"

    def _finish(self, model: Any) -> None:
        regroup_listed_experts(model)
        self._forget_names(model)
        for rule, count in self._rules.items():
            logger.info("%s: %d layers: %s", self.form.name, count, rule)
        _make_alike(model)

    def _forget_names(self, model: Any) -> None:
        """The model is saved under woq's names, which no renaming concerns."""
        kept = [
            each
            for each in transformers_private.weight_conversions(model)
            if not any(each is mine for mine in self._renamings)
        ]
        transformers_private.set_weight_conversions(model, kept)


def _make_alike(model: Any) -> None:
    """Give all layers what a saved model has in every layer or in none: g_idx, and double
    quantization, in whose place float32 holds the scales exactly."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, WeightOnlyLinear)}
    act_order = any(layer.has_g_idx for layer in layers.values())
    mixed = len({layer.scheme.scales for layer in layers.values()}) > 1
    for name, layer in layers.items():
        recoded = mixed and layer.scheme.scales == "double"
        if not recoded and (layer.has_g_idx or not act_order):
            continue
        matrix = layer.quantized()
        if recoded:
            g_idx, zeros = matrix.tensors().get("g_idx"), matrix.zero_points()
            matrix = native.QuantizedMatrix.from_codes(
                matrix.codes(),
                matrix.scales(),
                None if zeros is None else zeros.astype("float32"),
                layer.scheme.replace(scales="fp32"),
            )
            if g_idx is not None:
                matrix = matrix.with_g_idx(g_idx)
        if act_order and not matrix.has_g_idx:
            matrix = matrix.with_g_idx()
        alike = WeightOnlyLinear.from_quantized(
            matrix,
            layer.bias,
            compute_dtype=layer.requested_compute_dtype,
            name=layer.name,
            dtype=layer.weight.dtype,
            transposed=layer.transposed,
        )
        replace_module(model, name, alike)


# Importing this module is registering, as for `quantizer`. Under a name of its own: the methods
# that transformers knows stay as they are (but see `install`).
if METHOD not in auto.AUTO_QUANTIZATION_CONFIG_MAPPING:
    auto.register_quantization_config(METHOD)(ForeignConfig)
    auto.register_quantizer(METHOD)(ForeignQuantizer)
