# SPDX-License-Identifier: Apache-2.0
"""`woq.export(format="gguf")`: a quantized model as a GGUF file, for llama.cpp.

Matrices become tensors of the type that has their numbers (woq/io/gguf_matrix_writer.h), floats
stay what they are, and vectors become float32, as llama.cpp wants them. Before anything is written,
woq's own reader is asked what it would make of the file: it has to be the same model.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core import native
from ..core.native import InvalidArgument, QuantizedMatrix, Unsupported
from ..formats.export import gguf_metadata
from ..formats.export.gguf_tokenizer import tokenizer_metadata
from ..formats.export.names import GGUF
from ..formats.gguf_models import ROPE_DIVISORS, Place, written_names
from ..formats.gguf_writer import GgufTensor, encoded, write_gguf
from ..modules.layer import WeightOnlyLinear
from .conversions import spare_quantized_layers
from .errors import joined
from .export_model import exportable, float_layers, stored_names
from .export_report import ExportReport, LayerReport, largest_change
from .saving import stored_state

__all__ = ["GgufExport"]

_FLOATS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}

# Of a template, what is true of its own weights only.
_NOT_TAKEN = ("general.alignment", "general.file_type", "general.quantization_version", "split.",
              "quantize.")  # fmt: skip


class GgufExport:
    """The file that a model becomes: its tensors, and what is in the way."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        template: str | os.PathLike[str] | None,
        *,
        round_scales: bool,
    ) -> None:
        exportable(model)
        spare_quantized_layers(model)
        self._round_scales = round_scales
        self._errors: list[Exception] = []
        self._tensors: list[GgufTensor] = []
        config = model.config
        architecture = gguf_metadata.architecture_of(config)
        stored = stored_state(model)
        layers = {name: layer for layer, name in stored_names(stored).items()}
        floats = {name: tensor for name, (tensor, source) in stored.items() if source is None}
        parameters = [*(f"{name}.weight" for name in layers), *floats]
        heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}
        names = written_names(architecture, heads, parameters)
        rows = [self._plan_layer(name, layers[name], *names[f"{name}.weight"]) for name in layers]
        for name, tensor in floats.items():
            self._plan_float(name, tensor, *names[name])
        divisors = gguf_metadata.rope_divisors(config)
        if divisors is not None:
            self._tensors.append(GgufTensor(ROPE_DIVISORS, "F32", divisors.shape, lambda: divisors))
        refused = self._plan_metadata(model, tokenizer, template)
        self.report = ExportReport(
            GGUF,
            None,
            rows,
            float_layers(model),
            sum(tensor.nbytes for tensor in self._tensors),
            [] if self._errors else ["llama.cpp and what is built on it"],
            [],
            refused,
        )

    def check(self) -> None:
        if self._errors:
            raise joined(self._errors, "cannot be written as gguf")

    def write(self, path: Path) -> None:
        # In an order of their names, so that the same model is the same file wherever it is from.
        tensors = sorted(self._tensors, key=lambda tensor: _by_blocks(tensor.name))
        write_gguf(path, dict(sorted(self._metadata.items())), tensors)

    def _plan_layer(
        self, name: str, layer: WeightOnlyLinear, stored: str, place: Place
    ) -> LayerReport:
        shape = (layer.out_features, layer.in_features)
        tensors: dict[str, str] = {}
        rounding, refused = 0.0, None
        try:
            matrix = layer.quantized()
            kind = native.gguf_type_for(matrix)
            native.write_gguf_matrix(matrix, kind, self._round_scales, torch.get_num_threads())
            if self._round_scales:
                rounding = _rounding(matrix)
            make = self._maker(layer, kind, place)
            self._tensors.append(GgufTensor(stored, kind, shape, make))
            tensors[stored] = f"{kind} [{shape[0]}, {shape[1]}]"
        except (InvalidArgument, Unsupported) as error:
            refused = str(error)
            self._errors.append(type(error)(f"{name}: {error}"))
        scheme = layer.scheme
        return LayerReport(
            name, shape, scheme.dtype, scheme.group_size, scheme.asym, tensors, rounding, refused
        )

    def _maker(self, layer: WeightOnlyLinear, kind: str, place: Place) -> Callable[[], Any]:
        def make() -> Any:
            data = native.write_gguf_matrix(
                layer.quantized(), kind, self._round_scales, torch.get_num_threads()
            )
            return _in_files_order(data, place)

        return make

    def _plan_float(self, name: str, tensor: torch.Tensor, stored: str, place: Place) -> None:
        kind = "F32" if tensor.ndim == 1 else _FLOATS.get(tensor.dtype)
        if kind is None:
            self._errors.append(Unsupported(f"{name} is {tensor.dtype}, which GGUF has not"))
            return

        def make() -> Any:
            if tensor.ndim > 1:
                return _in_files_order(
                    tensor.detach().contiguous().view(torch.uint8).numpy(), place
                )
            values = tensor.detach().float()
            return _in_files_order((values + 1 if place.plus_one else values).numpy(), place)

        self._tensors.append(GgufTensor(stored, kind, tuple(tensor.shape), make))

    def _plan_metadata(
        self, model: Any, tokenizer: Any, template: str | os.PathLike[str] | None
    ) -> list[str]:
        """Makes them; returns what is in the way."""
        tensors = {tensor.name: (tensor.type, tensor.shape) for tensor in self._tensors}
        try:
            if template is None:
                values = _own_metadata(model, tokenizer)
                self._metadata = {key: encoded(value) for key, value in values.items()}
            else:
                source = native.GgufModel(str(template))
                values = _of_the_model(source.metadata)
                self._metadata = _of_the_model(source.stored_metadata)
                _check_vocabulary(values, model.config.vocab_size, template)
            wrong = gguf_metadata.differences(model.config, values, tensors)
        except (InvalidArgument, Unsupported) as error:
            self._errors.append(error)
            return [str(error)]
        if wrong and template is not None:
            wrong = [f"{template} is of another model: {'; '.join(wrong)}"]
        self._errors += [Unsupported(text) for text in wrong]
        counted = collections.Counter[str]()
        for tensor in self._tensors:
            counted[tensor.type] += tensor.nbytes
        number = gguf_metadata.file_type(max(counted, key=lambda kind: counted[kind], default=""))
        if number is not None:
            self._metadata["general.file_type"] = encoded(number)
        self._metadata["general.quantization_version"] = encoded(2)
        return wrong


