# SPDX-License-Identifier: Apache-2.0
"""Layers of a checkpoint that another library quantized while it is loaded: which of them the files
have, holders of their tensors, and what the loader is to call these."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from ..core import native
from ..formats.checkpoint import read_header
from ..formats.foreign.form import ForeignFormat
from ..formats.pages import release_file_pages
from ..formats.safetensors import DTYPES
from ..modules.experts import PRODUCTS, FusedExperts, SplitExperts
from ..modules.layer import WeightOnlyLinear
from ..modules.targets import is_transposed
from .holder import Holder

__all__ = ["ForeignExperts", "ForeignLayer", "packed_layers", "renamings"]


class _Kind(NamedTuple):
    """What the files say of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def packed_layers(files: Sequence[str], form: ForeignFormat) -> dict[str, dict[str, _Kind]]:
    """{layer: {tensor: what it is}} of the layers that the files have packed."""
    layers: dict[str, dict[str, _Kind]] = {}
    for file in files:
        if not str(file).endswith(".safetensors"):
            raise native.Unsupported(
                f"{file}: quantized checkpoints are read from safetensors files; save the model "
                "again with safe_serialization=True"
            )
        for key, stored in read_header(str(file)).tensors.items():
            name, tensor = form.split(key)
            dtype = DTYPES.get(stored.dtype)
            if dtype is not None:
                layers.setdefault(name, {})[tensor] = _Kind(stored.shape, dtype)
    return {name: tensors for name, tensors in layers.items() if form.mark in tensors}


def renamings(form: ForeignFormat) -> list[Any]:
    """For the loader: a name with a dot would be one of a module below the layer, and cannot be
    that of one of its buffers."""
    from transformers.core_model_loading import WeightRenaming

    return [
        WeightRenaming(rf"{re.escape(f'.{name}')}$", f".{_buffer_name(name)}")
        for name in form.dotted
    ]


def _buffer_name(tensor: str) -> str:
    return tensor.replace(".", "_")


class ForeignLayer(Holder):
    """The holder of a layer that another library quantized."""

    def __init__(
        self, name: str, module: nn.Module, found: Mapping[str, _Kind], form: ForeignFormat
    ) -> None:
        super().__init__(name, bool(is_transposed(module)), module.weight.dtype)  # type: ignore[arg-type]
        self.form = form
        rows, cols = module.weight.shape  # type: ignore[misc]
        self.rows, self.cols = (cols, rows) if self.transposed else (rows, cols)
        self.found = dict(found)
        for tensor, (shape, dtype) in found.items():
            self.expect(_buffer_name(tensor), shape, dtype)
        self.expects_bias = module.bias is not None
        if self.expects_bias and "bias" not in found:
            self.register_buffer("bias", torch.empty_like(module.bias))  # type: ignore[arg-type]

    def pack(self, compute_dtype: str) -> tuple[WeightOnlyLinear, str]:
        """The layer, and a sentence on how its tensors were read."""
        _check_known(self.found.keys() - {"bias"}, self.form)
        tensors = {
            name: self._as_stored(name, dtype)
            for name, (_, dtype) in self.found.items()
            if name != "bias"
        }
        matrix, rule = self.form.read(tensors, self.rows, self.cols)
        bias = self._buffers.get("bias")
        if bias is not None and not self.expects_bias and not bool(bias.any()):
            bias = None  # AutoGPTQ writes zeros where a layer has none
        bias = None if bias is None else bias.to(self.dtype)
        return self.packed(matrix, bias, compute_dtype, tensors.values()), rule

    def _as_stored(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """A tensor as the file has it. The loader casts those of modules that it keeps in float32:
        that is undone where it has lost nothing."""
        tensor: torch.Tensor = self._buffers[_buffer_name(name)]  # type: ignore[assignment]
        exact = dtype.itemsize == 1 or (dtype.is_floating_point and name != "weight")
        if tensor.dtype != dtype and not exact:
            raise native.Unsupported(
                f"transformers has converted {name!r} from {dtype} to {tensor.dtype}, since the "
                "model keeps the layer in float32: use a newer version of transformers"
            )
        return tensor.to(dtype).contiguous()


class ForeignExperts(nn.Module):
    """The holder of a module of fused experts that another library quantized."""

    def __init__(
        self, name: str, fused: FusedExperts, found: Mapping[str, _Kind], form: ForeignFormat
    ) -> None:
        super().__init__()
        self.layer_name, self.fused, self.form, self.found = name, fused, form, dict(found)
        for tensor, (shape, dtype) in found.items():
            self.register_buffer(tensor, torch.empty(shape, dtype=dtype, device="meta"))

    def pack(self, compute_dtype: str) -> tuple[SplitExperts, str]:
        """The experts, and a sentence on how their tensors were read."""
        _check_known(self.found.keys(), self.form)
        count, rule = self.fused.count, ""
        layers: dict[str, list[nn.Module]] = {}
        for product in PRODUCTS:
            rows, cols = self.fused.shapes[product]
            parts = self._parts(product)
            bias = parts.pop("bias", None)
            layers[product] = []
            for expert in range(count):
                holder = Holder(f"{self.layer_name}.{product}.{expert}", False, self.fused.dtype)
                matrix, rule = self.form.read({k: t[expert] for k, t in parts.items()}, rows, cols)
                own = None if bias is None else bias[expert].to(self.fused.dtype)
                layers[product].append(holder.packed(matrix, own, compute_dtype, ()))
            for tensor in parts.values():
                release_file_pages(tensor)
        return SplitExperts(layers, self.fused.gate), rule

    def _parts(self, product: str) -> dict[str, torch.Tensor]:
        """The tensors of a product, each with the experts in its first dimension."""
        start = f"{product}_"
        wanted = {key.removeprefix(start) for key in self.form.tensors if key.startswith(start)}
        if not self.fused.has_bias:
            wanted -= {"bias"}
        parts = {}
        for part in sorted(wanted):
            name = f"{product}_{part}"
            if name not in self.found:
                raise native.InvalidArgument(f"tensor {name!r} is missing")
            tensor: torch.Tensor = self._buffers[name]  # type: ignore[assignment]
            if tensor.dim() < 2 or tensor.shape[0] != self.fused.count:
                raise native.InvalidArgument(
                    f"tensor {name!r} has shape {list(tensor.shape)}, and the model "
                    f"{self.fused.count} experts"
                )
            # The loader may have cast bytes of modules that it keeps in float32.
            parts[part] = tensor.to(self.found[name].dtype).contiguous()
        return parts


def _check_known(found: Iterable[str], form: ForeignFormat) -> None:
    unknown = set(found) - form.tensors
    if unknown:
        raise native.InvalidArgument(
            f"it has tensors that the format does not know: {', '.join(sorted(unknown))}"
        )
