# SPDX-License-Identifier: Apache-2.0
"""`woq.export`: a quantized model as a checkpoint of another library, for the engines that read it.
Folders of safetensors are made here, GGUF files in export_gguf.

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

import torch
from torch import nn

from ..core.native import InvalidArgument, Unsupported
from ..core.units import parse_bytes
from ..formats.export.form import ExportedLayer, ExportedModel, ExportFormat
from ..formats.export.names import ALL_FORMATS, GGUF, export_format
from ..formats.files import replace_file, replace_files_in, replace_folder
from ..formats.safetensors import Entry
from ..modules.embedding import quantized_embeddings
from ..modules.layer import WeightOnlyLinear
from ..modules.targets import output_embeddings
from .conversions import spare_quantized_layers
from .errors import joined
from .export_gguf import GgufExport
from .export_model import described, exportable, float_layers, stored_names
from .export_report import ExportReport, LayerReport, largest_change
from .location import locate
from .saving import configuration_last, is_weights, stored_state, write_configs, write_weights

__all__ = ["ExportReport", "LayerReport", "check_target", "export", "export_into"]


def export(
    model: Any,
    folder: str | os.PathLike[str],
    *,
    format: str = "compressed-tensors",
    tokenizer: Any = None,
    template: str | os.PathLike[str] | None = None,
    round_scales: bool = False,
    dry_run: bool = False,
    overwrite: bool = False,
    max_shard_size: int | str = "5GB",
) -> ExportReport:
    """Write a quantized model as a checkpoint of another library.

    The folder (GGUF: the file) appears when all of it is written and flushed to the disk; one that
    is replaced is what it was until then.

    Args:
        model: a transformers model that woq quantized or loaded packed, or the folder or hub id of
            a checkpoint, woq's or another library's.
        folder: where to write; for GGUF, the name of a file that ends in ".gguf".
        format: "compressed-tensors", "compressed-tensors-int8" (W8A8), "gptq", "awq",
            "bitsandbytes" or "gguf".
        tokenizer: is saved beside the model, and in a GGUF file. None: the one that lies beside a
            checkpoint, if any.
        template: a GGUF file of the same model, whatever its weights: a new one gets its metadata,
            the tokenizer and chat template among them. None: they are made from the model and its
            tokenizer, or, where `model` is a GGUF file, are that file's.
        round_scales: round scales to the type that the format's readers keep (float16; for
            compressed-tensors the model's), where they are not exact in it. The report says by how
            much. Otherwise such scales are an error.
        dry_run: write nothing, and report what would be written or refused.
        overwrite: replace a model that is in `folder`.
        max_shard_size: split the weights into files of this; GGUF has one file.

    Raises:
        InvalidArgument: nothing in the model is quantized, the format is unknown, or there is
            something in `folder`.
        Unsupported: the format, or what reads it, has no place for something; all of it is named.
        OSError: writing failed; the folder is as it was.
    """
    target = Path(folder)
    if format not in ALL_FORMATS:
        raise InvalidArgument(f"unknown format {format!r}; known: {', '.join(ALL_FORMATS)}")
    if template is not None and format != GGUF:
        raise InvalidArgument(f"a template is for GGUF files, and the format is {format!r}")
    limit = parse_bytes(max_shard_size, "max_shard_size")
    check_target(target, format, overwrite=overwrite or dry_run, exists=not dry_run)
    if isinstance(model, str | os.PathLike):
        template = template or (_gguf_file(model) if format == GGUF else None)
        model, found = _loaded(model, with_tokenizer=tokenizer is None and template is None)
        tokenizer = tokenizer or found
    plan: _Plan | GgufExport
    if format == GGUF:
        plan = GgufExport(model, tokenizer, template, round_scales=round_scales)
    else:
        plan = _Plan(model, export_format(format), round_scales=round_scales)
    if dry_run:
        return plan.report
    plan.check()
    try:
        if isinstance(plan, GgufExport):
            target.parent.mkdir(parents=True, exist_ok=True)
            with replace_file(target) as scratch:
                plan.write(scratch)
        else:
            with replace_folder(target) as scratch:
                plan.write(scratch, limit)
                if tokenizer is not None:
                    tokenizer.save_pretrained(scratch)
    except OSError as error:
        kept = f"{target} is as it was" if target.exists() else f"{target} was not made"
        raise OSError(
            error.errno, f"{error.strerror or error} while exporting to {target}; {kept}"
        ) from error
    notes = list(plan.report.notes)
    if tokenizer is None and format != GGUF:
        notes.append("no tokenizer is beside it: save one there")
    return dataclasses.replace(plan.report, folder=str(target), notes=notes)


def export_into(
    model: Any,
    folder: str | os.PathLike[str],
    *,
    format: str,
    settings: Mapping[str, Any] | None = None,
    files: Callable[[Mapping[str, Any]], Mapping[str, str]] | None = None,
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
        for name, text in ({} if files is None else files(written)).items():
            (scratch / name).write_text(text, "utf-8")
    return dataclasses.replace(plan.report, folder=str(target))


def check_target(target: Path, format: str, *, overwrite: bool, exists: bool = True) -> None:
    """Raise InvalidArgument unless a model may be written to `target`; with exists=False, look at
    its name only."""
    if format == GGUF:
        if target.suffix.lower() != ".gguf":
            raise InvalidArgument(
                f"a model in GGUF is one file, and {target} does not end in .gguf: name it so"
            )
        if exists and target.is_dir():
            raise InvalidArgument(f"{target} is a folder: name another file")
        if exists and not overwrite and (target.exists() or target.is_symlink()):
            raise InvalidArgument(
                f"{target} exists: name another file, or overwrite it (overwrite)"
            )
        return
    if not exists:
        return
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


def _gguf_file(path: str | os.PathLike[str]) -> Path | None:
    """`path`, if it is a GGUF file."""
    return Path(path).expanduser() if locate(path)[1] else None


def _loaded(path: str | os.PathLike[str], *, with_tokenizer: bool) -> tuple[Any, Any]:
    """The model of a checkpoint, and the tokenizer beside it, if any."""
    from .auto_model import AutoModelForCausalLM
    from .tokenizers import load_tokenizer

    name, gguf = locate(path)
    file: dict[str, Any] = dict(gguf)
    model = AutoModelForCausalLM.from_pretrained(name, dtype="auto", **file)
    if not with_tokenizer:
        return model, None
    try:
        return model, load_tokenizer(name, file)
    except (OSError, ValueError, KeyError, ImportError):
        return model, None  # the report says that there is none


class _Plan:
    """The checkpoint that a model becomes: its tensors, and what is in the way."""

    def __init__(self, model: Any, make: type[ExportFormat], *, round_scales: bool) -> None:
        self._model = model
        modules = exportable(model)
        _refuse_embeddings(model)
        spare_quantized_layers(model)
        self._stored = stored_state(model)
        names = stored_names(self._stored)
        heads = output_embeddings(model)
        layers = {
            module: described(names[module], module, is_head=name in heads)
            for name, module in modules.items()
        }
        floats = float_layers(model)
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
        if any(layer.is_head for layer in self._format.model.layers):
            # It may have been the embedding's weight, which stays a float.
            config["tie_word_embeddings"] = False
        config["quantization_config"] = written
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
        entries = dict(sorted(self._entries.items()))
        write_weights(entries, dict(metadata or {"format": "pt"}), folder, limit)
        return written

    def _plan_layer(self, module: WeightOnlyLinear, layer: ExportedLayer) -> LayerReport:
        tensors: dict[str, torch.Tensor] = {}
        rounding, refused = 0.0, None
        try:
            problems = [*self._format.common_refusals(layer), *self._format.refusals_of(layer)]
            if problems:
                raise Unsupported("; ".join(problems))
            matrix = module.quantized()
            tensors = self._format.tensors(layer, matrix)
            written = self._format.scales(tensors) if self._format.model.round_scales else None
            if written is not None:
                rounding = largest_change(matrix.scales(), written.float().numpy())
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


def _refuse_embeddings(model: nn.Module) -> None:
    for name in quantized_embeddings(model):
        raise Unsupported(
            f"{name} is quantized (as in most GGUF files), and the formats of other libraries but "
            "GGUF keep embeddings in floating point: quantize the float model with "
            "quantize_embedding=False, or write a GGUF file"
        )


def _kind_of(tensor: torch.Tensor) -> str:
    shape = ", ".join(map(str, tensor.shape))
    return f"{str(tensor.dtype).removeprefix('torch.')} [{shape}]"


def _constant(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: tensor
