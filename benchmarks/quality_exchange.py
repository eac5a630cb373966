# SPDX-License-Identifier: Apache-2.0
"""What quality.py and quality_peers.py share: how bits and memory are counted, and two folders.

A protocol folder (`quality.py --export`) holds the permuted fp32 model, its tokenizer and the
calibration samples; a row folder (`quality_peers.py --out`) holds the weights that a library made
of it, as fp32, and the figures that only the quantizing process knows. Nothing here needs woq, so
that each library can have an environment of its own.
"""

from __future__ import annotations

import copy
import ctypes
import hashlib
import json
import resource
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

__all__ = [
    "PeakMemory",
    "Row",
    "fingerprint",
    "linear_layers",
    "load_row",
    "read_protocol",
    "restore_weights",
    "save_protocol",
    "save_row",
    "stored_bits",
]

_SAMPLES, _PROTOCOL = "calibration.safetensors", "protocol.json"
_WEIGHTS, _ROW = "weights.safetensors", "row.json"


def stored_bits(rows: int, cols: int, group_size: int, width: int, zero_bits: int = 0) -> int:
    """Bits of a [rows, cols] weight's codes, scales (16 bits each) and zero points; the last group
    of a row may be shorter, and a `group_size` below 0 is the whole row."""
    groups = rows * (1 if group_size < 0 else -(-cols // group_size))
    return rows * cols * width + groups * (16 + zero_bits)


def linear_layers(model: Any) -> dict[str, torch.nn.Linear]:
    """What is to be quantized: every linear layer but the output embedding."""
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }


class PeakMemory:
    """Growth of the resident memory: `with PeakMemory() as peak: ...`, then `peak.mib`."""

    def __enter__(self) -> PeakMemory:
        self.mib: float | None = None
        self._resets = True
        _return_free_memory()
        try:
            # Linux: forget the peak so far.
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            self._resets = False
        self._before = self._status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        if self._resets:
            self.mib = (self._status("VmHWM") - self._before) / 1024

    @staticmethod
    def _status(key: str) -> float:
        """KiB."""
        try:
            lines = Path("/proc/self/status").read_text().splitlines()
        except OSError:
            return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def _return_free_memory() -> None:
    """What the C library keeps after `free` would be used again without growth."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc
        trim(0)


# The protocol folder


def fingerprint(model: Any) -> str:
    """SHA-256 of all parameters: names, shapes and fp32 bytes."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name} {list(parameter.shape)} ".encode())
        digest.update(parameter.detach().float().contiguous().numpy())
    return digest.hexdigest()


def save_protocol(
    folder: Path, model: Any, tokenizer: Any, samples: torch.Tensor, seed: int
) -> None:
    """
    Args:
        samples: token ids [nsamples, seqlen].
        seed: what they were drawn by, for the libraries' own random numbers too.
    """
    # Not model.save_pretrained: it refuses a model that was read from a GGUF file.
    config = copy.deepcopy(model.config)
    vars(config).pop("quantization_config", None)
    config.save_pretrained(folder)
    parameters = {name: each.detach().float() for name, each in model.named_parameters()}
    save_file(parameters, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)
    save_file({"input_ids": samples.contiguous()}, folder / _SAMPLES)
    facts = {"model": fingerprint(model), "seed": seed}
    (folder / _PROTOCOL).write_text(json.dumps(facts, indent=1), encoding="utf-8")


def read_protocol(folder: Path) -> tuple[torch.Tensor, dict[str, Any]]:
    """The calibration samples [nsamples, seqlen]; the model's fingerprint and the seed."""
    if not (folder / _PROTOCOL).is_file():
        raise SystemExit(f"{folder}: not a folder that quality.py --export wrote")
    facts = json.loads((folder / _PROTOCOL).read_text(encoding="utf-8"))
    return load_file(folder / _SAMPLES)["input_ids"], facts


# The row folder


@dataclass
class Row:
    """What is known of a quantized model before it is scored; `model` is the fingerprint of the
    float model that it was made of."""

    algorithm: str
    format: str
    group: int | None
    seed: int | None
    bits_per_weight: float
    seconds: float
    mib: float | None
    model: str
    samples: list[int]  # nsamples, seqlen
    versions: dict[str, str] = field(default_factory=dict)


def save_row(folder: Path, row: Row, weights: Mapping[str, torch.Tensor]) -> None:
    """
    Args:
        weights: every parameter that differs from the float model, by its name there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: each.float().contiguous() for name, each in weights.items()}, folder / _WEIGHTS
    )
    (folder / _ROW).write_text(json.dumps(asdict(row), indent=1), encoding="utf-8")


def load_row(folder: Path) -> Row:
    if not (folder / _ROW).is_file():
        raise SystemExit(f"{folder}: not a folder that quality_peers.py --out wrote")
    return Row(**json.loads((folder / _ROW).read_text(encoding="utf-8")))


@torch.no_grad()
def restore_weights(folder: Path, model: Any) -> None:
    """Put the row's weights into `model`, a copy of the float model.

    Raises:
        SystemExit: the row was made of another model, holds tensors that the model hasn't, or
            leaves a linear layer (other than the output embedding) as it was.
    """
    row, parameters = load_row(folder), dict(model.named_parameters())
    if row.model != fingerprint(model):
        raise SystemExit(f"{folder}: made of another float model than the one scored against")
    weights = load_file(folder / _WEIGHTS)
    unknown = sorted(set(weights) - set(parameters))
    missing = sorted({f"{name}.weight" for name in linear_layers(model)} - set(weights))
    if unknown or missing:
        raise SystemExit(f"{folder}: unknown tensors {unknown}, unquantized layers {missing}")
    for name, weight in weights.items():
        if weight.shape != parameters[name].shape:
            raise SystemExit(
                f"{folder}: {name} is {list(weight.shape)}, "
                f"the model's is {list(parameters[name].shape)}"
            )
        if not torch.isfinite(weight).all():
            raise SystemExit(f"{folder}: {name} has infinities or NaN")
        parameters[name].copy_(weight)
