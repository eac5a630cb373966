# SPDX-License-Identifier: Apache-2.0
"""Quantizes a model while transformers loads its float weights, one float tensor at a time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from ..config.quant_config import WeightOnlyQuantConfig
from ..core import native, transformers_private
from ..formats.pages import CheckpointPages, HeapTrimmer, release_file_pages
from ..modules.embedding_target import EmbeddingTarget, share_with_head
from ..modules.layer import WeightOnlyLinear
from ..modules.targets import Target
from ..quantizing.quantize import (
    attach_report,
    log_summary,
    make_embedding,
    make_layer,
    quantize_module,
    replace_module,
)
from ..quantizing.report import LayerReport, QuantizationReport
from .attach import declare_untied
from .errors import joined

__all__ = ["QuantizeOnLoad"]


class QuantizeOnLoad:
    """The layers to quantize of a model that is being loaded, and what became of them.

    Args:
        embedding: the input embedding, if that is quantized, too.
        started: `time.perf_counter()` when loading began.
        checkpoint_files: the files that the weights come from; pages of them that have been read
            are given back.
    """

    def __init__(
        self,
        config: WeightOnlyQuantConfig,
        targets: Sequence[Target],
        checkpoint_files: Sequence[str],
        started: float,
        embedding: EmbeddingTarget | None = None,
    ) -> None:
        self._config = config
        self._embedding = embedding
        # Tied weights of modules that are done: the loader need not tie them any more.
        self.untied: set[str] = set()
        # A tied weight is loaded once, under its other name: it is there only after loading.
        self._tied = [target for target in targets if target.tied]
        self._targets = {target.name: target for target in targets if not target.tied}
        self._waiting: dict[str, _Waiting] = {}  # quantized, the bias still to come
        self._errors: list[Exception] = []
        self._report = QuantizationReport()
        self._started = started
        self._pages: CheckpointPages | None = CheckpointPages(checkpoint_files)
        self._heap = HeapTrimmer()

    def expects(self, param_name: str) -> bool:
        """Whether the parameter is the weight of a layer that is not quantized yet."""
        name = _module_of(param_name)
        of_embedding = self._embedding is not None and name == self._embedding.name
        return of_embedding or name in self._targets

    def conversion(self) -> _Conversion:
        """What the loader is to do with such a weight."""
        return _Conversion(self)

    def take(self, model: Any, name: str, value: torch.Tensor, keys: Iterable[str]) -> None:
        """Quantize the float weight of module `name`, and put the new layer in its place.

        `keys` are the names of the tensors in the checkpoint that `value` was made from.

        Errors are kept for the end of loading: transformers would catch them here, print a table
        with their traces, and raise an error of its own that says nothing. So all layers that
        cannot be quantized are named at once.
        """
        target = self._expected(name)
        try:
            weight = value.detach()
            if tuple(weight.shape) != tuple(target.module.weight.shape):
                raise native.InvalidArgument(
                    f"{name}.weight has shape {list(weight.shape)} in the checkpoint, "
                    f"{list(target.module.weight.shape)} in the model"
                )
            if isinstance(target, EmbeddingTarget):
                self._take_embedding(model, target, weight)
                return
            if target.transposed:
                weight = weight.t().contiguous()
            bias = target.module.bias
            if bias is not None and bias.is_meta:
                matrix, entry = quantize_module(name, weight, self._config, target)
                self._waiting[name] = _Waiting(matrix, entry, weight.dtype, target.transposed)
            else:
                layer, entry = make_layer(name, weight, bias, self._config, target)
                self._install(model, layer, entry)
        except (ValueError, RuntimeError, TypeError) as error:
            self._errors.append(error)
        finally:
            self._release(value, keys)

    def _expected(self, name: str) -> Target:
        """What module `name` is to become; from now on it is no longer expected."""
        if self._embedding is not None and name == self._embedding.name:
            embedding, self._embedding = self._embedding, None
            return embedding
        return self._targets.pop(name)

    def _take_embedding(self, model: Any, target: EmbeddingTarget, weight: torch.Tensor) -> None:
        """Quantize the embedding, and with it the head that has the same weight."""
        if target.head is None:
            module, entry = make_embedding(weight, self._config, target)
            self._report.layers.append(entry)
        else:
            head = next(each for each in self._tied if each.name == target.head)
            layer, entry = make_layer(head.name, weight, None, self._config, head)
            self._install(model, layer, entry)
            self._tied.remove(head)
            module = share_with_head(model, target)
            declare_untied(model, [head.name, target.name])
            self.untied.add(f"{head.name}.weight")
        transformers_private.keep_values(module)
        replace_module(model, target.name, module)

    def _release(self, value: torch.Tensor, keys: Iterable[str]) -> None:
        if not release_file_pages(value) and self._pages is not None:
            for key in keys:
                self._pages.release(key)
        self._heap.count(value.numel() * value.element_size())

    def _install(self, model: Any, layer: WeightOnlyLinear, entry: LayerReport) -> None:
        transformers_private.keep_values(layer)
        replace_module(model, layer.name, layer)
        self._report.layers.append(entry)

    def finish(self, model: Any) -> None:
        """Quantize what is left when all weights are there, and attach the report."""
        config = self._config
        if self._errors:
            raise joined(self._errors, "cannot be quantized")
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
        if self._embedding is not None:
            weight = model.get_submodule(self._embedding.name).weight.detach()
            self._take_embedding(model, self._embedding, weight)
        for target in [*self._tied, *self._targets.values()]:
            module = model.get_submodule(target.name)
            weight = module.weight.detach()
            weight = weight.t().contiguous() if target.transposed else weight
            layer, entry = make_layer(target.name, weight, module.bias, config, target)
            self._install(model, layer, entry)
        declare_untied(model, [target.name for target in self._tied])
        self._tied, self._targets, self._pages, self._embedding = [], {}, None, None
        self._heap.trim()
        self._report.seconds = time.perf_counter() - self._started
        attach_report(model, self._report, config)
        log_summary(model, self._report)


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


class _Conversion:
    """The loader's conversion of one or more float weights: they leave the loader here."""

    def __init__(self, on_load: QuantizeOnLoad) -> None:
        self._on_load = on_load

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
            full = key if self._on_load.expects(key) else full_layer_name
            if len(input_dict) > 1 and full != key:
                rest[key] = value
                continue
            self._on_load.take(model, _module_of(full), tensor, source_patterns)
            if missing_keys is not None:
                missing_keys.discard(full)
                missing_keys.difference_update(self._on_load.untied)
        return rest


def _module_of(param_name: str) -> str:
    module, _, parameter = param_name.rpartition(".")
    return module if parameter == "weight" else param_name
