# SPDX-License-Identifier: Apache-2.0
"""What a quantization did to a model: `model.woq_report`."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

__all__ = ["LayerReport", "LeftAlone", "QuantizationReport", "WeightHistogram"]


@dataclasses.dataclass(frozen=True)
class WeightHistogram:
    """A sample of a layer's weights in units of their group's scale (plus the zero point): there
    the code points are the same numbers in all groups."""

    code_points: tuple[float, ...]  # ascending
    low: float  # of the first bin
    high: float  # of the last bin
    counts: tuple[int, ...]  # of bins of one width
    outside: int  # weights below low or above high: not among counts


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """One quantized layer."""

    name: str
    weight_dtype: str
    shape: tuple[int, int]  # [out_features, in_features]
    bytes_before: int
    bytes_after: int  # of the stored tensors; the packed form is at most 5 % larger
    mse: float  # mean of (W - dequantized W)^2
    sqnr_db: float  # 10 log10(sum W^2 / sum (W - dequantized W)^2)
    algorithm: str = "RTN"  # what was done
    # Error of the output that was tuned (the layer's, or its block's) relative to the output, on
    # the calibration data, at the end and at the start of tuning; None without calibration.
    loss: float | None = None
    start_loss: float | None = None
    note: str = ""  # why another algorithm than the config's, or other settings
    histogram: WeightHistogram | None = dataclasses.field(default=None, repr=False)

    @property
    def parameters(self) -> int:
        return self.shape[0] * self.shape[1]


@dataclasses.dataclass(frozen=True)
class LeftAlone:
    """A matrix (or a stack of them) that stays in floating point."""

    name: str
    shape: tuple[int, ...]
    parameters: int
    reason: str


@dataclasses.dataclass
class QuantizationReport:
    """All layers that were quantized and all that were not. `print(report)` gives a summary."""

    layers: list[LayerReport] = dataclasses.field(default_factory=list)
    left: list[LeftAlone] = dataclasses.field(default_factory=list)
    total_parameters: int = 0  # quantized or not, shared ones once
    seconds: float = 0.0
    complete: bool = True  # False when the quantization was interrupted or failed

    @property
    def quantized_parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def share(self) -> float:
        """Part of the model's parameters that is quantized, 0 to 1."""
        return self.quantized_parameters / self.total_parameters if self.total_parameters else 0.0

    @property
    def bytes_before(self) -> int:
        return sum(layer.bytes_before for layer in self.layers)

    @property
    def bytes_after(self) -> int:
        return sum(layer.bytes_after for layer in self.layers)

    @property
    def mse(self) -> float:
        """Mean squared error over all quantized weights."""
        total = sum(layer.mse * layer.parameters for layer in self.layers)
        return total / self.quantized_parameters if self.quantized_parameters else 0.0

    @property
    def worst(self) -> LayerReport | None:
        """The layer with the lowest signal to quantization noise ratio."""
        finite = [layer for layer in self.layers if not math.isnan(layer.sqnr_db)]
        return min(finite, key=lambda layer: layer.sqnr_db, default=None)

    @property
    def fallbacks(self) -> list[LayerReport]:
        """Layers that the algorithm of the config could not do: rounded to nearest instead."""
        return [layer for layer in self.layers if layer.note and layer.algorithm == "RTN"]

    def to_dict(self) -> dict[str, object]:
        """All figures as plain values, without the histograms."""
        layers = []
        for layer in self.layers:
            values = dataclasses.asdict(dataclasses.replace(layer, histogram=None))
            del values["histogram"]
            layers.append(values)
        return {
            "complete": self.complete,
            "seconds": self.seconds,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "quantized_parameters": self.quantized_parameters,
            "total_parameters": self.total_parameters,
            "mse": self.mse,
            "worst": None if self.worst is None else self.worst.name,
            "layers": layers,
            "left": [dataclasses.asdict(entry) for entry in self.left],
        }

    def __str__(self) -> str:
        if not self.layers:
            return "nothing was quantized: the model has no linear layer that the config selects"
        dtypes = Counter(layer.weight_dtype for layer in self.layers)
        lines = [
            f"{len(self.layers)} layers quantized ({_counts(dtypes)}) in {self.seconds:.1f} s"
            + ("" if self.complete else "; NOT complete"),
            f"parameters: {self.quantized_parameters:,} of {self.total_parameters:,} "
            f"({100 * self.share:.1f} %)",
            f"size of these layers: {_mib(self.bytes_before)} -> {_mib(self.bytes_after)} "
            f"({self.bytes_before / max(1, self.bytes_after):.2f} x smaller, "
            f"{8 * self.bytes_after / max(1, self.quantized_parameters):.2f} bits a weight)",
            f"error: mean squared {self.mse:.3e}",
        ]
        if self.worst is not None:
            lines[3] += f"; lowest SQNR {self.worst.sqnr_db:.1f} dB ({self.worst.name})"
        tuned = [layer for layer in self.layers if layer.loss and layer.start_loss]
        if tuned:
            ratios = [math.log(layer.loss / layer.start_loss) for layer in tuned]  # type: ignore
            factor = math.exp(sum(ratios) / len(ratios))
            algorithms = _counts(Counter(layer.algorithm for layer in self.layers))
            lines.append(
                f"calibrated ({algorithms}): error of the outputs {factor:.3f} x what it was "
                "before tuning"
            )
        noted = [layer for layer in self.layers if layer.note]
        for layer in noted[:5]:
            lines.append(f"  {layer.name}: {layer.algorithm}, because {layer.note}")
        if len(noted) > 5:
            lines.append(f"  ... and {len(noted) - 5} more")
        if self.left:
            matrices = sum(entry.parameters for entry in self.left)
            count = max(matrices, self.total_parameters - self.quantized_parameters)
            part = 100 * count / max(1, self.total_parameters)
            lines.append(f"left in floating point: {count:,} parameters ({part:.1f} %)")
            # The few largest carry the information; a mixture of experts has one entry a layer.
            for entry in sorted(self.left, key=lambda e: -e.parameters)[:5]:
                lines.append(f"  {entry.name} {list(entry.shape)}: {entry.reason}")
            if len(self.left) > 5:
                lines.append(f"  ... and {len(self.left) - 5} more")
            if count > matrices:
                lines.append(f"  norms, biases and the like: {count - matrices:,}")
        return "\n".join(lines)


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} x {name}" for name, count in counter.most_common())


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
