# SPDX-License-Identifier: Apache-2.0
"""`woq.export`: a quantized model as a checkpoint of another library, for the engines that read it.

Codes, zero points and scales go over as they are. What the format has no place for is refused
before anything is written: each layer's tensors are made twice, once to know that they can be, and
once to be written, one layer at a time.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..core import transformers_private
from ..core.native import InvalidArgument, QuantizedMatrix, Unsupported, has_act_order
from ..core.units import parse_bytes
from ..formats.export.form import ExportedLayer, ExportedModel, ExportFormat
from ..formats.export.names import EXPORT_FORMATS, export_format
from ..formats.files import replace_files_in, replace_folder
from ..formats.safetensors import Entry
from ..modules.embedding import quantized_embeddings
from ..modules.layer import WeightOnlyLinear
from ..modules.targets import is_linear, output_embeddings, quantized_layers
from .conversions import spare_quantized_layers
from .errors import joined
from .location import locate
from .saving import configuration_last, is_weights, stored_state, write_configs, write_weights

__all__ = ["ExportReport", "LayerReport", "check_target", "export", "export_into"]


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """What becomes of one layer.

    Args:
        rounding: the largest relative change of a scale; 0: none.
        refused: why it cannot be written; None where it can.
    """

    name: str
    shape: tuple[int, int]
    weight_dtype: str
    group_size: int
    asym: bool
    tensors: dict[str, str]
    rounding: float = 0.0
    refused: str | None = None


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """What `woq.export` has written, or with dry_run would write.

    Args:
        folder: None: nothing was written.
        layers: the quantized layers.
        floats: the linear layers that stay in floating point.
        loads_in: what loads the result.
        notes: what else there is to know.
        refused: what keeps the model as a whole from being written.
    """

    format: str
    folder: str | None
    layers: list[LayerReport]
    floats: list[str]
    nbytes: int
    loads_in: list[str]
    notes: list[str]
    refused: list[str] = dataclasses.field(default_factory=list)

    @property
    def possible(self) -> bool:
        return not self.refused and all(layer.refused is None for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "possible": self.possible}

    def __str__(self) -> str:
        wrong = [layer for layer in self.layers if layer.refused is not None]
        if not self.possible:
            lines = [f"- {layer.name}: {layer.refused}" for layer in wrong]
            lines += [f"- {text}" for text in self.refused]
            return "\n".join([f"{self.format} cannot hold this model:", *lines])
        done = "would be written" if self.folder is None else f"written to {self.folder}"
        lines = [
            f"{len(self.layers)} layers as {self.format}, {len(self.floats)} in floating point, "
            f"{self.nbytes / 2**20:.1f} MiB: {done}",
            f"loads in: {'; '.join(self.loads_in)}; woq",
        ]
        rounding = max(layer.rounding for layer in self.layers)
        if rounding > 0:
            lines.append(f"scales were rounded, by at most {rounding:.1e} of their value")
        return "\n".join([*lines, *self.notes])


def export(
    model: Any,
    folder: str | os.PathLike[str],
    *,
    format: str = "compressed-tensors",
    tokenizer: Any = None,
    round_scales: bool = False,
    dry_run: bool = False,
    overwrite: bool = False,
    max_shard_size: int | str = "5GB",
) -> ExportReport:
    """Write a quantized model as a checkpoint of another library.

    The folder appears when all of it is written and flushed to the disk; one that is replaced is
    what it was until then.

    Args:
        model: a transformers model that woq quantized or loaded packed, or the folder or hub id of
            a checkpoint, woq's or another library's.
        format: "compressed-tensors", "gptq", "awq" or "bitsandbytes".
        tokenizer: is saved beside the model. None: the one that lies beside a checkpoint, if any.
        round_scales: round scales to the type that the format's readers keep (float16; for
            compressed-tensors the model's), where they are not exact in it. The report says by how
            much. Otherwise such scales are an error.
        dry_run: write nothing, and report what would be written or refused.
        overwrite: replace a model that is in `folder`.
        max_shard_size: split the weights into files of this.

    Raises:
        InvalidArgument: nothing in the model is quantized, the format is unknown, or there is
            something in `folder`.
        Unsupported: the format, or what reads it, has no place for something; all of it is named.
        OSError: writing failed; the folder is as it was.
    """
    target = Path(folder)
    if format not in EXPORT_FORMATS:
        raise InvalidArgument(f"unknown format {format!r}; known: {', '.join(EXPORT_FORMATS)}")
    limit = parse_bytes(max_shard_size, "max_shard_size")
    if not dry_run:
        check_target(target, overwrite=overwrite)
    if isinstance(model, str | os.PathLike):
        model, tokenizer = _loaded(model, tokenizer)
    plan = _Plan(model, export_format(format), round_scales=round_scales)
    if dry_run:
        return plan.report
    plan.check()
    try:
        with replace_folder(target) as scratch:
            plan.write(scratch, limit)
            if tokenizer is not None:
                tokenizer.save_pretrained(scratch)
    except OSError as error:
        kept = f"{target} is as it was" if target.exists() else f"{target} was not made"
        raise OSError(
            error.errno, f"{error.strerror or error} while exporting to {target}; {kept}"
        ) from error
    notes = [] if tokenizer is not None else ["no tokenizer is beside it: save one there"]
    return dataclasses.replace(plan.report, folder=str(target), notes=notes)


def export_into(
    model: Any,
    folder: str | os.PathLike[str],
    *,
    format: str,
    settings: Mapping[str, Any],
    files: Callable[[Mapping[str, Any]], Mapping[str, str]],
    metadata: Mapping[str, str] | None = None,
    max_shard_size: int | str = "5GB",
) -> ExportReport:
    """As `export`, for the libraries whose formats these are: the checkpoint replaces the one that
    is in `folder`, whose other files stay. Scales are rounded to what the format keeps.

    Args:
        settings: what the library writes in `quantization_config` besides.
        files: from `quantization_config`, the names and texts of files that it writes besides.
        metadata: of the safetensors files.

    Raises:
        Unsupported: the format has no place for something; all of it is named.
        OSError: writing failed; what was in the folder is unchanged.
    """
    target, limit = Path(folder), parse_bytes(max_shard_size, "max_shard_size")
    if target.exists() and not target.is_dir():
        raise InvalidArgument(f"{target} exists and is no folder")
    plan = _Plan(model, export_format(format), round_scales=True)
    plan.check()
    target.mkdir(parents=True, exist_ok=True)
    with replace_files_in(target, configuration_last, is_weights) as scratch:
        written = plan.write(scratch, limit, settings, {**(metadata or {}), "format": "pt"})
        for name, text in files(written).items():
            (scratch / name).write_text(text, "utf-8")
    return dataclasses.replace(plan.report, folder=str(target))


def check_target(target: Path, *, overwrite: bool) -> None:
    """Raise InvalidArgument unless a model may be written to `target`."""
    if not target.exists() and not target.is_symlink():
        return
    if not target.is_dir():
        raise InvalidArgument(f"{target} exists and is no folder")
    if not any(target.iterdir()):
        return
    if not overwrite:
        raise InvalidArgument(f"{target} exists: name another folder, or overwrite it (overwrite)")
    if not (target / "config.json").is_file():
        raise InvalidArgument(f"{target} holds no model (no config.json): it is not overwritten")


def _loaded(path: str | os.PathLike[str], tokenizer: Any) -> tuple[Any, Any]:
    """The model of a checkpoint, and the tokenizer beside it where none is given."""
    from .auto_model import AutoModelForCausalLM
    from .tokenizers import load_tokenizer

    name, gguf = locate(path)
    file: dict[str, Any] = dict(gguf)
    model = AutoModelForCausalLM.from_pretrained(name, dtype="auto", **file)
    if tokenizer is None:
        try:
            tokenizer = load_tokenizer(name, file)
        except (OSError, ValueError, KeyError, ImportError):
            return model, None  # the report says that there is none
    return model, tokenizer


class _Plan:
    """The checkpoint that a model becomes: its tensors, and what is in the way."""

    def __init__(self, model: Any, make: type[ExportFormat], *, round_scales: bool) -> None:
        self._model = model
        modules = _exportable(model)
        spare_quantized_layers(model)
        self._stored = stored_state(model)
        names = self._stored_names()
        heads = output_embeddings(model)
        layers = {
            module: _described(names[module], module, is_head=name in heads)
            for name, module in modules.items()
        }
        floats = [
            name
            for name, module in model.named_modules()
            if is_linear(module) and not isinstance(module, WeightOnlyLinear)
        ]
        dtype = str(model.dtype).removeprefix("torch.")
        facts = ExportedModel(tuple(layers.values()), tuple(floats), dtype, round_scales)
        self._format = make(facts)
        self._maker = _Maker(self._format)
        self._entries: dict[str, Entry] = {}
        self._errors: list[Exception] = []
        rows = [self._plan_layer(module, layer) for module, layer in layers.items()]
        for name, (tensor, source) in self._stored.items():
            # A bias is of a layer as well, and not packed.
            if source is None:
                self._entries[name] = Entry(tuple(tensor.shape), tensor.dtype, _constant(tensor))
        refused = self._format.refusals()
        self._errors += [Unsupported(text) for text in refused]
        nbytes = sum(entry.nbytes for entry in self._entries.values())
        loads_in = [] if self._errors else self._format.loads_in()
        self.report = ExportReport(
            self._format.name, None, rows, floats, nbytes, loads_in, [], refused
        )

    def check(self) -> None:
        if self._errors:
            raise joined(self._errors, f"cannot be written as {self._format.name}")

    def write(
        self,
        folder: Path,
        limit: int,
        settings: Mapping[str, Any] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Returns the `quantization_config`: the format's own, and before it `settings`."""
        write_configs(self._model, folder)
        path = folder / "config.json"
        config = json.loads(path.read_text("utf-8"))
        written = {**(settings or {}), **self._format.settings()}
        config["quantization_config"] = written
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
        entries = dict(sorted(self._entries.items()))
        write_weights(entries, dict(metadata or {"format": "pt"}), folder, limit)
        return written

    def _stored_names(self) -> dict[WeightOnlyLinear, str]:
        """The names of the layers in a checkpoint, which may be others than in the model."""
        names = {}
        for name, (_, source) in self._stored.items():
            if source is not None:
                layer, tensor = source
                names[layer] = name.removesuffix(f".{tensor}")
        return names  # type: ignore[return-value]

    def _plan_layer(self, module: WeightOnlyLinear, layer: ExportedLayer) -> LayerReport:
        tensors: dict[str, torch.Tensor] = {}
        rounding, refused = 0.0, None
        try:
            problems = [*self._format.common_refusals(layer), *self._format.refusals_of(layer)]
            if problems:
                raise Unsupported("; ".join(problems))
            matrix = module.quantized()
            tensors = self._format.tensors(layer, matrix)
            if self._format.model.round_scales:
                rounding = _rounding(matrix, self._format.scales(tensors))
        except (InvalidArgument, Unsupported) as error:
            refused = str(error)
            self._errors.append(type(error)(f"{layer.name}: {error}"))
        for name, tensor in tensors.items():
            entry = Entry(tuple(tensor.shape), tensor.dtype, self._maker.of(layer, module, name))
            self._entries[f"{layer.name}.{name}"] = entry
        return LayerReport(
            layer.name,
            (layer.rows, layer.cols),
            layer.scheme.dtype,
            layer.scheme.group_size,
            layer.scheme.asym,
            {name: _kind_of(tensor) for name, tensor in tensors.items()},
            rounding,
            refused,
        )


