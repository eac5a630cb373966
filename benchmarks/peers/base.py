# SPDX-License-Identifier: Apache-2.0
"""What a candidate is given and what it must offer.

All candidates multiply the same matrix: woq quantizes it once, with fp16 scales, and its codes go
to every peer that takes codes. A peer that only quantizes by itself is given the dequantized
matrix, whose values lie on the grid that it looks for.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from woq.core import native

# Root mean square of the output's error, as a share of the output's. What the arithmetic costs:
# fp32 rounds at 2^-24 and sums some thousand products; bfloat16 rounds operands, scales and outputs
# at 2^-9, together 0.004; int8 activations with one scale a row have steps of about 1/30 of their
# standard deviation, 0.01. A swapped nibble or a shifted scale costs 0.1 and more.
TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2, "int8": 3e-2}


@dataclass(frozen=True)
class Work:
    """y [M, N] = x [M, K] W^T with a quantized W [N, K]."""

    m: int
    n: int
    k: int
    dtype: str
    group_size: int
    asym: bool

    @property
    def bits(self) -> int:
        return 8 if self.dtype == "int8" else 4

    @property
    def group(self) -> int:
        """Elements that share a scale."""
        return self.k if self.group_size == -1 else self.group_size

    @property
    def groups(self) -> int:
        return -(-self.k // self.group)

    @property
    def weight_bytes(self) -> float:
        """Canonical bytes, whatever a candidate stores: codes, 2 bytes a scale, bits a zero."""
        zero = self.bits / 8 if self.asym else 0.0
        return self.n * self.k * self.bits / 8 + self.n * self.groups * (2 + zero)

    @property
    def operations(self) -> float:
        return 2.0 * self.m * self.n * self.k

    @property
    def scheme(self) -> str:
        return f"{self.dtype} g{self.group_size} {'asym' if self.asym else 'sym'}"

    @property
    def name(self) -> str:
        return f"{self.scheme} M{self.m} {self.n}x{self.k}"


class Weight:
    """The matrix that everybody multiplies with."""

    def __init__(self, work: Work, seed: int = 0) -> None:
        self.work = work
        values = np.random.default_rng(seed).standard_normal((work.n, work.k), dtype=np.float32)
        self.matrix = native.quantize_rtn(
            values,
            native.QuantScheme(work.dtype, work.group_size, "int" if work.asym else "none", "fp16"),
        )

    @cached_property
    def codes(self) -> NDArray[np.uint8]:  # [N, K], unsigned
        return self.matrix.codes()

    @cached_property
    def scales(self) -> NDArray[np.float32]:  # [N, G]; every value is an fp16 number
        return self.matrix.scales()

    @cached_property
    def zero_points(self) -> NDArray[np.uint8]:  # [N, G]; of a symmetric matrix the implied ones
        zeros = self.matrix.zero_points()
        if zeros is None:
            return np.full(self.scales.shape, 1 << (self.work.bits - 1), dtype=np.uint8)
        return zeros

    @cached_property
    def dequantized(self) -> NDArray[np.float32]:  # [N, K]
        return self.matrix.dequantize()


def pack_nibbles(codes: NDArray[Any], *, high_first: bool = False) -> NDArray[np.uint8]:
    """Two 4-bit codes a byte along the last axis, which is padded to an even length."""
    if codes.shape[-1] % 2:
        codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, 1)])
    codes = codes.astype(np.uint8) & 15
    first, second = codes[..., 0::2], codes[..., 1::2]
    return (first << 4 | second) if high_first else (second << 4 | first)


# One product with each of the copies, in turn.
Run = Callable[[Any], Sequence[Any]]


class Peer(ABC):
    """A candidate: one library, with one setting."""

    name: str  # what the table says
    activations: str  # the type that products are computed in: fp32, bf16 or int8
    library: ClassVar[str]  # what --peers selects
    packages: ClassVar[tuple[str, ...]]  # distributions that it needs; the first is the peer

    @property
    def tolerance(self) -> float:
        """Most that `relative_error` may be."""
        return TOLERANCE[self.activations]

    def missing(self) -> str | None:
        """Why this candidate can't be run here at all; None if it can."""
        for package in self.packages:
            try:
                importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                return f"{package} is not installed"
        return None

    @abstractmethod
    def unsupported(self, work: Work) -> str | None:
        """Why the candidate has nothing for this work; None if it has."""

    @abstractmethod
    def build_one(self, weight: Weight, threads: int) -> Callable[[Any], Any]:
        """One copy of the weight in the candidate's own form: a function of `prepare(x)`."""

    def build(self, weight: Weight, copies: int, threads: int) -> Run:
        calls = [self.build_one(weight, threads) for _ in range(copies)]
        return lambda x: [call(x) for call in calls]

    def reference(self, weight: Weight) -> NDArray[np.float32]:
        """The matrix that the candidate should multiply with, dequantized."""
        return weight.dequantized

    def prepare(self, x: NDArray[np.float32]) -> Any:
        """The activations in the type and container that the candidate takes: not timed."""
        return x

    def to_numpy(self, y: Any) -> NDArray[np.float32]:
        return np.asarray(y, dtype=np.float32)


def unless(fits: bool, needs: str) -> str | None:
    return None if fits else f"needs {needs}"


def is_int4(work: Work) -> bool:
    return work.dtype in ("int4_clip", "int4_fullrange")


def has_module(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def relative_error(y: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Root mean square of the difference over that of `expected`."""
    if y.shape != expected.shape:
        raise ValueError(f"the output has shape {y.shape}, expected {expected.shape}")
    if not np.isfinite(y).all():
        return float("inf")
    return float(np.linalg.norm(y - expected) / np.linalg.norm(expected))
