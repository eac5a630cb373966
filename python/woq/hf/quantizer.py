# SPDX-License-Identifier: Apache-2.0
"""woq as a quantization method of transformers: quantizes while loading, saves, reads back.

`from_pretrained(path, quantization_config=WeightOnlyQuantConfig(...))` builds the model without
memory (meta device). Each weight is quantized when the loader comes to it and its module replaced,
so one float tensor lives at a time. For a saved checkpoint the selected modules become holders of
the stored tensors, which are packed when all have arrived.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..algorithms.shared.finished import stored_extras
from ..config.quant_config import WeightOnlyQuantConfig
from ..core import native, transformers_private
from ..formats.pages import CheckpointPages, HeapTrimmer, release_file_pages
from ..formats.stored_tensors import MARKER, check_marker, from_torch, stored_specs
from ..modules.layer import WeightOnlyLinear
from ..modules.targets import (
    Target,
    output_embeddings,
    quantized_layers,
    scheme_for,
    select,
    warn_of_idle_patterns,
)
from ..quantizing.hooks import add_hook
from ..quantizing.imatrix import with_importance
from ..quantizing.quantize import (
    attach_report,
    log_kernels,
    log_summary,
    make_layer,
    quantize,
    quantize_module,
    replace_module,
)
from ..quantizing.report import LayerReport, QuantizationReport

__all__ = ["WoqHfQuantizer", "attach_quantizer", "declare_untied", "register"]

logger = logging.getLogger("woq")

_METHOD = WeightOnlyQuantConfig.quant_method


def register() -> None:
    """Make transformers know the method "woq". Safe to call more than once."""
    from transformers.quantizers import auto

    if _METHOD not in auto.AUTO_QUANTIZATION_CONFIG_MAPPING:
        if not issubclass(WeightOnlyQuantConfig, QuantizationConfigMixin):
            # transformers takes only subclasses of its mixin; the config must also work, and be
            # cheap to import, without transformers.
            WeightOnlyQuantConfig.__bases__ += (QuantizationConfigMixin,)
        auto.register_quantization_config(_METHOD)(WeightOnlyQuantConfig)
    if _METHOD not in auto.AUTO_QUANTIZER_MAPPING:
        auto.register_quantizer(_METHOD)(WoqHfQuantizer)


class WoqHfQuantizer(HfQuantizer):
    """What `from_pretrained` and `save_pretrained` call."""

    requires_calibration = False
    quantization_config: Any
    pre_quantized: bool

    def __init__(self, quantization_config: Any, **kwargs: Any) -> None:
        super().__init__(quantization_config.canonical(), **kwargs)
        self._on_load: dict[str, Target] = {}  # not quantized yet
        self._waiting: dict[str, _Waiting] = {}  # quantized, the bias still to come
        self._tied: list[Target] = []
        self._errors: list[Exception] = []
        self._report = QuantizationReport()
        self._started = 0.0
        self._pages: CheckpointPages | None = None
        self._heap = HeapTrimmer()

    # -- where the model goes ---------------------------------------------------------------------

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        places = device_map.values() if isinstance(device_map, dict) else [device_map]
        for place in places:
            if place is not None and not _is_cpu(place):
                raise native.Unsupported(
                    f"device_map={device_map!r}: woq's kernels run on the CPU; leave device_map "
                    "out or pass device_map='cpu'"
                )

    def update_device_map(self, device_map: Any) -> Any:
        # "auto" would choose a GPU where there is one.
        return device_map if isinstance(device_map, dict) else {"": "cpu"}

    # -- loading ----------------------------------------------------------------------------------

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        self._started = time.perf_counter()
        config = self.quantization_config
        targets = select(model, config)
        if self.pre_quantized:
            for target in targets:
                dtype = _float_dtype(model, target)
                replace_module(model, target.name, _StoredLayer(target, config, dtype))
            declare_untied(model, [target.name for target in targets if target.tied])
            return model
        if config.needs_calibration:
            return model  # the whole float model comes first: calibration runs it
        warn_of_idle_patterns(model, config)
        if config.imatrix is not None:
            targets = with_importance(model, config, targets)
        # A tied weight is loaded once, under its other name: it is there only after loading.
        self._tied = [target for target in targets if target.tied]
        self._on_load = {target.name: target for target in targets if not target.tied}
        self._pages = CheckpointPages(kwargs.get("checkpoint_files") or ())
        return model

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        return _module_of(param_name) in self._on_load

    def get_quantize_ops(self) -> Any:
        return _QuantizeOnLoad(self)

    def take(self, model: Any, name: str, value: torch.Tensor, keys: Iterable[str]) -> None:
        """Quantize the float weight of module `name`, and put the new layer in its place.

        `keys` are the names of the tensors in the checkpoint that `value` was made from.

        Errors are kept for the end of loading: transformers would catch them here, print a table
        with their traces, and raise an error of its own that says nothing. So all layers that
        cannot be quantized are named at once.
        """
        target = self._on_load.pop(name)
        try:
            weight = value.detach()
            if tuple(weight.shape) != tuple(target.module.weight.shape):
                raise native.InvalidArgument(
                    f"{name}.weight has shape {list(weight.shape)} in the checkpoint, "
                    f"{list(target.module.weight.shape)} in the model"
                )
            if target.transposed:
                weight = weight.t().contiguous()
            bias = target.module.bias
            if bias is not None and bias.is_meta:
                matrix, entry = quantize_module(name, weight, self.quantization_config, target)
                self._waiting[name] = _Waiting(matrix, entry, weight.dtype, target.transposed)
            else:
                layer, entry = make_layer(name, weight, bias, self.quantization_config, target)
                self._install(model, layer, entry)
        except (ValueError, RuntimeError, TypeError) as error:
            self._errors.append(error)
        finally:
            self._release(value, keys)

    def _release(self, value: torch.Tensor, keys: Iterable[str]) -> None:
        if not release_file_pages(value) and self._pages is not None:
            for key in keys:
                self._pages.release(key)
        self._heap.count(value.numel() * value.element_size())

    def _install(self, model: Any, layer: WeightOnlyLinear, entry: LayerReport) -> None:
        transformers_private.keep_values(layer)
        replace_module(model, layer.name, layer)
        self._report.layers.append(entry)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        if self._errors:
            raise _one_of(self._errors)
        if self.pre_quantized:
            _pack_stored_layers(model, self.quantization_config)
        elif self.quantization_config.needs_calibration:
            model.hf_quantizer = self  # which `attach_quantizer` then tells what the model is
            quantize(model, self.quantization_config)
        else:
            self._finish_quantizing(model)
        _keep_on_cpu(model)
        return model

    def _finish_quantizing(self, model: Any) -> None:
        config = self.quantization_config
        for name, waiting in self._waiting.items():
            layer = WeightOnlyLinear.from_quantized(
                waiting.matrix,
                model.get_submodule(name).bias,
                compute_dtype=config.compute_dtype,
                name=name,
                dtype=waiting.dtype,
                transposed=waiting.transposed,
            )
            self._install(model, layer, waiting.entry)
        self._waiting.clear()
        # The tied output embedding; and weights that the checkpoint lacks, which transformers has
        # initialised and reported: a model with float layers among them could not be read back.
        for target in [*self._tied, *self._on_load.values()]:
            module = model.get_submodule(target.name)
            weight = module.weight.detach()
            weight = weight.t().contiguous() if target.transposed else weight
            layer, entry = make_layer(target.name, weight, module.bias, config, target)
            self._install(model, layer, entry)
        declare_untied(model, [target.name for target in self._tied])
        self._tied, self._on_load, self._pages = [], {}, None
        self._heap.trim()
        self._report.seconds = time.perf_counter() - self._started
        attach_report(model, self._report)
        log_summary(model, self._report)
        # From here on the model is what a checkpoint of it would be.
        self.pre_quantized = True

    # -- afterwards -------------------------------------------------------------------------------

    def _dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        for name, layer in quantized_layers(model).items():
            replace_module(model, name, _float_module(layer, dtype or layer.weight.dtype))
        if hasattr(model, "woq_report"):
            del model.woq_report
        return model

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        # The gradient with respect to the input is right; the weights themselves have none.
        return True

    @property
    def is_compileable(self) -> bool:
        return True

    @property
    def quantized_element_size(self) -> float:
        config = self.quantization_config
        groups = 0.0 if config.group_size < 0 else 4 / config.group_size
        return config.bits / 8 + groups


class _Waiting:
    """A quantized weight whose bias has not been loaded yet."""

    def __init__(
        self,
        matrix: native.QuantizedMatrix,
        entry: LayerReport,
        dtype: torch.dtype,
        transposed: bool,
    ) -> None:
        self.matrix, self.entry, self.dtype, self.transposed = matrix, entry, dtype, transposed


class _QuantizeOnLoad:
    """The loader's conversion of one or more float weights: they leave the loader here."""

    def __init__(self, quantizer: WoqHfQuantizer) -> None:
        self._quantizer = quantizer

    def convert(
        self,
        input_dict: dict[str, Any],
        *args: Any,
        full_layer_name: str = "",
        model: Any = None,
        missing_keys: set[str] | None = None,
        source_patterns: Iterable[str] = (),
        **kwargs: Any,
    ) -> dict[str, Any]:
        rest = {}
        for key, value in input_dict.items():
            tensor = value[0] if isinstance(value, list) else value
            full = key if _module_of(key) in self._quantizer._on_load else full_layer_name
            if len(input_dict) > 1 and full != key:
                rest[key] = value
                continue
            self._quantizer.take(model, _module_of(full), tensor, source_patterns)
            if missing_keys is not None:
                missing_keys.discard(full)
        return rest