class _Maker:
    """Makes the tensors of layers when they are written, and keeps those of the last layer only. A
    file has its wide types first, so that a layer comes up once for each of its types."""

    def __init__(self, form: ExportFormat) -> None:
        self._form = form
        self._layer: ExportedLayer | None = None
        self._tensors: dict[str, torch.Tensor] = {}

    def of(
        self, layer: ExportedLayer, module: WeightOnlyLinear, name: str
    ) -> Callable[[], torch.Tensor]:
        def make() -> torch.Tensor:
            if self._layer is not layer:
                self._tensors = {}
                self._tensors = self._form.tensors(layer, module.quantized())
                self._layer = layer
            return self._tensors[name]

        return make


def _exportable(model: Any) -> dict[str, WeightOnlyLinear]:
    """The quantized layers of a model that can be a checkpoint of another library."""
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise InvalidArgument(f"expected a transformers model, got {type(model).__name__}")
    if transformers_private.has_adapters(model):
        raise InvalidArgument("adapters are attached: remove them before the model is exported")
    modules = quantized_layers(model)
    if not modules:
        raise InvalidArgument("nothing in the model is quantized: woq.quantize it first")
    embeddings = quantized_embeddings(model)
    if embeddings:
        raise Unsupported(
            f"{next(iter(embeddings))} is quantized (as in most GGUF files), and the formats of "
            "other libraries keep embeddings in floating point: quantize the float model with "
            "quantize_embedding=False"
        )
    transposed = [name for name, module in modules.items() if module.transposed]
    if transposed:
        raise Unsupported(
            f"{transposed[0]} and {len(transposed) - 1} more are Conv1D layers (as GPT-2's), which "
            "the engines that serve quantized checkpoints do not read: keep the model in woq's "
            "format (woq.save_pretrained)"
        )
    return modules


def _described(name: str, module: WeightOnlyLinear, *, is_head: bool) -> ExportedLayer:
    act_order = module.has_g_idx and has_act_order(module.quantized())
    rows, cols = module.out_features, module.in_features
    return ExportedLayer(name, module.scheme, rows, cols, act_order, is_head)


def _rounding(matrix: QuantizedMatrix, written: torch.Tensor | None) -> float:
    """The largest relative change of a scale; None: the format keeps them as they are."""
    if written is None:
        return 0.0
    exact, stored = matrix.scales(), written.float().numpy()
    nonzero = exact != 0
    return float(np.max(np.abs(stored[nonzero] / exact[nonzero] - 1), initial=0.0))


def _kind_of(tensor: torch.Tensor) -> str:
    shape = ", ".join(map(str, tensor.shape))
    return f"{str(tensor.dtype).removeprefix('torch.')} [{shape}]"


def _constant(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: tensor
