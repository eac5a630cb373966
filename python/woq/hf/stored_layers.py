# SPDX-License-Identifier: Apache-2.0
"""Layers of a saved checkpoint while it is loaded: holders of stored tensors, packed when all have
arrived."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from ..algorithms.shared.finished import stored_extras
from ..config.quant_config import WeightOnlyQuantConfig
from ..core import native, transformers_private
from ..formats.pages import HeapTrimmer, release_file_pages
from ..formats.stored_tensors import MARKER, check_marker, from_torch, stored_specs
from ..modules.layer import WeightOnlyLinear
from ..modules.targets import Target
from ..quantizing.quantize import log_kernels, replace_module

__all__ = ["StoredLayer", "pack_stored_layers"]

logger = logging.getLogger("woq")


class StoredLayer(nn.Module):
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
        layer = stored.pop(name).pack(config.compute_dtype)
        replace_module(model, name, layer)
        heap.count(layer.nbytes)
    heap.trim()
    if logger.isEnabledFor(logging.INFO):
        log_kernels(model)
