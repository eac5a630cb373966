# SPDX-License-Identifier: Apache-2.0
"""What the oracle tests share: vectors, comparisons that name the worst element, plain formulas."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ORACLES = Path(__file__).resolve().parents[1] / "oracles"
# The generating scripts import the same modules from beside themselves.
sys.path.insert(0, str(ORACLES))

import oracle_inputs as inputs  # noqa: E402

from woq import _woq as core  # noqa: E402


@dataclass(frozen=True)
class Scheme:
    """A dtype in its symmetric or asymmetric form, by the facts that the tests argue with."""

    dtype: str
    asym: bool = False

    def of(self, group_size: int, scales: str = "fp32") -> core.QuantScheme:
        """The core's form of it."""
        return core.QuantScheme(self.dtype, group_size, "int" if self.asym else "none", scales)

    @property
    def is_integer(self) -> bool:
        return self.dtype.startswith("int")

    @property
    def bits(self) -> int:
        return 8 if self.dtype == "int8" else 4

    @property
    def center(self) -> int:
        """The code that stands for zero in symmetric integers."""
        return 1 << (self.bits - 1)

    @property
    def values(self) -> np.ndarray:
        """float32: the value of every code at scale 1 (integers: symmetric)."""
        return core.code_values(self.dtype)

    def __str__(self) -> str:
        return self.dtype + ("-asym" if self.asym else "")


SCHEMES = (
    Scheme("int8"),
    Scheme("int8", asym=True),
    Scheme("int4_clip"),
    Scheme("int4_fullrange"),
    Scheme("int4_clip", asym=True),
    Scheme("int4_fullrange", asym=True),
    Scheme("nf4"),
    Scheme("fp4_e2m1"),
    Scheme("fp4_e2m1_bnb"),
)
# The oracles' names to ours.
ORACLE_SCHEMES = {
    "int4_clip": Scheme("int4_clip"),
    "int4_fullrange": Scheme("int4_fullrange"),
    "int4_asym": Scheme("int4_clip", asym=True),
    "int8_sym": Scheme("int8"),
    "int8_asym": Scheme("int8", asym=True),
    "nf4": Scheme("nf4"),
    "fp4": Scheme("fp4_e2m1_bnb"),
}
SCALE_KINDS = ("fp32", "fp16", "bf16", "double")


def load_vectors(name: str) -> dict[str, np.ndarray]:
    with np.load(ORACLES / "vectors" / name) as file:
        return dict(file)


def quantize(
    weight: object,
    scheme: Scheme,
    group_size: int,
    scale_kind: str = "fp32",
    mse_range: bool = False,
    num_threads: int = 1,  # the matrices are small; a pool only waits for its own threads
) -> core.QuantizedMatrix:
    return core.quantize_rtn(
        weight,
        scheme.of(group_size, scale_kind),
        mse_range=mse_range,
        num_threads=num_threads,
    )


def group_index(cols: int, group_size: int) -> np.ndarray:
    """int [K]: the group of every column."""
    index = np.empty(cols, dtype=np.int64)
    for g, (start, stop) in enumerate(inputs.group_bounds(cols, group_size)):
        index[start:stop] = g
    return index


def decode(matrix: core.QuantizedMatrix, scheme: Scheme) -> tuple[np.ndarray, np.ndarray]:
    """float32 [N, K] twice: every element's value at scale 1, and its scale."""
    index = group_index(matrix.cols, matrix.scheme.group_size)
    codes = matrix.codes()
    if scheme.asym:
        zero_points = matrix.zero_points()[:, index].astype(np.float32)
        values = codes.astype(np.float32) - zero_points
    else:
        values = scheme.values[codes]
    return values, matrix.scales()[:, index]


def ulp_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """int64: how many float32 numbers lie between a and b, either zero counted once."""

    def ordered(x: np.ndarray) -> np.ndarray:
        bits = np.ascontiguousarray(x, dtype=np.float32).view(np.int32).astype(np.int64)
        return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)

    return np.abs(ordered(a) - ordered(b))


def assert_same_codes(actual: np.ndarray, expected: np.ndarray, label: object) -> None:
    assert actual.shape == expected.shape, f"{label}: shape {actual.shape}, want {expected.shape}"
    differ = actual.astype(np.int64) != expected.astype(np.int64)
    if differ.any():
        first = tuple(int(i) for i in np.argwhere(differ)[0])
        raise AssertionError(
            f"{label}: {int(differ.sum())} of {differ.size} codes differ, first at {first}: "
            f"{actual[first]}, want {expected[first]}"
        )


def assert_within_ulps(actual: np.ndarray, expected: np.ndarray, ulps: int, label: object) -> None:
    assert actual.shape == expected.shape, f"{label}: shape {actual.shape}, want {expected.shape}"
    assert np.isfinite(actual).all(), f"{label}: not finite"
    distance = ulp_distance(actual, expected)
    if distance.max(initial=0) > ulps:
        worst = tuple(int(i) for i in np.unravel_index(distance.argmax(), distance.shape))
        raise AssertionError(
            f"{label}: {int(distance[worst])} ulps apart at {worst}: {actual[worst]!r}, "
            f"want {expected[worst]!r} within {ulps}"
        )
