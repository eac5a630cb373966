# SPDX-License-Identifier: Apache-2.0
"""The folder from which an interrupted calibration goes on: a file for each finished layer.

`run.json` says which run the files belong to: the settings, the calibration tokens, the layers.
Each layer's file carries a checksum of the float weight that it was made from. Files appear whole
or not at all.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..algorithms.shared.finished import Finished, stored_extras
from ..config.quant_config import WeightOnlyQuantConfig
from ..core import native
from ..formats.files import replace_file
from ..formats.safetensors import Entry, write_safetensors
from ..formats.stored_tensors import from_torch, to_torch
from ..modules.embedding import WeightOnlyEmbedding
from ..modules.targets import (
    Target,
    input_embedding,
    linear_parameters,
    output_embeddings,
    quantized_layers,
)

__all__ = ["WorkDir"]

logger = logging.getLogger("woq")

_MANIFEST = "run.json"
_FIELDS = ("loss", "start_loss", "algorithm", "note")


class WorkDir:
    """Finished layers of one run.

    Raises:
        InvalidArgument: the folder holds layers of another run (which setting differs is said).
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        model: nn.Module,
        config: WeightOnlyQuantConfig,
        batches: Sequence[Mapping[str, torch.Tensor]],
    ) -> None:
        self._path = Path(path)
        self._config = config
        self._path.mkdir(parents=True, exist_ok=True)
        run = {
            "config": config.to_dict(),
            "calibration": _hash_of(tensor for batch in batches for tensor in batch.values()),
            "model": _model_hash(model),
        }
        manifest = self._path / _MANIFEST
        if manifest.exists():
            self._compare(json.loads(manifest.read_text("utf-8")), run)
            found = len(list(self._path.glob("*.safetensors")))
            logger.info("%s has %d finished layers", self._path, found)
        else:
            with replace_file(manifest) as scratch:
                scratch.write_text(json.dumps(run, indent=2) + "\n", "utf-8")

    def _compare(self, have: Mapping[str, Any], want: Mapping[str, Any]) -> None:
        for part in ("model", "calibration", "config"):
            if have.get(part) == want[part]:
                continue
            what = f"another {part}"
            if part == "config":
                old = have.get(part) or {}
                what += (
                    " ("
                    + ", ".join(
                        f"{key}: {old.get(key)!r}, now {value!r}"
                        for key, value in want[part].items()
                        if old.get(key) != value
                    )
                    + ")"
                )
            raise native.InvalidArgument(
                f"work_dir {self._path} belongs to a run with {what}; give an empty folder, or "
                "delete this one"
            )

    def _file(self, name: str) -> Path:
        return self._path / f"{name}.safetensors"

    def save(self, finished: Finished) -> None:
        target = finished.target
        tensors = to_torch(finished.matrix)
        facts = {
            "rows": finished.matrix.rows,
            "cols": finished.matrix.cols,
            "weight": _checksum(linear_parameters(target.module)),
            **{field: getattr(finished, field) for field in _FIELDS},
        }
        entries = {
            name: Entry(tuple(tensor.shape), tensor.dtype, _constant(tensor))
            for name, tensor in tensors.items()
        }
        with replace_file(self._file(target.name)) as scratch:
            write_safetensors(scratch, entries, {"woq": json.dumps(facts)})

    def load_block(self, targets: Sequence[Target]) -> list[Finished] | None:
        """The finished layers of a block; None when not all of them are there and readable.

        A block is taken from here whole or not at all: its other layers would be calibrated on
        layers that are quantized already, and an interrupted run would give another model than an
        uninterrupted one.
        """
        if not all(self._file(target.name).exists() for target in targets):
            return None
        found = []
        for target in targets:
            finished = self._load(target)
            if finished is None:
                return None
            found.append(finished)
        return found

    def _load(self, target: Target) -> Finished | None:
        """The finished layer of `target`, whose file exists; None when that is not readable."""
        from safetensors import SafetensorError, safe_open

        path = self._file(target.name)
        try:
            with safe_open(path, "pt") as file:
                facts = json.loads(file.metadata()["woq"])
                tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
            rows, cols = int(facts["rows"]), int(facts["cols"])
            matrix = from_torch(tensors, rows, cols, target.scheme, **stored_extras(self._config))
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            logger.warning("%s is damaged (%s): its block is done again", path, error)
            return None
        if facts["weight"] != _checksum(linear_parameters(target.module)):
            raise native.InvalidArgument(
                f"{path} was made from another weight than {target.name} has: work_dir belongs to "
                "another model; give an empty folder, or delete this one"
            )
        return Finished(target, matrix, **{field: facts[field] for field in _FIELDS})


def _constant(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: tensor


def _checksum(tensor: torch.Tensor) -> int:
    return zlib.crc32(memoryview(tensor.detach().contiguous().view(torch.uint8).numpy()))


def _hash_of(tensors: Any) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(repr(tuple(tensor.shape)).encode())
        digest.update(memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def _model_hash(model: nn.Module) -> str:
    """Of the input embedding, and of the names and shapes of all linear layers, quantized or not:
    the same before, during and after a run."""
    digest = hashlib.sha256()
    done = quantized_layers(model)
    heads = set(output_embeddings(model))
    for name, module in model.named_modules():
        if name in heads:
            continue  # quantizing a tied one adds a tensor
        if name in done:
            shape = (done[name].out_features, done[name].in_features)
        elif isinstance(getattr(module, "weight", None), nn.Parameter):
            weight = module.weight
            if weight.dim() != 2 or isinstance(module, nn.Embedding):
                continue
            shape = (int(weight.shape[0]), int(weight.shape[1]))
        else:
            continue
        digest.update(f"{name} {sorted(shape)}".encode())
    embedding = input_embedding(model)
    if isinstance(embedding, WeightOnlyEmbedding):
        raise native.InvalidArgument(
            "the input embedding is quantized already, so that the model cannot be compared with "
            "that of the work_dir: load the float model again"
        )
    if embedding is not None and hasattr(embedding, "weight"):
        digest.update(str(_checksum(embedding.weight)).encode())
    return digest.hexdigest()
