# SPDX-License-Identifier: Apache-2.0
"""woq as a quantization method of transformers: quantizes while loading, saves, reads back.

`from_pretrained(path, quantization_config=WeightOnlyQuantConfig(...))` builds the model without
memory (meta device). Each weight is quantized when the loader comes to it and its module replaced,
so one float tensor lives at a time. For a saved checkpoint the selected modules become holders of
the stored tensors, which are packed when all have arrived.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..config.quant_config import WeightOnlyQuantConfig
from ..core import transformers_private
from ..core.extras import check_transformers
from ..modules.embedding import quantized_embeddings
from ..modules.embedding_target import embedding_target, settled
from ..modules.layer import WeightOnlyLinear
from ..modules.targets import Target, quantized_layers, select, warn_of_idle_patterns
from ..observe.samples import read_ahead
from ..quantizing.hooks import add_hook
from ..quantizing.imatrix import with_importance
from ..quantizing.quantize import quantize_loaded, replace_module
from .answers import answer_for, stop_answering_for
from .attach import attach_quantizer, check_device_map, declare_untied, keep_on_cpu
from .conversions import restore_conversions, spare_quantized_layers
from .on_load import QuantizeOnLoad
from .saving import describe_save
from .stored_experts import split_experts_of_files
from .stored_layers import (
    StoredLayer,
    check_checkpoint,
    hold_embedding,
    pack_stored_layers,
)

__all__ = ["WoqHfQuantizer", "register"]

_METHOD = WeightOnlyQuantConfig.quant_method


def register() -> None:
    """Make transformers know the method "woq". Safe to call more than once.

    Raises:
        Unsupported: the transformers that is installed is too old.
    """
    check_transformers()
    from transformers.quantizers import auto

    if _METHOD not in auto.AUTO_QUANTIZATION_CONFIG_MAPPING:
        if not issubclass(WeightOnlyQuantConfig, QuantizationConfigMixin):
            # transformers takes only subclasses of its mixin; the config must also work, and be
            # cheap to import, without transformers.
            WeightOnlyQuantConfig.__bases__ += (QuantizationConfigMixin,)
        auto.register_quantization_config(_METHOD)(WeightOnlyQuantConfig)
    if _METHOD not in auto.AUTO_QUANTIZER_MAPPING:
        auto.register_quantizer(_METHOD)(WoqHfQuantizer)
    # The configs of which `get_loading_attributes` is asked; older versions have no such list.
    choosing = getattr(auto, "LOADING_ATTRIBUTES_CONFIG_TYPES", None)
    if choosing is not None and WeightOnlyQuantConfig not in choosing:
        auto.LOADING_ATTRIBUTES_CONFIG_TYPES = (*choosing, WeightOnlyQuantConfig)


class WoqHfQuantizer(HfQuantizer):
    """What `from_pretrained` and `save_pretrained` call."""

    requires_calibration = False
    # Whether what asks for another device runs on the CPU, and is no error.
    on_cpu = False
    quantization_config: Any
    pre_quantized: bool

    def __init__(self, quantization_config: Any, **kwargs: Any) -> None:
        super().__init__(quantization_config.canonical(), **kwargs)
        self._on_load: QuantizeOnLoad | None = None
        self._started = 0.0

    # -- where the model goes ---------------------------------------------------------------------

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        check_device_map(device_map, on_cpu=self.on_cpu)

    def update_device_map(self, device_map: Any) -> Any:
        # "auto" would choose a GPU where there is one.
        return device_map if isinstance(device_map, dict) and not self.on_cpu else {"": "cpu"}

    # -- loading ----------------------------------------------------------------------------------

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        self._started = time.perf_counter()
        config = self.quantization_config
        if self.pre_quantized:
            split_experts_of_files(model, kwargs.get("checkpoint_files") or ())
        targets = select(model, config)
        embedding = embedding_target(model, config)
        if self.pre_quantized:
            for target in targets:
                if embedding is None or target.name != embedding.head:
                    dtype = _float_dtype(model, target)
                    replace_module(model, target.name, StoredLayer(target, config, dtype))
            untied = [target.name for target in targets if target.tied]
            if embedding is not None:
                hold_embedding(model, embedding, config, _float_dtype(model, embedding))
                untied.append(embedding.name)
            declare_untied(model, untied)
            check_checkpoint(model, config, kwargs.get("checkpoint_files") or ())
            return model
        if config.needs_calibration:
            # The whole float model comes first: calibration runs it. Its data is read before that,
            # and not onto the meta device, where models are built.
            beside = model.config.name_or_path
            with torch.device("cpu"):
                config.dataset = read_ahead(
                    config.dataset, config.tokenizer, beside, config.algorithm_args
                )
            return model
        warn_of_idle_patterns(model, config)
        if config.imatrix is not None:
            targets = with_importance(model, config, targets)
        # From here on the config is that of the model at hand.
        config.quantize_embedding = settled(config, embedding)
        files = kwargs.get("checkpoint_files") or ()
        self._on_load = QuantizeOnLoad(config, targets, files, self._started, embedding)
        return model

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        return self._on_load is not None and self._on_load.expects(param_name)

    def get_quantize_ops(self) -> Any:
        assert self._on_load is not None  # else no parameter needs quantization
        return self._on_load.conversion()

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        if self.pre_quantized:
            pack_stored_layers(model, self.quantization_config)
        elif self.quantization_config.needs_calibration:
            model.hf_quantizer = self  # which `attach_quantizer` then tells what the model is
            quantize_loaded(model, self.quantization_config)
        elif self._on_load is not None:
            self._on_load.finish(model)
            self._on_load = None
            # From here on the model is what a checkpoint of it would be.
            self.pre_quantized = True
        answer_for(model)
        keep_on_cpu(model)
        return model

    # -- afterwards -------------------------------------------------------------------------------

    def _dequantize(self, model: Any, dtype: torch.dtype | str | None = None) -> Any:
        if isinstance(dtype, str):  # as the config of a model has it that was saved
            dtype = getattr(torch, dtype)
        embeddings = quantized_embeddings(model)
        weights: dict[int, nn.Parameter] = {}  # of tied heads, which share theirs again
        for name, layer in quantized_layers(model).items():
            module = _float_module(layer, dtype or layer.weight.dtype)
            replace_module(model, name, module)
            weights[id(layer)] = module.weight
            wrapper = model.get_submodule(name.rpartition(".")[0])
            if hasattr(wrapper, "fan_in_fan_out"):
                # peft's LoRA around the layer, which had to take a Conv1D for an nn.Linear.
                wrapper.fan_in_fan_out = layer.transposed
        for name, embedding in embeddings.items():
            weight = weights.get(id(embedding.layer))
            if weight is None:
                values = embedding.dequantize(dtype or embedding.weight.dtype)
                weight = nn.Parameter(values, requires_grad=False)
            replace_module(model, name, embedding.float_module(weight))
        if hasattr(model, "woq_report"):
            del model.woq_report
        stop_answering_for(model)
        restore_conversions(model)
        return model

    def get_state_dict_and_metadata(
        self, model: Any, *args: Any, **kwargs: Any
    ) -> tuple[None, dict[str, str]]:
        """transformers calls it before it saves config.json, and writes the metadata to each file;
        None: the state dict is the model's own."""
        spare_quantized_layers(model)
        return None, describe_save(model)

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
    for parameter in module.parameters():
        transformers_private.keep_values(parameter)
    return module.train(layer.training)


class _Hook:
    """What `woq.quantize` calls."""

    def untied(self, model: nn.Module, names: Iterable[str]) -> None:
        declare_untied(model, names)

    def quantized(self, model: nn.Module, config: WeightOnlyQuantConfig) -> None:
        attach_quantizer(model, config, WoqHfQuantizer)


# Importing this module is registering: `autoload` may find it half imported, if it was the first
# to import transformers' quantizers, and cannot call anything in it then.
register()
add_hook(_Hook())