def _own_metadata(model: Any, tokenizer: Any) -> dict[str, Any]:
    """Metadata from the model and its tokenizer."""
    config = model.config
    if tokenizer is None:
        raise InvalidArgument(
            "a GGUF file has its tokenizer inside: give it (tokenizer), or a GGUF file of the same "
            "model (template)"
        )
    values: dict[str, Any] = {
        "general.architecture": gguf_metadata.architecture_of(config),
        "general.type": "model",
    }
    name = Path(str(getattr(config, "name_or_path", "") or "")).name
    if name:
        values["general.name"] = name
    values |= gguf_metadata.metadata_of(config)
    values |= tokenizer_metadata(tokenizer, config.vocab_size)
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    others = [end for end in ends if end != values.get("tokenizer.ggml.eos_token_id")] \
        if isinstance(ends, list) else []  # fmt: skip
    if others:
        # The end of the model's turn; llama.cpp has one, and finds further ones by their texts.
        values["tokenizer.ggml.eot_token_id"] = others[0]
    return values


def _of_the_model(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metadata.items() if not key.startswith(_NOT_TAKEN)}


def _check_vocabulary(
    metadata: Mapping[str, Any], rows: int, template: str | os.PathLike[str]
) -> None:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if tokens is None:
        raise Unsupported(f"{template} has no tokenizer: take another GGUF file of the model")
    if len(tokens) != rows:
        raise Unsupported(
            f"{template} has {len(tokens)} tokens, and the model's embedding {rows} rows: it is of "
            "another model"
        )


def _in_files_order(data: np.ndarray, place: Place) -> np.ndarray:
    """The rows as the file has them."""
    order = place.row_order(len(data))
    if order is None:
        return data
    moved = np.empty_like(data)
    moved[order] = data
    return moved


def _rounding(matrix: QuantizedMatrix) -> float:
    """The largest relative change of a scale or a minimum in float16."""
    if matrix.scheme.scales in ("two_level", "e8m0", "e4m3"):
        return 0.0  # they stay so
    scales, points = matrix.scales(), matrix.zero_points()
    minima = matrix.minima() if points is None else -(points * _half(scales))
    changes = [largest_change(each, _half(each)) for each in (scales, minima) if each is not None]
    return max(changes)


def _by_blocks(name: str) -> tuple[int, str]:
    """What lies outside of blocks first, then block by block."""
    first, _, rest = name.partition(".")
    number = rest.partition(".")[0]
    return (int(number) if first == "blk" else -1), name


def _half(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float16).astype(np.float32)
