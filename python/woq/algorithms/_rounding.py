# SPDX-License-Identifier: Apache-2.0
"""The rounding of one weight matrix as a function that can be tuned: which neighbouring code each
weight takes, and how far each group's range reaches.

With the group scale s, the zero point z and the rounding offset V (SignRound, arXiv:2309.05516):

    integers    W~ = s * (clip(round(W / s + V) + z, 0, max_code) - z)
    codebooks   W~ = s * table[clip(round(u(W / s) + V), 0, last)]

u maps a value to its place among the sorted code points, linear between two of them: V in
[-0.5, 0.5] then chooses between the same two neighbours as it does for integers. Groups run along
K; K is padded with zeros to whole groups, G = ceil(K / group_size), g = group_size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .. import _native
from .._tensors import from_torch, to_torch

__all__ = ["Rounding"]

# Codes of an integer dtype: 0 .. 2^bits - 1.
_MAX_CODE = {"int8": 255, "int4_clip": 15, "int4_fullrange": 15}
# absmax / scale of a symmetric group, by dtype; see docs/quantization.md.
_ABSMAX_CODE = {"int8": 127, "int4_clip": 7, "int4_fullrange": 8}
# Bounds of the factors on a range. The paper has [0, 1]; a start with less than the full range may
# have to grow.
RANGE_FACTORS = (0.5, 1.5)
_SCALE_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class _RoundIntegers(torch.autograd.Function):
    """Straight-through: the derivative of round is taken as 1 inside the range and 0 outside."""

    @staticmethod
    def forward(
        ctx: Any, w: torch.Tensor, v: torch.Tensor, s: torch.Tensor, z: torch.Tensor, top: int
    ) -> torch.Tensor:
        # w, v [N, G, g]; s, z [N, G, 1]
        r = w / s
        q = (r + v).round_()
        c = q.clamp(-z, top - z)
        inside = q.eq(c)
        # d(c s) / ds = c, less w / s where rounding passes the derivative on.
        ctx.save_for_backward(inside, torch.where(inside, c - r, c), s)
        return c.mul_(s)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inside, slope, s = ctx.saved_tensors
        grad_s = slope.mul_(grad).sum(-1, keepdim=True)
        grad_v = grad * inside
        grad_z = None
        if ctx.needs_input_grad[3]:
            grad_z = (grad_v.sum(-1, keepdim=True) - grad.sum(-1, keepdim=True)) * s
        return None, grad_v.mul_(s), grad_s, grad_z, None


class _RoundCodebook(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, w: torch.Tensor, v: torch.Tensor, s: torch.Tensor, table: torch.Tensor
    ) -> torch.Tensor:
        x = w / s
        place, step = _place(x, table)
        q = (place + v).round_()
        i = q.clamp(0, len(table) - 1)
        inside = q.eq(i)
        values = table[i.int()]
        ctx.save_for_backward(inside, torch.where(inside, values - x, values), step, s)
        return values.mul_(s)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inside, slope, step, s = ctx.saved_tensors
        grad_s = slope.mul_(grad).sum(-1, keepdim=True)
        return None, (grad * inside).mul_(step).mul_(s), grad_s, None


def _place(x: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where x lies among the ascending code points, as a real index, and the width of its gap."""
    left = torch.bucketize(x, table, out_int32=True).sub_(1).clamp_(0, len(table) - 2)
    low = table[left]
    step = table[left + 1] - low
    return left + (x - low) / step, step


