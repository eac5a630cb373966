# SPDX-License-Identifier: Apache-2.0
"""Weights that the oracles and the tests share, from a formula instead of a library's generator.

splitmix64 over a counter: integer arithmetic only, hence the same bits under every numpy. All
weights are float32 [N, K], N = out_features.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

# Sum of four uniforms: bell-shaped like trained weights, yet exact in float64.
_WEIGHT_SPREAD = 0.05


@dataclass(frozen=True)
class Case:
    """One matrix of an oracle: `seed` names it uniquely and decides its values."""

    scheme: str  # int4_clip, int4_fullrange, int4_asym, int8_sym, int8_asym, nf4, fp4
    kind: str
    rows: int
    cols: int
    group_size: int

    @property
    def seed(self) -> str:
        return f"{self.scheme}/{self.kind}/{self.rows}x{self.cols}/g{self.group_size}"

    def __str__(self) -> str:
        return self.seed


def random_bits(seed: str, count: int) -> np.ndarray:
    """uint64 [count]: splitmix64 of seed's SHA-256 plus 1, 2, ..."""
    start = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "little")
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is the point
        z = np.uint64(start) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(
            0x9E3779B97F4A7C15
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def uniforms(seed: str, count: int) -> np.ndarray:
    """float64 [count] in [0, 1), multiples of 2**-24."""
    return (random_bits(seed, count) >> np.uint64(40)).astype(np.float64) * 2.0**-24


def bell(seed: str, rows: int, cols: int) -> np.ndarray:
    """float64 [rows, cols], |value| <= 0.1."""
    four = uniforms(seed, 4 * rows * cols).reshape(4, rows, cols)
    return ((four[0] + four[1]) + (four[2] + four[3]) - 2.0) * _WEIGHT_SPREAD


def group_bounds(cols: int, group_size: int) -> list[tuple[int, int]]:
    """Column ranges of a row's groups; the last one is shorter when cols is no multiple."""
    step = cols if group_size == -1 or group_size > cols else group_size
    return [(start, min(start + step, cols)) for start in range(0, cols, step)]


def _groups(case: Case) -> list[tuple[int, int, int, int]]:
    bounds = group_bounds(case.cols, case.group_size)
    return [(r, g, *bounds[g]) for r in range(case.rows) for g in range(len(bounds))]


def _ties(case: Case) -> np.ndarray:
    """Half-integers in groups whose scale comes out as exactly 1: every w / scale is a tie."""
    asym = case.scheme.endswith("_asym")
    levels = 255 if "int8" in case.scheme else 15
    absmax = {"int4_clip": 7.0, "int4_fullrange": 8.0, "int8_sym": 127.0}.get(case.scheme, 0.0)
    bits = random_bits(case.seed, case.rows * case.cols).reshape(case.rows, case.cols)
    w = np.empty((case.rows, case.cols))
    for r, g, start, stop in _groups(case):
        if asym:
            # The zero point -min / scale is an integer, or a tie with an odd or even lower side.
            low = -(levels // 2) - (0.0, 0.5, -0.5)[(r + g) % 3]
            high = low + levels
        else:
            low, high = -absmax, absmax
        steps = int(2 * (high - low)) + 1
        w[r, start:stop] = low + 0.5 * (bits[r, start:stop] % np.uint64(steps)).astype(np.float64)
        w[r, start] = high if (r + g) % 2 and not asym else low
        if stop - start > 1 and asym:
            w[r, start + 1] = high
    return w


def _near_ties(case: Case) -> np.ndarray:
    """Half-integers times an awkward scale, and their two neighbours in float32: multiplying by a
    reciprocal in place of dividing, or rounding half away from zero, changes codes here."""
    asym = case.scheme.endswith("_asym")
    levels = 255 if "int8" in case.scheme else 15
    divisor = {"int4_clip": 7, "int4_fullrange": 8, "int8_sym": 127}.get(case.scheme, levels)
    bits = random_bits(case.seed, case.rows * case.cols).reshape(case.rows, case.cols)
    spans = uniforms(case.seed + "/spans", 2 * case.rows * case.cols)
    w = np.empty((case.rows, case.cols), dtype=np.float32)
    for i, (r, g, start, stop) in enumerate(_groups(case)):
        high = np.float32(0.05 + spans[2 * i])
        low = np.float32(-0.05 - spans[2 * i + 1]) if asym else -high
        scale = (high - low if asym else high) / np.float32(divisor)
        lowest = int(np.ceil(low / scale))
        steps = int(np.floor(high / scale)) - lowest
        level = lowest + (bits[r, start:stop] % np.uint64(max(steps, 1))).astype(np.float32)
        tie = scale * (level + np.float32(0.5))
        side = (bits[r, start:stop] >> np.uint64(40)) % np.uint64(3)
        tie = np.where(side == 1, np.nextafter(tie, np.float32(-9)), tie)
        tie = np.where(side == 2, np.nextafter(tie, np.float32(9)), tie)
        w[r, start:stop] = np.clip(tie, low, high)
        w[r, start] = high if (r + g) % 2 and not asym else low
        if stop - start > 1 and asym:
            w[r, start + 1] = high
    return w


def _zeros(case: Case) -> np.ndarray:
    w = bell(case.seed, case.rows, case.cols)
    for r, g, start, stop in _groups(case):
        if (r + g) % 2 == 0:
            w[r, start:stop] = 0.0
            w[r, start:stop:2] = -0.0
    return w


def _mixed(case: Case) -> np.ndarray:
    """Neighbouring groups differ by up to 2**60: a scale read from the wrong group shows."""
    w = bell(case.seed, case.rows, case.cols)
    for r, g, start, stop in _groups(case):
        w[r, start:stop] *= 2.0 ** (((r * 7 + g * 13) % 61) - 30)
    return w


def _one_sided(case: Case) -> np.ndarray:
    w = np.abs(bell(case.seed, case.rows, case.cols)) + 2.0**-10
    w[1::2] *= -1.0
    return w


def _balanced(case: Case) -> np.ndarray:
    """max == -min in every group of two or more: the sign rule of the full range at its tie."""
    w = bell(case.seed, case.rows, case.cols)
    for r, g, start, stop in _groups(case):
        absmax = np.abs(w[r, start:stop]).max()
        w[r, start] = absmax if (r + g) % 2 else -absmax
        w[r, stop - 1] = -absmax if (r + g) % 2 else absmax
    return w


def _spike(case: Case) -> np.ndarray:
    w = bell(case.seed, case.rows, case.cols)
    for r, g, start, stop in _groups(case):
        w[r, start + (r + 3 * g) % (stop - start)] *= 1000.0
    return w


def _scaled(exponent: int) -> object:
    return lambda case: bell(case.seed, case.rows, case.cols) * 2.0**exponent


KINDS = {
    "normal": _scaled(0),
    "ties": _ties,
    "near_ties": _near_ties,
    "zeros": _zeros,
    "tiny": _scaled(-128),  # subnormal scales
    "huge": _scaled(130),  # max - min stays finite in float32
    "mixed": _mixed,
    "one_sided": _one_sided,
    "balanced": _balanced,
    "spike": _spike,
}


def weights(case: Case) -> np.ndarray:
    """float32 [case.rows, case.cols]."""
    return KINDS[case.kind](case).astype(np.float32)


INTEGER_SCHEMES = ("int4_clip", "int4_fullrange", "int4_asym", "int8_sym", "int8_asym")
INTEGER_GROUP_SIZES = (-1, 16, 24, 32, 64, 128, 4096)
_INTEGER_MATRICES = (
    ("normal", 5, 257),
    ("normal", 3, 130),
    ("normal", 8, 128),
    ("normal", 7, 1),
    ("normal", 1, 1),
    ("ties", 4, 200),
    ("ties", 3, 64),
    ("near_ties", 4, 160),
    ("zeros", 4, 96),
    ("zeros", 3, 77),
    ("zeros", 2, 1),
    ("tiny", 3, 70),
    ("huge", 3, 70),
    ("mixed", 4, 192),
    ("one_sided", 4, 65),
    ("one_sided", 2, 3),
    ("balanced", 4, 97),
    ("spike", 3, 128),
)
INTEGER_CASES = tuple(
    Case(scheme, kind, rows, cols, group_size)
    for scheme in INTEGER_SCHEMES
    for group_size in INTEGER_GROUP_SIZES
    for kind, rows, cols in _INTEGER_MATRICES
)
# One group per matrix: only there does a ratio per layer equal a ratio per group.
SEARCH_CASES = tuple(
    Case(scheme, kind, 1, cols, -1)
    for scheme in INTEGER_SCHEMES
    for kind in ("normal", "spike", "one_sided")
    for cols in (32, 64, 128, 129)
)

TABLE_SCHEMES = ("nf4", "fp4")
_TABLE_MATRICES = (
    ("normal", 4, 256),
    ("zeros", 4, 256),
    ("tiny", 2, 256),
    ("huge", 2, 256),
    ("mixed", 3, 512),
    ("one_sided", 2, 256),
    ("balanced", 2, 256),
    ("spike", 3, 256),
)
# bitsandbytes blocks run over the flattened tensor: they are our groups only where the block size
# divides K. Its 32 is our default.
TABLE_CASES = tuple(
    Case(scheme, kind, rows, cols, block)
    for scheme in TABLE_SCHEMES
    for block in (32, 64, 128, 256)
    for kind, rows, cols in _TABLE_MATRICES
)
# 1 to 3 blocks of 256 scales, full and ragged.
_NESTED_MATRICES = (
    ("normal", 16),
    ("normal", 64),
    ("normal", 70),
    ("normal", 150),
    ("spike", 80),
    ("mixed", 80),
)
NESTED_CASES = tuple(Case("nf4", kind, rows, 256, 64) for kind, rows in _NESTED_MATRICES)


def digest(cases: tuple[Case, ...]) -> str:
    """SHA-256 over names and weights: the vectors carry it, so that a changed formula shows."""
    sha = hashlib.sha256()
    for case in cases:
        sha.update(case.seed.encode())
        sha.update(weights(case).tobytes())
    return sha.hexdigest()
