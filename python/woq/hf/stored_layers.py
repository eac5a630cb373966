# SPDX-License-Identifier: Apache-2.0
"""Layers of a saved checkpoint while it is loaded: holders of stored tensors, packed when all have
arrived."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..algorithms.shared.finished import stored_extras
from ..config.quant_config import FORMAT_VERSION, WeightOnlyQuantConfig
from ..core import native, transformers_private
from ..formats.checkpoint import (
    Header,
    Stored,
    check_inside,
    check_save,
    problems_of_layer,
    read_header,
    read_marker,
)
from ..formats.pages import HeapTrimmer
from ..formats.stored_tensors import MARKER, StoredForm, marker_bytes
from ..modules.embedding_target import EmbeddingTarget
from ..modules.layer import WeightOnlyLinear
from ..modules.targets import Target
from ..quantizing.quantize import log_kernels, replace_module
from .holder import Holder

__all__ = [
    "StoredLayer",
    "check_checkpoint",
    "hold_embedding",
    "pack_stored_layers",
]

logger = logging.getLogger("woq")


class StoredLayer(Holder):
    """The holder of a layer that woq saved."""

    def __init__(self, target: Target, config: WeightOnlyQuantConfig, dtype: torch.dtype) -> None:
        super().__init__(target.name, target.transposed, dtype)
        self.target = target
        self.form = StoredForm(target.scheme, *target.shape, **stored_extras(config))
        self.specs = self.form.specs()
        self.expect(MARKER, (marker_bytes(config.format_version),), torch.uint8)
        for name, (shape, kind) in self.specs.items():
            self.expect(name, shape, kind)
        bias = getattr(target.module, "bias", None)
        self.register_buffer("bias", None if bias is None else torch.empty_like(bias))

    def absent(self) -> list[str]:
        """Tensors that the checkpoint did not have."""
        return [
            f"{self.layer_name}.{name}"
            for name, buffer in self._buffers.items()
            if buffer is not None and not transformers_private.is_loaded(buffer)
        ]

    def pack(self, compute_dtype: str) -> WeightOnlyLinear:
        # The loader may have cast tensors of modules that it keeps in float32 (5.0 even those of
        # bytes): that is exact, and undone here.
        marker = self._buffers[MARKER].to(torch.uint8)  # type: ignore[union-attr]
        self.form.check_marker(marker, self.layer_name)
        tensors = {
            name: self._buffers[name].to(kind)  # type: ignore[union-attr]
            for name, (_, kind) in self.specs.items()
        }
        read = [self._buffers[name] for name in self.specs]
        return self.packed(self.form.matrix(tensors), self._buffers["bias"], compute_dtype, read)  # type: ignore[arg-type]


class _HeadOfEmbedding(nn.Module):
    """Where the head will be that shares an embedding's weight: nothing is stored for it."""


def hold_embedding(
    model: Any, target: EmbeddingTarget, config: WeightOnlyQuantConfig, dtype: torch.dtype
) -> None:
    """Have `model` receive the stored tensors of its embedding, which may be those of its head."""
    replace_module(model, target.name, StoredLayer(target, config, dtype))
    if target.head is not None:
        replace_module(model, target.head, _HeadOfEmbedding())


def check_checkpoint(model: Any, config: WeightOnlyQuantConfig, files: Sequence[str]) -> None:
    """Compare what `files` say of their tensors with what `config` and `model` (on the meta device,
    with its `StoredLayer`s) expect: before anything is read, and before the loader converts types.

    Files of other formats say nothing; the layers' markers are compared when they are packed.

    Raises:
        InvalidArgument: files of different saves, or tensors that are not what they should be.
    """
    folder = str(getattr(model.config, "name_or_path", ""))
    if os.path.isdir(folder):
        check_inside(folder, files)
    # Weights that some models read beside their own.
    others = getattr(type(model.config), "extra_files", ())
    files = [file for file in files if os.path.basename(file) not in others]
    headers = [read_header(file) for file in files if file.endswith(".safetensors")]
    if headers or config.digest is None:
        check_save(headers, config.format_version, config.digest)
    else:
        raise native.InvalidArgument(
            f"{', '.join(files)}: woq saves safetensors files, and config.json is of such a save"
        )
    problems = list(_problems(model, headers))
    if problems:
        shown = "; ".join(problems[:3]) + ("; ..." if len(problems) > 3 else "")
        raise native.InvalidArgument(
            f"{len(problems)} tensors of the checkpoint are not what its config.json says: {shown}"
        )


