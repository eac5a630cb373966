# SPDX-License-Identifier: Apache-2.0
"""The rounding of one weight matrix as a function that can be tuned: which neighbouring code each
weight takes, and how far each group's range reaches.

With the group scale s, the zero point z and the rounding offset V (SignRound, arXiv:2309.05516):

    integers    W~ = s * (clip(round(W / s + V) + z, 0, max_code) - z)
    codebooks   W~ = s * table[clip(round(u(W / s) + V), 0, last)]

u maps a value to its place among the sorted code points, linear between two of them: V in
[-0.5, 0.5] then chooses between the same two neighbours as it does for integers. Groups run along
K; G = ceil(K / group_size).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...core import native
from ...formats.stored_tensors import from_torch, to_torch

__all__ = ["RANGE_FACTORS", "Rounding"]

# Codes of an integer dtype: 0 .. 2^bits - 1.
_MAX_CODE = {"int8": 255, "int4_clip": 15, "int4_fullrange": 15}
# absmax / scale of a symmetric group, by dtype; see docs/quantization.md.
_ABSMAX_CODE = {"int8": 127, "int4_clip": 7, "int4_fullrange": 8}
_SCALE_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Bounds of the factors on a range. The paper has [0, 1]; a start with less than the full range may
# have to grow.
RANGE_FACTORS = (0.5, 1.5)


class _Round(torch.autograd.Function):
    """W~ of scales and zero points [N, G], straight through the rounding. The offsets are not among
    its arguments: only the sign of their gradient is of use, and the step that it means is taken
    where the gradient would be computed, in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, scales: torch.Tensor, zeros: torch.Tensor | None, rounding: Rounding
    ) -> torch.Tensor:
        ctx.rounding = rounding
        ctx.save_for_backward(scales, zeros)
        out = torch.empty(rounding.rows, rounding.cols, dtype=rounding.dtype)
        native.rounded_weight(*rounding.arguments(scales, zeros), **rounding.sizes(), out=out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rounding = ctx.rounding
        scales, zeros = ctx.saved_tensors
        of_scales = torch.empty_like(scales)
        of_zeros = torch.empty_like(scales) if ctx.needs_input_grad[1] else None
        native.rounding_step(
            *rounding.arguments(scales, zeros),
            **rounding.sizes(),
            gradient=grad.contiguous(),
            rate=rounding.rate,
            scale_gradients=of_scales,
            zero_gradients=of_zeros,
        )
        return of_scales, of_zeros, None


def _straight_through(value: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    return value + (rounded - value).detach()


class Rounding:
    """What can be tuned of one weight [N, K], and the matrix that it amounts to.

    Args:
        weight: float32 [N, K].
        start: a quantization of `weight`: its scales and zero points are where tuning starts.
        scheme: dtype, group_size, asym, scale_dtype, double_quant.
        dtype: float32 or bfloat16: what `weight()` gives.

    `v` [N, K] are the offsets; each backward pass through `weight()` moves them by `rate` against
    the sign of their gradient. `low` and `high` [N, G] are the factors on the two ends of each
    group's range (symmetric: `high` on both), parameters of an optimizer.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        start: native.QuantizedMatrix,
        scheme: Mapping[str, Any],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.rows, self.cols = weight.shape
        self.scheme = dict(scheme)
        self.dtype = dtype
        self.rate = 0.0
        group = int(scheme["group_size"])
        self.group = self.cols if group < 0 or group > self.cols else group
        self.groups = -(-self.cols // self.group)
        self.asym = bool(scheme["asym"])
        self._weight = weight.contiguous()
        scales = torch.from_numpy(start.scales())  # [N, G]
        # Codebooks store 0 for a group of zeros; a weight over 0 would be NaN.
        self._scales = torch.where(scales == 0, torch.ones_like(scales), scales)
        self._name = str(scheme["dtype"])
        self._top = _MAX_CODE.get(self._name, 0)
        self._zeros = self._table = self._codes = None
        if self._top:
            zeros = start.zero_points()
            self._zeros = (
                torch.full_like(scales, (self._top + 1) // 2)
                if zeros is None
                else torch.from_numpy(zeros).float()
            )
        else:
            values = torch.from_numpy(native.code_values(self._name))
            # +0 and -0 are one point of the table; the code kept is the first, +0.
            table, order = torch.sort(values, stable=True)
            keep = torch.cat([torch.tensor([True]), table[1:] != table[:-1]])
            self._table, self._codes = table[keep].contiguous(), order[keep].to(torch.uint8)
        self.v = torch.zeros_like(self._weight)
        self.low = torch.ones_like(self._scales)
        self.high = torch.ones_like(self._scales)

    def ranges(self) -> list[torch.Tensor]:
        """The factors on the ends of the ranges that this scheme has."""
        return [self.low, self.high] if self.asym else [self.high]

    def arguments(
        self, scales: torch.Tensor, zeros: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        """The arrays of the core's functions."""
        return self._weight, self.v, scales.detach(), zeros, self._table

    def sizes(self) -> dict[str, Any]:
        return {
            "group": self.group,
            "top": float(self._top),
            "num_threads": torch.get_num_threads(),
        }

    @torch.no_grad()
    def clamp_(self) -> None:
        """Keep the ranges within their bounds."""
        self.low.clamp_(*RANGE_FACTORS)
        self.high.clamp_(*RANGE_FACTORS)

    @torch.no_grad()
    def reset(self) -> None:
        """Back to the start."""
        self.v.zero_()
        self.low.fill_(1)
        self.high.fill_(1)

    def _range(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scale, rounded to its stored dtype, and zero point [N, G] (codebooks: None)."""
        if not self.asym:
            return self._stored(self._scales * self.high), self._zeros
        assert self._zeros is not None
        low = -self._zeros * self._scales * self.low
        high = (self._top - self._zeros) * self._scales * self.high
        scale = self._stored(((high - low) / self._top).clamp(min=1e-30))
        zero = (-low / scale).clamp(0, self._top)
        return scale, _straight_through(zero, zero.round())

    def _stored(self, scale: torch.Tensor) -> torch.Tensor:
        kind = _SCALE_DTYPES[self.scheme["scale_dtype"]]
        return _straight_through(scale, scale.to(kind).float())

    def weight(self) -> torch.Tensor:
        """W~ [N, K], differentiable in `ranges()`."""
        scale, zero = self._range()
        # Some argument has to ask for gradients, or there is no backward pass to step in.
        if self.rate and not scale.requires_grad:
            scale = scale.detach().requires_grad_(True)
        result: torch.Tensor = _Round.apply(scale, zero, self)
        return result

    @torch.no_grad()
    def matrix(self) -> native.QuantizedMatrix:
        """The quantized matrix of the present parameters; its values are those of `weight()`,
        except that doubly quantized scales are rounded here only."""
        scale, zero = self._range()
        tensors = self._encode_scales(scale)
        if self.scheme["double_quant"]:
            probe = from_torch(tensors, self.rows, self.cols, self.scheme)
            scale = torch.from_numpy(probe.scales())
            scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        x = self._weight / self._spread(scale)
        if zero is not None:
            q = (x + self.v).round_() + self._spread(zero)
            codes = q.clamp_(0, self._top).to(torch.uint8)
            if self.asym:
                tensors["zero_points"] = zero.to(torch.uint8)
        else:
            assert self._table is not None
            assert self._codes is not None
            left = torch.bucketize(x, self._table).sub_(1).clamp_(0, len(self._table) - 2)
            low = self._table[left]
            place = left + (x - low) / (self._table[left + 1] - low)
            index = (place + self.v).round_().clamp_(0, len(self._table) - 1)
            codes = self._codes[index.int()]
        tensors["qweight"] = codes if self._name == "int8" else _nibbles(codes)
        return from_torch(tensors, self.rows, self.cols, self.scheme)

    def _spread(self, values: torch.Tensor) -> torch.Tensor:
        """[N, G] -> [N, K]"""
        return values.repeat_interleave(self.group, 1)[:, : self.cols]

    def _encode_scales(self, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        """The stored tensors of scales [N, G]: those of a matrix whose groups call for them.

        The core alone knows how scales are stored; its RTN stores absmax / code as scale.
        """
        if self.asym:
            extreme = scale * self._top
        elif self._table is None:
            extreme = -scale * _ABSMAX_CODE[self._name]
        else:
            extreme = scale * self._table.abs().max()
        probe = torch.zeros(self.rows, self.groups * self.group)
        probe[:, :: self.group] = extreme
        matrix = native.quantize_rtn(
            probe[:, : self.cols].contiguous(),
            **self.scheme,
            name="scales",
            num_threads=torch.get_num_threads(),
        )
        tensors = to_torch(matrix)
        if not self.scheme["double_quant"]:
            # Spares the rounding of a product and a quotient; codebooks' scales may be negative.
            tensors["scales"] = scale.to(_SCALE_DTYPES[self.scheme["scale_dtype"]]).contiguous()
        return tensors


def _nibbles(codes: torch.Tensor) -> torch.Tensor:
    """Two codes a byte, the even k in the low nibble: [N, K] -> [N, ceil(K / 2)]."""
    if codes.shape[1] % 2:
        codes = torch.nn.functional.pad(codes, (0, 1))
    return codes[:, 0::2] | codes[:, 1::2] << 4