def _straight_through(value: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    return value + (rounded - value).detach()


class Rounding:
    """What can be tuned of one weight [N, K], and the matrix that it amounts to.

    Args:
        weight: float32 [N, K].
        start: a quantization of `weight`: its scales and zero points are where tuning starts.
        scheme: dtype, group_size, asym, scale_dtype, double_quant.

    `v` [N, G, g] are the offsets, `low` and `high` [N, G, 1] the factors on the two ends of each
    group's range (symmetric: `high` on both). The caller changes them in place.
    """

    def __init__(
        self, weight: torch.Tensor, start: _native.QuantizedMatrix, scheme: Mapping[str, Any]
    ) -> None:
        self.rows, self.cols = weight.shape
        self.scheme = dict(scheme)
        group = int(scheme["group_size"])
        self.group = self.cols if group < 0 or group > self.cols else group
        self.groups = -(-self.cols // self.group)
        self.asym = bool(scheme["asym"])
        self._grouped = self._pad(weight)
        scales = torch.from_numpy(start.scales()).unsqueeze(-1)  # [N, G, 1]
        # Codebooks store 0 for a group of zeros; a weight over 0 would be NaN.
        self._scales = torch.where(scales == 0, torch.ones_like(scales), scales)
        self._dtype = str(scheme["dtype"])
        if self._dtype in _MAX_CODE:
            self._top = _MAX_CODE[self._dtype]
            zeros = start.zero_points()
            self._zeros = (
                torch.full_like(scales, (self._top + 1) // 2)
                if zeros is None
                else torch.from_numpy(zeros).float().unsqueeze(-1)
            )
            self._table = self._codes = None
        else:
            values = torch.from_numpy(_native.code_values(self._dtype))
            # +0 and -0 are one point of the table; the code kept is the first, +0.
            table, order = torch.sort(values, stable=True)
            keep = torch.cat([torch.tensor([True]), table[1:] != table[:-1]])
            self._table, self._codes = table[keep].contiguous(), order[keep].to(torch.uint8)
        self.v = torch.zeros_like(self._grouped)
        self.low = torch.ones_like(self._scales)
        self.high = torch.ones_like(self._scales)

    def _pad(self, weight: torch.Tensor) -> torch.Tensor:
        padding = self.groups * self.group - self.cols
        padded = torch.nn.functional.pad(weight, (0, padding)) if padding else weight
        return padded.reshape(self.rows, self.groups, self.group)

    def parameters(self) -> list[torch.Tensor]:
        """What a gradient step may change: V first, then the ends of the range."""
        return [self.v, self.low, self.high] if self.asym else [self.v, self.high]

    @torch.no_grad()
    def clamp_(self) -> None:
        """Keep the parameters where they mean something: the neighbouring codes only."""
        self.v.clamp_(-0.5, 0.5)
        self.low.clamp_(*RANGE_FACTORS)
        self.high.clamp_(*RANGE_FACTORS)

    @torch.no_grad()
    def reset(self) -> None:
        """Back to the start."""
        self.v.zero_()
        self.low.fill_(1)
        self.high.fill_(1)

    def _range(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scale, rounded to its stored dtype, and zero point [N, G, 1] (codebooks: None)."""
        if not self.asym:
            scale = self._stored(self._scales * self.high)
            return scale, None if self._table is not None else self._zeros
        low = -self._zeros * self._scales * self.low
        high = (self._top - self._zeros) * self._scales * self.high
        scale = self._stored(((high - low) / self._top).clamp(min=1e-30))
        zero = (-low / scale).clamp(0, self._top)
        return scale, _straight_through(zero, zero.round())

    def _stored(self, scale: torch.Tensor) -> torch.Tensor:
        kind = _SCALE_DTYPES[self.scheme["scale_dtype"]]
        return _straight_through(scale, scale.to(kind).float())

    def weight(self) -> torch.Tensor:
        """W~ [N, K] float32, differentiable in `parameters()`."""
        scale, zero = self._range()
        if self._table is None:
            out = _RoundIntegers.apply(self._grouped, self.v, scale, zero, self._top)
        else:
            out = _RoundCodebook.apply(self._grouped, self.v, scale, self._table)
        return out.reshape(self.rows, -1)[:, : self.cols]

    @torch.no_grad()
    def matrix(self) -> _native.QuantizedMatrix:
        """The quantized matrix of the present parameters; its values are those of `weight()`,
        except that doubly quantized scales are rounded here only."""
        scale, zero = self._range()
        tensors = self._encode_scales(scale.squeeze(-1))
        if self.scheme["double_quant"]:
            probe = from_torch(tensors, self.rows, self.cols, self.scheme)
            scale = torch.from_numpy(probe.scales()).unsqueeze(-1)
            scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        if self._table is None:
            assert zero is not None
            q = (self._grouped / scale + self.v).round_() + zero
            codes = q.clamp_(0, self._top).to(torch.uint8)
            if self.asym:
                tensors["zero_points"] = zero.squeeze(-1).to(torch.uint8).contiguous()
        else:
            assert self._codes is not None
            place, _ = _place(self._grouped / scale, self._table)
            index = (place + self.v).round_().clamp_(0, len(self._table) - 1)
            codes = self._codes[index.int()]
        codes = codes.reshape(self.rows, -1)[:, : self.cols]
        tensors["qweight"] = codes.contiguous() if self._dtype == "int8" else _nibbles(codes)
        return from_torch(tensors, self.rows, self.cols, self.scheme)

    def _encode_scales(self, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        """The stored tensors of scales [N, G]: those of a matrix whose groups call for them.

        The core alone knows how scales are stored; its RTN stores absmax / code as scale.
        """
        if self.asym:
            extreme = scale * self._top
        elif self._table is None:
            extreme = -scale * _ABSMAX_CODE[self._dtype]
        else:
            extreme = scale * self._table.abs().max()
        probe = torch.zeros(self.rows, self.groups, self.group)
        probe[..., 0] = extreme
        matrix = _native.quantize_rtn(
            probe.reshape(self.rows, -1)[:, : self.cols].contiguous(),
            **self.scheme,
            name="scales",
            num_threads=torch.get_num_threads(),
        )
        tensors = to_torch(matrix)
        if self.scheme["scale_dtype"] == "fp32" and not self.scheme["double_quant"]:
            tensors["scales"] = scale.contiguous()  # spares the rounding of a product and quotient
        return tensors


def _nibbles(codes: torch.Tensor) -> torch.Tensor:
    """Two codes a byte, the even k in the low nibble: [N, K] -> [N, ceil(K / 2)]."""
    if codes.shape[1] % 2:
        codes = torch.nn.functional.pad(codes, (0, 1))
    return codes[:, 0::2] | codes[:, 1::2] << 4
