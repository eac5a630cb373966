# SPDX-License-Identifier: Apache-2.0
"""What transformers calls while it loads a checkpoint whose layers are packed already, whoever
packed them."""

from __future__ import annotations

import abc
import collections
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from transformers.quantizers.base import HfQuantizer

from ..config.quant_config import WeightOnlyQuantConfig
from ..core import native, transformers_private
from ..formats.pages import HeapTrimmer
from ..modules.layer import WeightOnlyLinear
from ..modules.targets import output_embeddings
from ..quantizing.quantize import log_kernels, replace_module
from .attach import attach_quantizer, check_device_map, declare_untied
from .errors import joined
from .quantizer import WoqHfQuantizer

__all__ = ["PackedQuantizer"]

logger = logging.getLogger("woq")


class PackedQuantizer(HfQuantizer):  # type: ignore[misc]
    """Has places in the model for packed layers while the loader brings what it has floats for;
    then fills them, and the model is one of woq's.

    A subclass says where the places are, what fills one, and which tensors may be missing.
    """

    requires_calibration = False
    # Whether what asks for another device runs on the CPU, and is no error.
    on_cpu = False
    compute_dtype: str

    @abc.abstractmethod
    def _make_places(self, model: Any, files: Iterable[str]) -> list[str]:
        """Put placeholders into the model, which is on the meta device; returns the names of
        modules whose weights are tied to no other any longer."""

    @abc.abstractmethod
    def _places(self, model: Any) -> list[str]:
        """The names of the placeholders, in the order in which they are to be filled."""

    @abc.abstractmethod
    def _pack(self, name: str, place: nn.Module) -> nn.Module:
        """The module in the place of a loaded placeholder.

        Raises:
            InvalidArgument, Unsupported: without the layer's name.
        """

    @abc.abstractmethod
    def _describe(self, name: str) -> str:
        """A layer and where it comes from, for an error."""

    @abc.abstractmethod
    def _check_keys(self, missing: set[str], unexpected: set[str]) -> None:
        """Raise InvalidArgument for tensors that the model lacks, or that have no place in it."""

    def _finish(self, model: Any) -> None:
        """After all places are filled."""

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        check_device_map(device_map, on_cpu=self.on_cpu)

    def update_device_map(self, device_map: Any) -> Any:
        return device_map if isinstance(device_map, dict) and not self.on_cpu else {"": "cpu"}

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        untied = self._make_places(model, kwargs.get("checkpoint_files") or ())
        declare_untied(model, untied)
        if not transformers_private.on_keys_compared(model, self._check_keys):
            raise native.Unsupported(
                "this version of transformers does not tell which tensors of a checkpoint have no "
                "place in the model, and which the checkpoint lacks; woq knows 5.0 to 5.24"
            )
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        errors: list[native.InvalidArgument | native.Unsupported] = []
        heap = HeapTrimmer()
        for name in self._places(model):
            try:
                packed = self._pack(name, model.get_submodule(name))
            except (native.InvalidArgument, native.Unsupported) as error:
                errors.append(type(error)(f"{self._describe(name)}: {error}"))
                continue
            replace_module(model, name, packed)
            heap.count(sum(m.nbytes for m in packed.modules() if isinstance(m, WeightOnlyLinear)))
        if errors:
            raise joined(errors, "cannot be read")
        heap.trim()
        self._finish(model)
        layers = {n: m for n, m in model.named_modules() if isinstance(m, WeightOnlyLinear)}
        attach_quantizer(model, _config_of(model, layers, self.compute_dtype), WoqHfQuantizer)
        if logger.isEnabledFor(logging.INFO):
            log_kernels(model)
        return model

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True


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
        scheme=scheme.word,
        scale_dtype="fp32" if scheme.scales == "double" else scheme.scales,
        use_double_quant=scheme.scales == "double",
        compute_dtype=compute_dtype,
        quantize_lm_head=layers[heads[0]].scheme.dtype if heads else False,
        algorithm="GPTQ" if act_order else "HQQ" if scheme.zeros == "float" else "RTN",
        algorithm_args={"desc_act": True} if act_order else {},
    )
