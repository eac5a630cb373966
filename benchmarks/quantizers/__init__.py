# SPDX-License-Identifier: Apache-2.0
"""Other libraries' quantizers: a module each, imported only when its library is asked for.

A module has PACKAGE (the distribution whose version is reported), FORMATS, OPTIONS (its settings
with their defaults here; a default that is not the library's own has its reason beside it) and
`quantize(task)`, which times the library's work alone with `task.measured()` and gives back the
weights it made.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from quality_exchange import PeakMemory, linear_layers, stored_bits
from safetensors.torch import load_file

__all__ = [
    "PEERS",
    "Made",
    "Task",
    "batches",
    "dequantize",
    "gptq_weights",
    "grouped_bits",
    "peer_module",
]

PEERS = {
    "auto-round": "autoround",
    "gptqmodel": "gptqmodel_",
    "hqq": "hqq_",
    "llama.cpp": "llama_cpp_",
    "llm-compressor": "llm_compressor",
    "neural-compressor": "neural_compressor_",
}


def peer_module(name: str) -> Any:
    return importlib.import_module(f"quantizers.{PEERS[name]}")


class Made(NamedTuple):
    weights: dict[str, torch.Tensor]  # every parameter that changed, by its name, dequantized
    bits: int  # of all that the linear layers store


@dataclass
class Task:
    protocol: Path  # folder with the float model
    samples: torch.Tensor  # token ids [nsamples, seqlen]
    format: str
    group_size: int
    options: dict[str, Any]
    seed: int
    scratch: Path  # an empty folder, for whatever the library has to write
    seconds: float | None = None
    mib: float | None = None

    def model(self) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self.protocol, dtype=torch.float32).eval()

    @contextmanager
    def measured(self) -> Iterator[None]:
        started = time.perf_counter()
        with PeakMemory() as peak:
            yield
        self.seconds, self.mib = time.perf_counter() - started, peak.mib


def grouped_bits(model: Any, group_size: int, width: int, zero_bits: int) -> int:
    """Bits of all linear layers, with one scale and zero point a group."""
    return sum(
        stored_bits(layer.out_features, layer.in_features, group_size, width, zero_bits)
        for layer in linear_layers(model).values()
    )


def batches(samples: torch.Tensor, size: int) -> list[dict[str, torch.Tensor]]:
    """Keyword arguments of a model's forward pass."""
    return [
        {"input_ids": each, "attention_mask": torch.ones_like(each)} for each in samples.split(size)
    ]


def dequantize(
    codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | float, groups: torch.Tensor
) -> torch.Tensor:
    """(code - zero point) * scale, in fp32; scales are rounded to the 16 bits that are counted.

    Args:
        codes: [N, K].
        scales: [N, groups of a row].
        zeros: the same shape, or one for all.
        groups: the group of each column [K].
    """
    zero = zeros[:, groups].float() if isinstance(zeros, torch.Tensor) else zeros
    return (codes.float() - zero) * scales.half().float()[:, groups]


def gptq_weights(folder: Path, *, first_zero: int = 1) -> dict[str, torch.Tensor]:
    """The dequantized 4-bit layers of a checkpoint in AutoGPTQ's layout: {name: [N, K]}.

    Codes lie in int32 words along K (qweight [K / 8, N]), zero points along N (qzeros
    [groups, N / 8]), lowest bits first.

    Args:
        first_zero: what is added to a stored zero point: 1 in the first version of the layout.
    """
    stored: dict[str, torch.Tensor] = {}
    for file in sorted(folder.rglob("*.safetensors")):
        stored |= load_file(file)
    weights = {}
    for key in stored:
        name, dot, part = key.rpartition(".")
        if part != "qweight":
            continue
        codes = _unpack(stored[key]).T  # [N, K]
        scales = stored[f"{name}.scales"].T
        zeros = ((_unpack(stored[f"{name}.qzeros"].T) + first_zero) & 15)[: len(scales)]
        columns = codes.shape[1]
        size = -(-columns // scales.shape[1])
        groups = stored.get(f"{name}.g_idx", torch.arange(columns) // size).long()
        weights[f"{name}{dot}weight"] = dequantize(codes, scales, zeros, groups)
    return weights


def _unpack(words: torch.Tensor) -> torch.Tensor:
    """The 4-bit codes of int32 words [rows, cols], lowest bits first: [8 * rows, cols]."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    return ((words[:, None, :] >> shifts[None, :, None]) & 15).flatten(0, 1)
