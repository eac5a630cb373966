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

from typing import Any

import torch

from ...core import native

__all__ = ["RANGE_FACTORS", "Rounding"]

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
        native.rounded_weight(
            *rounding.arguments(scales, zeros), out=out, num_threads=torch.get_num_threads()
        )
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rounding = ctx.rounding
        scales, zeros = ctx.saved_tensors
        of_scales = torch.empty_like(scales)
        of_zeros = torch.empty_like(scales) if ctx.needs_input_grad[1] else None
        native.rounding_step(
            *rounding.arguments(scales, zeros),
            gradient=grad.contiguous(),
            rate=rounding.rate,
            scale_gradients=of_scales,
            zero_gradients=of_zeros,
            num_threads=torch.get_num_threads(),
        )
        return of_scales, of_zeros, None


def _straight_through(value: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    return value + (rounded - value).detach()


class Rounding:
    """What can be tuned of one weight [N, K], and the matrix that it amounts to.

    Args:
        weight: float32 [N, K].
        start: a quantization of `weight`: its scales and zero points are where tuning starts.
        scheme: the number format of the result.
        dtype: float32 or bfloat16: what `weight()` gives.

    `v` [N, K] are the offsets; each backward pass through `weight()` moves them by `rate` against
    the sign of their gradient. `low` and `high` [N, G] are the factors on the two ends of each
    group's range (symmetric: `high` on both), parameters of an optimizer.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        start: native.QuantizedMatrix,
        scheme: native.QuantScheme,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.rows, self.cols = weight.shape
        self.scheme = scheme
        self.dtype = dtype
        self.rate = 0.0
        self.asym = scheme.asym
        self._weight = weight.contiguous()
        scales = torch.from_numpy(start.scales())  # [N, G]
        # Codebooks store 0 for a group of zeros: not all of them have the value 0. A weight over 0
        # would be NaN, so such groups are tuned with the smallest number of fp16.
        self._empty = scales == 0
        self._scales = torch.where(self._empty, 2.0**-24, scales)
        dtype_traits = native.dtype_traits(scheme.dtype)
        self._top = dtype_traits.max_code
        self._zeros: torch.Tensor | None = None
        if dtype_traits.is_integer:
            zeros = start.zero_points()
            self._zeros = (
                torch.full_like(scales, dtype_traits.center)
                if zeros is None
                else torch.from_numpy(zeros).float()
            )
        self.v = torch.zeros_like(self._weight)
        self.low = torch.ones_like(self._scales)
        self.high = torch.ones_like(self._scales)

    def ranges(self) -> list[torch.Tensor]:
        """The factors on the ends of the ranges that this scheme has."""
        return [self.low, self.high] if self.asym else [self.high]

    def arguments(self, scales: torch.Tensor, zeros: torch.Tensor | None) -> tuple[Any, ...]:
        """What the core's functions are given."""
        return self._weight, self.v, scales.detach(), zeros, self.scheme

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
        """`scale` as it is stored, but for double quantization, which looks at all of a matrix."""
        if self.scheme.scales == "double":
            return scale
        rounded = torch.from_numpy(native.stored_scales(scale.detach(), self.scheme))
        return _straight_through(scale, rounded)

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
        stored = torch.from_numpy(native.stored_scales(scale, self.scheme))
        stored = torch.where(stored == 0, torch.ones_like(stored), stored)
        codes = native.rounded_codes(
            *self.arguments(stored, zero), num_threads=torch.get_num_threads()
        )
        zero_points = zero if self.asym else None
        scale = torch.where(self._empty, 0.0, scale)
        return native.QuantizedMatrix.from_codes(codes, scale, zero_points, self.scheme)