class _StoredLayer(nn.Module):
    """Receives the stored tensors of one layer from the loader; does not compute."""

    def __init__(self, target: Target, config: WeightOnlyQuantConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.target_name = target.name
        self.rows, self.cols = target.shape
        self.transposed = target.transposed
        self.dtype = dtype
        self.scheme = target.scheme
        self.extras = stored_extras(config)
        self.specs = stored_specs(self.scheme, self.rows, self.cols, **self.extras)
        self.register_buffer(MARKER, torch.empty(1, dtype=torch.uint8, device="meta"))
        for name, (shape, kind) in self.specs.items():
            self.register_buffer(name, torch.empty(shape, dtype=kind, device="meta"))
        bias = target.module.bias
        self.register_buffer("bias", None if bias is None else torch.empty_like(bias))

    def absent(self) -> list[str]:
        """Tensors that the checkpoint did not have."""
        return [
            f"{self.target_name}.{name}"
            for name, buffer in self._buffers.items()
            if buffer is not None and not transformers_private.is_loaded(buffer)
        ]

    def pack(self, compute_dtype: str) -> WeightOnlyLinear:
        # The loader may have cast tensors of modules that it keeps in float32 (5.0 even those of
        # bytes): that is exact, and undone here.
        check_marker(self._buffers[MARKER].to(torch.uint8))  # type: ignore[union-attr]
        tensors = {
            name: self._buffers[name].to(kind)  # type: ignore[union-attr]
            for name, (_, kind) in self.specs.items()
        }
        bias = self._buffers["bias"]
        layer = WeightOnlyLinear.from_quantized(
            from_torch(tensors, self.rows, self.cols, self.scheme, **self.extras),
            # A copy: the loaded one would keep the file's pages.
            None if bias is None else bias.detach().clone(),
            compute_dtype=compute_dtype,
            name=self.target_name,
            dtype=self.dtype,
            transposed=self.transposed,
        )
        for name in self.specs:
            release_file_pages(self._buffers[name])  # type: ignore[arg-type]
        return layer


def _pack_stored_layers(model: Any, config: WeightOnlyQuantConfig) -> None:
    stored = {n: m for n, m in model.named_modules() if isinstance(m, _StoredLayer)}
    absent = [key for layer in stored.values() for key in layer.absent()]
    if absent:
        raise native.InvalidArgument(
            f"the checkpoint lacks {len(absent)} of woq's tensors ({', '.join(absent[:3])}, ...): "
            "it is incomplete, or was not saved by woq with this configuration"
        )
    heap = HeapTrimmer()
    for name in list(stored):
        layer = stored.pop(name).pack(config.compute_dtype)
        replace_module(model, name, layer)
        heap.count(layer.nbytes)
    heap.trim()
    if logger.isEnabledFor(logging.INFO):
        log_kernels(model)


def attach_quantizer(model: nn.Module, config: WeightOnlyQuantConfig) -> None:
    """Tell the transformers models in `model` that they are quantized, so that they save as such.

    Layers that `config` selects and that are still floats (after an interrupt) go into the
    attached config as modules not to convert: it describes the model as it is. So do rules for
    layers that the patterns of `config` mean by their names in `model`, which are longer.
    """
    for inner in _outermost_pretrained(model):
        attached = config.stored()
        floats = [re.escape(target.name) + "$" for target in select(inner, config)]
        if floats:
            attached.modules_to_not_convert = [*(config.modules_to_not_convert or ()), *floats]
        done = quantized_layers(inner)
        for name in output_embeddings(inner):
            if name in done and attached.lm_head_dtype is None:
                # Inside of another module it was a linear layer like any other.
                attached.quantize_lm_head = done[name].scheme.dtype
        attached.layer_config = {**_exact_rules(inner, attached), **attached.layer_config}
        quantizer = getattr(inner, "hf_quantizer", None)
        if isinstance(quantizer, WoqHfQuantizer):
            quantizer.quantization_config, quantizer.pre_quantized = attached, True
        else:
            quantizer = inner.hf_quantizer = WoqHfQuantizer(attached, pre_quantized=True)
        inner.is_quantized = True
        inner.quantization_method = _METHOD
        inner.config.quantization_config = quantizer.quantization_config
        for module in inner.modules():
            if hasattr(module, "config") and hasattr(module.config, "to_diff_dict"):
                transformers_private.mark_config_quantized(module.config)
        _keep_on_cpu(inner)


def _exact_rules(model: nn.Module, config: WeightOnlyQuantConfig) -> dict[str, dict[str, Any]]:
    """Rules for the layers that have another scheme than `config` gives their names."""
    heads = set(output_embeddings(model))
    rules: dict[str, dict[str, Any]] = {}
    for name, layer in quantized_layers(model).items():
        have, wanted = layer.scheme, scheme_for(config, name, head=name in heads)
        if wanted is None or _rule_of(have) != _rule_of(wanted):
            rules[re.escape(name) + "$"] = _rule_of(have)
    return rules


def _rule_of(scheme: native.QuantScheme) -> dict[str, Any]:
    """What a rule of `layer_config` can say of a scheme."""
    return {
        "weight_dtype": scheme.dtype,
        "group_size": scheme.group_size,
        "scheme": "asym" if scheme.asym else "sym",
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


def _one_of(errors: list[Exception]) -> Exception:
    """What to raise for the errors of several layers: all bad input at once; anything else is not
    the checkpoint's fault, and comes first."""
    others = [error for error in errors if not isinstance(error, native.InvalidArgument)]
    if others or len(errors) == 1:
        return (others or errors)[0]
    lines = "".join(f"\n- {error}" for error in errors)
    return native.InvalidArgument(f"{len(errors)} layers cannot be quantized:{lines}")


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


def _keep_on_cpu(model: Any) -> None:
    """Keep pipelines from moving the model to a GPU: they leave models with a device map alone.

    Only where there is an accelerator, because a pipeline then refuses an explicit device="cpu".
    A torch.device rather than "cpu", which save_pretrained takes for an offloaded model.
    """
    accelerator = getattr(torch, "accelerator", torch.cuda)
    if accelerator.is_available():
        model.hf_device_map = {"": torch.device("cpu")}


def _is_cpu(place: Any) -> bool:
    if isinstance(place, torch.device):
        return place.type == "cpu"
    return place in ("cpu", "auto", "balanced", "balanced_low_0", "sequential")


def _module_of(param_name: str) -> str:
    module, _, parameter = param_name.rpartition(".")
    return module if parameter == "weight" else param_name


def _float_dtype(model: Any, target: Target) -> torch.dtype:
    """The dtype in which transformers would hold the float weight of `target`."""
    dtype: torch.dtype = target.module.weight.dtype
    for pattern, planned in transformers_private.planned_dtypes(model, dtype).items():
        if re.search(rf"(^|\.){pattern}(\.|$)", target.name):
            return planned
    return dtype


def _float_module(layer: WeightOnlyLinear, dtype: torch.dtype) -> nn.Module:
    weight = layer.dequantize(dtype)
    bias = None if layer.bias is None else layer.bias.to(dtype)
    module: nn.Module
    with torch.device("meta"):
        if layer.transposed:
            from transformers.pytorch_utils import Conv1D

            module = Conv1D(layer.out_features, layer.in_features)
            weight = weight.t().contiguous()
        else:
            module = nn.Linear(layer.in_features, layer.out_features, bias=bias is not None)
    module.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        module.bias = nn.Parameter(bias, requires_grad=False)
    return module.train(layer.training)


class _Hook:
    """What `woq.quantize` calls."""

    def untied(self, model: nn.Module, names: Iterable[str]) -> None:
        declare_untied(model, names)

    def quantized(self, model: nn.Module, config: WeightOnlyQuantConfig) -> None:
        attach_quantizer(model, config)


# Importing this module is registering: `autoload` may find it half imported, if it was the first
# to import transformers' quantizers, and cannot call anything in it then.
register()
add_hook(_Hook())
