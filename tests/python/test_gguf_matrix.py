# SPDX-License-Identifier: Apache-2.0
"""GGUF's quantized tensors as matrices of the hub: ggml's values, bit for bit.

The oracles are the values of libgguf in tests/formats, and the package gguf on random blocks, which
have every code and sub-scale, signs and numbers that no quantizer writes.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from model_support import seed
from safetensors import safe_open

from woq import InvalidArgument, Unsupported
from woq.core import native

FIXTURES = Path(__file__).parents[1] / "formats" / "fixtures" / "gguf.safetensors"

# Where fp16 numbers lie in a block; random bytes there would often be infinite or NaN.
HALVES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "IQ4_NL": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
    "IQ4_XS": [0], "TQ1_0": [52], "TQ2_0": [64], "MXFP4": [], "NVFP4": [],
}  # fmt: skip


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.astype("<f4").tobytes() == b.astype("<f4").tobytes()


def fixture_cases() -> list[str]:
    with safe_open(FIXTURES, "np") as file:
        return sorted(file.metadata())


@pytest.mark.parametrize("case", fixture_cases())
def test_fixtures(case: str) -> None:
    with safe_open(FIXTURES, "np") as file:
        config = json.loads(file.metadata()[case])
        data, expected = file.get_tensor(f"{case}.weight"), file.get_tensor(f"{case}.expected")
    matrix = native.read_gguf_matrix(config["type"], data, *config["shape"])
    assert same_bits(matrix.dequantize(), expected)
    # Two codes that change places are noticed.
    other = data.copy()
    other[0, [-3, -2]] = other[0, [-2, -3]] ^ np.uint8(1)
    again = native.read_gguf_matrix(config["type"], other, *config["shape"])
    assert not same_bits(again.dequantize(), expected)


@pytest.mark.parametrize("name", HALVES)
def test_random_blocks(name: str, request: pytest.FixtureRequest) -> None:
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType[name]
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(seed(request))
    rows, blocks = 37, 5
    data = rng.integers(0, 256, (rows, blocks, size), dtype=np.uint8)
    for at in HALVES[name]:
        halves = rng.normal(0, 0.01, (rows, blocks)).astype(np.float16)
        halves[rng.random((rows, blocks)) < 0.1] = 0
        halves[0, 0] = np.float16(6e-8)  # subnormal
        data[:, :, at : at + 2] = halves.view(np.uint8).reshape(rows, blocks, 2)
    if name == "MXFP4":
        data[:, :, 0] %= 252  # 6 * 2^126 does not fit fp32
    if name == "NVFP4":
        data[:, :, :4] &= 127
    data = data.reshape(rows, blocks * size)
    expected = gguf.quants.dequantize(data, kind)
    matrix = native.read_gguf_matrix(name, data, rows, blocks * elements)
    assert same_bits(matrix.dequantize(), expected)
    order = rng.permutation(rows)
    permuted = native.read_gguf_matrix(name, data, rows, blocks * elements, order.tolist(), 2)
    assert same_bits(permuted.dequantize(), expected[order])
    # The kernels' layout keeps them, and rows that are gathered from it are the same.
    layer = native.Linear(matrix)
    assert same_bits(layer.unpack().dequantize(), expected)
    out = np.empty_like(expected)
    layer.gather(order.astype(np.int64), out)
    assert same_bits(out, expected[order])


def test_ternary_codes_of_q2_0() -> None:
    """The type that the package gguf does not know yet: d (q - 1), 64 codes behind d."""
    codes = np.arange(64) * 7 % 4
    packed = (codes.reshape(16, 4) << np.array([0, 2, 4, 6])).sum(1).astype(np.uint8)
    data = np.concatenate([np.array([-0.375], np.float16).view(np.uint8), packed])
    matrix = native.read_gguf_matrix("Q2_0", data, 1, 64)
    assert same_bits(matrix.dequantize()[0], np.float32(-0.375) * (codes - 1).astype(np.float32))


def test_refusals() -> None:
    data = np.zeros(66, np.uint8)
    with pytest.raises(Unsupported, match=r"IQ2_XXS cannot run packed; those that can: Q4_0"):
        native.read_gguf_matrix("IQ2_XXS", data, 1, 256)
    assert not native.is_gguf_matrix("IQ2_XXS")
    assert native.is_gguf_matrix("Q4_K")
    with pytest.raises(InvalidArgument, match="unknown type"):
        native.read_gguf_matrix("Q9_K", data, 1, 256)
    with pytest.raises(InvalidArgument, match="uint8"):
        native.read_gguf_matrix("Q4_0", np.zeros(18, np.int8), 1, 32)
    with pytest.raises(InvalidArgument, match=r"takes 2 x 18 bytes, got 66"):
        native.read_gguf_matrix("Q4_0", data, 2, 32)
