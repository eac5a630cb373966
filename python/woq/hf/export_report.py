# SPDX-License-Identifier: Apache-2.0
"""What `woq.export` says of what it wrote, or would write."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ExportReport", "LayerReport", "largest_change"]


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
        folder: the folder, or GGUF's file; None: nothing was written.
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
            f"loads in: {'; '.join([*self.loads_in, 'woq'])}",
        ]
        rounding = max(layer.rounding for layer in self.layers)
        if rounding > 0:
            lines.append(f"scales were rounded, by at most {rounding:.1e} of their value")
        return "\n".join([*lines, *self.notes])


def largest_change(exact: NDArray[np.float32], written: NDArray[np.float32]) -> float:
    """The largest relative change of a number that is not 0."""
    nonzero = exact != 0
    return float(np.max(np.abs(written[nonzero] / exact[nonzero] - 1), initial=0.0))