def _problems(model: Any, headers: Iterable[Header]) -> Iterator[str]:
    modules = dict(model.named_modules())
    wanted = model.state_dict()
    base = str(getattr(model, "base_model_prefix", ""))
    below: dict[str, dict[str, Stored]] = {}
    markers: dict[str, bytes] = {}
    for header in headers:
        for key, stored in header.tensors.items():
            layer, _, name = key.rpartition(".")
            below.setdefault(layer, {})[name] = stored
            marker = read_marker(header, layer) if name == MARKER else None
            if marker is not None:
                markers[layer] = marker
    for layer, tensors in below.items():
        # Models without a head are loaded from checkpoints of those with one, and the reverse.
        names = [layer, layer.removeprefix(f"{base}."), f"{base}.{layer}"]
        known = next((name for name in names if name in modules), None)
        if layer in markers:
            module = None if known is None else modules[known]
            yield from _problems_of_layer(layer, markers[layer], tensors, module)
        elif known is not None:
            yield from _problems_of_kind(known, tensors, wanted)


def _problems_of_layer(
    layer: str, marker: bytes, tensors: Mapping[str, Stored], module: nn.Module | None
) -> Iterator[str]:
    if module is None:
        if len(marker) not in (marker_bytes(1), marker_bytes(FORMAT_VERSION)):
            return  # markers of several layers, which transformers has joined: it will split them
        stored = StoredForm.from_marker(marker, layer)
    elif isinstance(module, StoredLayer):
        expected = module._buffers[MARKER].numel()  # type: ignore[union-attr]
        if len(marker) != expected:
            yield f"{layer}.{MARKER} has {len(marker)} bytes, expected {expected}"
            return
        module.form.check_marked(StoredForm.from_marker(marker, layer), layer)
        stored = module.form
    else:
        yield f"{layer} is quantized, and should be floating point"
        return
    if stored is not None:
        yield from problems_of_layer(layer, stored, tensors)


def _problems_of_kind(
    layer: str, tensors: Mapping[str, Stored], wanted: Mapping[str, torch.Tensor]
) -> Iterator[str]:
    """Integers where the model has floats, or the reverse: the loader would convert them."""
    for name, stored in tensors.items():
        key = f"{layer}.{name}" if layer else name
        if key in wanted and wanted[key].is_floating_point() != ("F" in stored.dtype):
            yield f"{key} is {stored}, expected {wanted[key].dtype} {list(wanted[key].shape)}"


def _put_embedding(model: Any, target: EmbeddingTarget, layer: WeightOnlyLinear) -> None:
    if target.head is not None:
        layer.name, layer.tied = target.head, True
        replace_module(model, target.head, layer)
    replace_module(model, target.name, target.module_of(layer))


def pack_stored_layers(model: Any, config: WeightOnlyQuantConfig) -> None:
    """Replace each `StoredLayer` of `model` by the layer that its tensors are."""
    stored = {n: m for n, m in model.named_modules() if isinstance(m, StoredLayer)}
    absent = [key for layer in stored.values() for key in layer.absent()]
    if absent:
        raise native.InvalidArgument(
            f"the checkpoint lacks {len(absent)} of woq's tensors ({', '.join(absent[:3])}, ...): "
            "it is incomplete, or was not saved by woq with this configuration"
        )
    heap = HeapTrimmer()
    for name in list(stored):
        holder = stored.pop(name)
        layer = holder.pack(config.compute_dtype)
        if isinstance(holder.target, EmbeddingTarget):
            _put_embedding(model, holder.target, layer)
        else:
            replace_module(model, name, layer)
        heap.count(layer.nbytes)
    heap.trim()
    if logger.isEnabledFor(logging.INFO):
        log_kernels(model)
