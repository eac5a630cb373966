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
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..config.quant_config import WeightOnlyQuantConfig
from ..core import native
from ..formats.checkpoint import read_header
from ..formats.foreign import ForeignFormat
from ..formats.pages import HeapTrimmer, release_file_pages
from ..modules.layer import WeightOnlyLinear
from ..modules.targets import is_transposed, output_embeddings
from ..quantizing.quantize import log_kernels, replace_module
from .attach import attach_quantizer, declare_untied
from .quantizer import WoqHfQuantizer

__all__ = ["load_foreign", "stored_settings"]

logger = logging.getLogger("woq")

_METHOD = "woq_foreign"

# Arguments of from_pretrained that say where a repository's files are.
_HUB_ARGUMENTS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "revision",
    "subfolder",
    "token",
    "trust_remote_code",
)

# Settings beside config.json, as AutoGPTQ and AutoAWQ wrote them.
_OLD_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}

_TYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
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
    values, _ = PreTrainedConfig.get_config_dict(path, **_hub_arguments(keywords))
    if values.get("quantization_config"):
        return dict(values["quantization_config"])
    for name, method in _OLD_FILES.items():
        file = Path(path) / name
        if file.is_file():
            try:
                return {"quant_method": method, **json.loads(file.read_text(encoding="utf-8"))}
            except (ValueError, TypeError) as error:
                raise native.InvalidArgument(f"{file} is damaged ({error})") from error
    return {}


def _hub_arguments(keywords: Mapping[str, Any]) -> dict[str, Any]:
    return {name: keywords[name] for name in _HUB_ARGUMENTS if name in keywords}


def load_foreign(
    auto_class: Any,
    path: Any,
    arguments: tuple[Any, ...],
    keywords: Mapping[str, Any],
    form: ForeignFormat,
    compute_dtype: str,
) -> Any:
    """The model of `path`, its layers packed as the checkpoint has them.

    Raises:
        InvalidArgument: tensors of a layer are missing, or do not fit the model; or the checkpoint
            has tensors that the model does not.
        Unsupported: a layer has no form that woq's kernels compute with.
    """
    keywords = dict(keywords)
    config = keywords.pop("config", None)
    if config is None:
        config = AutoConfig.from_pretrained(path, **_hub_arguments(keywords))
    config.quantization_config = {"quant_method": _METHOD}
    wants_info = keywords.pop("output_loading_info", False)
    with _Registered(form, compute_dtype):
        model, info = auto_class.from_pretrained(
            path, *arguments, config=config, output_loading_info=True, **keywords
        )
    _check_keys(path, form, info)
    return (model, info) if wants_info else model


def _check_keys(path: Any, form: ForeignFormat, info: Mapping[str, Any]) -> None:
    """A tensor without a place would change the model, and a place without a tensor is random."""
    for key, what in (
        ("unexpected_keys", "has tensors that have no place in the model"),
        ("missing_keys", "lacks tensors of the model"),
    ):
        names = sorted(info.get(key) or ())
        if names:
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            raise native.InvalidArgument(
                f"{path}, a checkpoint of {form.name}, {what}: {shown} ({len(names)} in all). woq "
                "does not guess what they mean: start from the model in floating point"
            )


class _ForeignConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """What transformers is given in place of the other method's config while it loads."""

    def __init__(self, **kwargs: Any) -> None:
        self.quant_method = _METHOD


class _Registered:
    """Makes the method known to transformers for the time of one load."""

    def __init__(self, form: ForeignFormat, compute_dtype: str) -> None:
        class Quantizer(_ForeignQuantizer):
            pass

        Quantizer.form, Quantizer.compute_dtype = form, compute_dtype
        self._quantizer = Quantizer

    def __enter__(self) -> None:
        auto.AUTO_QUANTIZATION_CONFIG_MAPPING[_METHOD] = _ForeignConfig
        auto.AUTO_QUANTIZER_MAPPING[_METHOD] = self._quantizer

    def __exit__(self, *args: object) -> None:
        del auto.AUTO_QUANTIZATION_CONFIG_MAPPING[_METHOD]
        del auto.AUTO_QUANTIZER_MAPPING[_METHOD]


class _ForeignQuantizer(HfQuantizer):
    """Puts holders in place of the layers that the files have packed, and packs them afterwards."""

    requires_calibration = False
    form: ForeignFormat
    compute_dtype: str

    def update_device_map(self, device_map: Any) -> Any:
        return device_map if isinstance(device_map, dict) else {"": "cpu"}

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        files = kwargs.get("checkpoint_files") or ()
        layers = _packed_layers(files, self.form)
        modules = {n: m for n, m in model.named_modules() if is_transposed(m) is not None}
        prefix = f"{model.base_model_prefix}."
        found = 0
        for name, module in modules.items():
            # A checkpoint of the model with a head in one without, and the other way round.
            names = (name, prefix + name, name.removeprefix(prefix))
            at = next((n for n in names if n in layers), None)
            if at is not None:
                dtype = module.weight.dtype
                holder = _ForeignLayer(name, module, layers[at], self.form, dtype)
                replace_module(model, name, holder)
                found += 1
        if found == 0:
            raise native.InvalidArgument(
                f"the checkpoint says it is of {self.form.name}, but none of the model's "
                f"{len(modules)} linear layers has a tensor '{self.form.mark}' in its files"
            )
        heads = [name for name in output_embeddings(model) if name in modules]
        packed = [n for n in heads if isinstance(model.get_submodule(n), _ForeignLayer)]
        declare_untied(model, packed)
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        rules: collections.Counter[str] = collections.Counter()
        errors: list[native.InvalidArgument | native.Unsupported] = []
        heap = HeapTrimmer()
        holders = {n: m for n, m in model.named_modules() if isinstance(m, _ForeignLayer)}
        for name in list(holders):
            try:
                layer, rule = holders.pop(name).pack(self.compute_dtype)
            except (native.InvalidArgument, native.Unsupported) as error:
                errors.append(type(error)(f"{name}, of {self.form.name}: {error}"))
                continue
            replace_module(model, name, layer)
            heap.count(layer.nbytes)
            rules[rule] += 1
        if errors:
            raise _joined(errors)
        heap.trim()
        for rule, count in rules.items():
            logger.info("%s: %d layers: %s", self.form.name, count, rule)
        layers = {n: m for n, m in model.named_modules() if isinstance(m, WeightOnlyLinear)}
        _make_alike(model, layers)
        attach_quantizer(model, _config_of(model, layers, self.compute_dtype), WoqHfQuantizer)
        if logger.isEnabledFor(logging.INFO):
            log_kernels(model)
        return model

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True


