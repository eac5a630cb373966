# SPDX-License-Identifier: Apache-2.0
"""Runs a GGUF file packed: its matrices go into the layout of woq's kernels as they are.

transformers builds the model and fills it with the file's few float tensors; it looks at no GGUF.
Matrices are read one at a time, from the mapped file, so that no more than one is in memory twice.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig
from transformers.quantizers import auto
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..core import native, transformers_private
from ..formats.gguf_models import GgufPlan, Place, plan_of
from ..modules.embedding import WeightOnlyEmbedding, scale_of
from ..modules.layer import WeightOnlyLinear
from ..modules.targets import output_embeddings
from ..quantizing.quantize import replace_module
from .location import FILE_ARGUMENTS, find_gguf
from .packed_quantizer import PackedQuantizer

__all__ = ["load_packed_gguf"]

logger = logging.getLogger("woq")

_METHOD = "woq_gguf"

# How numpy reads the types of tensors that are floats.
_FLOATS = {"F32": "<f4", "F16": "<f2", "BF16": "<i2"}


def load_packed_gguf(
    auto_class: Any,
    path: Any,
    arguments: tuple[Any, ...],
    keywords: Mapping[str, Any],
    compute_dtype: str = "fp32",
) -> Any:
    """The model of `path` and `keywords["gguf_file"]`, packed; None, and a line in the log that
    says why, for a file that woq's own reader does not run.

    Raises:
        InvalidArgument: the file is damaged, or does not fit the model that it describes.
    """
    file = find_gguf(path, keywords)
    # A file has no code that could be trusted; what locates it has done so.
    idle = ("gguf_file", *FILE_ARGUMENTS)
    keywords = {key: value for key, value in keywords.items() if key not in idle}
    model = native.GgufModel(file)
    config = keywords.pop("config", None)
    try:
        source = _Source(file, model, plan_of(model))
        source.check_types()
        if config is None:
            config = AutoConfig.for_model(source.plan.model_type, **source.plan.config)
        kind = transformers_private.model_class(auto_class, config)
        if kind is None:
            raise native.Unsupported(f"{auto_class.__name__} has no class for {type(config)}")
    except native.Unsupported as error:
        logger.warning("%s is dequantized by transformers and not run packed: %s", file, error)
        return None
    loaded = kind.from_pretrained(
        None,
        *arguments,
        config=config,
        state_dict=source.floats(),
        quantization_config=_GgufConfig(source, compute_dtype),
        **keywords,
    )
    whole = loaded[0] if isinstance(loaded, tuple) else loaded
    whole.name_or_path = whole.config.name_or_path = str(path)
    return loaded


class _Source:
    """An opened file, and what to make of it."""

    def __init__(self, path: str, model: native.GgufModel, plan: GgufPlan) -> None:
        self.path, self.plan = path, plan
        self._tensors = model.tensors

    def __deepcopy__(self, memo: dict[int, Any]) -> _Source:
        return self  # transformers copies configs; the file is read, and never changed

    def check_types(self) -> None:
        """Raise Unsupported, naming the type, for one that is neither float nor runs packed; or
        where all are floats."""
        if not self.packed():
            raise native.Unsupported("none of its tensors is quantized")
        for name, (kind, shape, _) in self._tensors.items():
            if kind in _FLOATS or name not in self.plan.places:
                continue
            if len(shape) != 2 or self.plan.places[name].plus_one or not _is_matrix(kind):
                raise native.Unsupported(f"{name} is a tensor of type {kind}, {list(shape)}")

    def packed(self) -> dict[str, str]:
        """{module: the file's name of its weight} of the modules that are packed."""
        return {
            place.name.rpartition(".")[0]: name
            for name, place in self.plan.places.items()
            if self._tensors[name][0] not in _FLOATS
        }

    def nbytes(self, name: str) -> int:
        return int(self._tensors[name][2].nbytes)

    def matrix(self, name: str) -> native.QuantizedMatrix:
        kind, (rows, cols), data = self._tensors[name]
        order = self.plan.places[name].row_order(rows)
        return native.read_gguf_matrix(kind, data, rows, cols, order, torch.get_num_threads())

    def floats(self) -> dict[str, torch.Tensor]:
        """The float tensors by the names of the model's parameters."""
        return {
            place.name: self._float(name, place)
            for name, place in self.plan.places.items()
            if self._tensors[name][0] in _FLOATS
        }

    def _float(self, name: str, place: Place) -> torch.Tensor:
        kind, shape, data = self._tensors[name]
        # A copy: numpy's view of the file cannot be written to, and a parameter can.
        values = torch.from_numpy(np.frombuffer(data, _FLOATS[kind]).reshape(shape).copy())
        if kind == "BF16":
            values = values.view(torch.bfloat16)
        order = place.row_order(shape[0])
        if order is not None:
            values = values[order]
        return values - 1 if place.plus_one else values


def _is_matrix(kind: str) -> bool:
    return not kind.startswith("unknown") and native.is_gguf_matrix(kind)


class _GgufConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """Tells the quantizer below what to read."""

    def __init__(self, source: _Source, compute_dtype: str) -> None:
        self.quant_method = _METHOD
        self.source, self.compute_dtype = source, compute_dtype

    def to_dict(self) -> dict[str, Any]:
        return {"quant_method": _METHOD, "file": self.source.path}


class _Awaited(nn.Module):
    """Where a packed layer will be: the loader brings it no tensor but the bias, if it has one."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        bias = getattr(module, "bias", None)
        self.register_buffer("bias", None if bias is None else torch.empty_like(bias))


class _GgufQuantizer(PackedQuantizer):
    """Keeps places for the file's matrices, and fills them afterwards."""

    def __init__(self, quantization_config: Any, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._source: _Source = quantization_config.source
        self.compute_dtype: str = quantization_config.compute_dtype
        # {module: (the float one on the meta device, the file's name of its weight)}
        self._awaited: dict[str, tuple[nn.Module, str]] = {}
        self._read: dict[str, WeightOnlyLinear] = {}  # by the file's names

    def _make_places(self, model: Any, files: Iterable[str]) -> list[str]:
        modules = dict(model.named_modules())
        packed = self._source.packed()
        if self._source.plan.config["tie_word_embeddings"]:
            embedding = "model.embed_tokens"
            packed |= {name: packed[embedding] for name in output_embeddings(model)
                       if embedding in packed}  # fmt: skip
        for stored, name in packed.items():
            # A model without a head has its modules under shorter names, and no place for one.
            short = stored.removeprefix(f"{model.base_model_prefix}.")
            at = next((each for each in (stored, short) if each in modules), None)
            if at is not None:
                self._awaited[at] = (modules[at], name)
                replace_module(model, at, _Awaited(modules[at]))
        return list(self._awaited)

    def _check_keys(self, missing: set[str], unexpected: set[str]) -> None:
        """What is missing would be random. What is unexpected can only be the head, in a model
        without one: the plan knows the place of every tensor."""
        wrong = sorted(missing)
        if wrong:
            raise native.InvalidArgument(
                f"{self._source.path} lacks tensors of the model: {', '.join(wrong[:5])}"
            )

    def _places(self, model: Any) -> list[str]:
        """The largest first, while little else is in memory: a matrix is there twice until it is
        packed. Of a weight that a head and an embedding share, the head."""

        def order(at: str) -> tuple[int, bool]:
            module, name = self._awaited[at]
            return -self._source.nbytes(name), isinstance(module, nn.Embedding)

        return sorted(self._awaited, key=order)

    def _pack(self, name: str, place: nn.Module) -> nn.Module:
        module, stored = self._awaited[name]
        # A tied weight is read once.
        layer = self._read.get(stored) or self._layer(name, module, stored, place.bias)  # type: ignore[arg-type]
        packed: nn.Module = layer
        if isinstance(module, nn.Embedding):
            layer.tied = stored in self._read
            packed = WeightOnlyEmbedding(layer, module, scale_of(module))
        else:
            self._read[stored] = layer
        transformers_private.keep_values(packed)
        return packed

    def _describe(self, name: str) -> str:
        return f"{name}, {self._awaited[name][1]} of {self._source.path}"

    def _finish(self, model: Any) -> None:
        self._awaited, self._read = {}, {}

    def _layer(
        self, at: str, module: Any, name: str, bias: torch.Tensor | None
    ) -> WeightOnlyLinear:
        matrix = self._source.matrix(name)
        if (matrix.rows, matrix.cols) != tuple(module.weight.shape):
            raise native.InvalidArgument(
                f"it is {matrix.rows} x {matrix.cols}, and the model has "
                f"{list(module.weight.shape)}"
            )
        return WeightOnlyLinear.from_quantized(
            matrix,
            bias,
            compute_dtype=self.compute_dtype,
            name=at,
            dtype=module.weight.dtype,
        )


# Importing this module is registering, as for `quantizer`.
if _METHOD not in auto.AUTO_QUANTIZATION_CONFIG_MAPPING:
    auto.register_quantization_config(_METHOD)(_GgufConfig)
    auto.register_quantizer(_METHOD)(_GgufQuantizer)