class _ForeignLayer(nn.Module):
    """Receives the tensors of one layer from the loader; does not compute."""

    def __init__(
        self,
        name: str,
        module: nn.Module,
        found: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
        form: ForeignFormat,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.layer_name, self.form, self.dtype = name, form, dtype
        self.transposed = bool(is_transposed(module))
        rows, cols = module.weight.shape  # type: ignore[misc]
        self.rows, self.cols = (cols, rows) if self.transposed else (rows, cols)
        for key, (shape, kind) in found.items():
            self.register_buffer(key, torch.empty(shape, dtype=kind, device="meta"))
        self.expects_bias = module.bias is not None
        if self.expects_bias and "bias" not in found:
            self.register_buffer("bias", torch.empty_like(module.bias))  # type: ignore[arg-type]

    def pack(self, compute_dtype: str) -> tuple[WeightOnlyLinear, str]:
        tensors = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        bias = tensors.pop("bias", None)
        unknown = tensors.keys() - self.form.tensors
        if unknown:
            raise native.InvalidArgument(
                f"it has tensors that the format does not know: {', '.join(sorted(unknown))}"
            )
        matrix, rule = self.form.read(
            {name: tensor.contiguous() for name, tensor in tensors.items()}, self.rows, self.cols
        )
        if bias is not None and not self.expects_bias and not bool(bias.any()):
            bias = None  # AutoGPTQ writes zeros where a layer has none
        layer = WeightOnlyLinear.from_quantized(
            matrix,
            # A copy: the loaded one would keep the file's pages.
            None if bias is None else bias.detach().to(self.dtype).clone(),
            compute_dtype=compute_dtype,
            name=self.layer_name,
            dtype=self.dtype,
            transposed=self.transposed,
        )
        for tensor in tensors.values():
            release_file_pages(tensor)
        return layer, rule


def _packed_layers(
    files: Sequence[str], form: ForeignFormat
) -> dict[str, dict[str, tuple[tuple[int, ...], torch.dtype]]]:
    """{layer: {tensor: (shape, dtype)}} of the layers that the files have packed."""
    layers: dict[str, dict[str, tuple[tuple[int, ...], torch.dtype]]] = {}
    for file in files:
        if not str(file).endswith(".safetensors"):
            raise native.Unsupported(
                f"{file}: quantized checkpoints are read from safetensors files; save the model "
                "again with safe_serialization=True"
            )
        for key, stored in read_header(str(file)).tensors.items():
            name, _, tensor = key.rpartition(".")
            kind = _TYPES.get(stored.dtype)
            if kind is not None:
                layers.setdefault(name, {})[tensor] = (stored.shape, kind)
    return {name: tensors for name, tensors in layers.items() if form.mark in tensors}


def _make_alike(model: Any, layers: dict[str, WeightOnlyLinear]) -> None:
    """Give all layers what a saved model has in every layer or in none: g_idx, and one type of
    scales (float32 holds all others exactly)."""
    act_order = any(layer.has_g_idx for layer in layers.values())
    mixed = len({layer.scheme.scales for layer in layers.values()}) > 1
    for name, layer in layers.items():
        recoded = mixed and layer.scheme.scales != "fp32"
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
        layers[name] = WeightOnlyLinear.from_quantized(
            matrix,
            layer.bias,
            compute_dtype=layer.requested_compute_dtype,
            name=layer.name,
            dtype=layer.weight.dtype,
            transposed=layer.transposed,
        )
        replace_module(model, name, layers[name])


def _config_of(
    model: Any, layers: Mapping[str, WeightOnlyLinear], compute_dtype: str
) -> WeightOnlyQuantConfig:
    """The settings that describe a model with these layers best; `attach_quantizer` adds rules for
    those that differ."""
    schemes = collections.Counter(layer.scheme for layer in layers.values())
    scheme = schemes.most_common(1)[0][0]
    heads = [name for name in output_embeddings(model) if name in layers]
    act_order = any(layer.has_g_idx for layer in layers.values())
    return WeightOnlyQuantConfig(
        weight_dtype=scheme.dtype,
        group_size=scheme.group_size,
        scheme="asym" if scheme.asym else "sym",
        scale_dtype=scheme.scales,
        compute_dtype=compute_dtype,
        quantize_lm_head=layers[heads[0]].scheme.dtype if heads else False,
        algorithm="GPTQ" if act_order else "RTN",
        algorithm_args={"desc_act": True} if act_order else {},
    )


def _joined(errors: Sequence[Exception]) -> Exception:
    if len(errors) == 1:
        return errors[0]
    kind = (
        native.InvalidArgument
        if any(isinstance(error, native.InvalidArgument) for error in errors)
        else native.Unsupported
    )
    shown = "".join(f"\n- {error}" for error in errors[:8])
    return kind(f"{len(errors)} layers cannot be read:{shown}")
