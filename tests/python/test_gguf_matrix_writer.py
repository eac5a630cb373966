# SPDX-License-Identifier: Apache-2.0
"""Tensors of GGUF from matrices of the hub: llama.cpp's bytes (tests/formats) come out again, and
the package gguf reads the weights that numpy computes. What a type does not hold exactly is
refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from model_support import seed
from safetensors import safe_open

import woq
from woq.core import native

FIXTURES = Path(__file__).parents[1] / "formats" / "fixtures" / "gguf.safetensors"


def cases():
    with safe_open(FIXTURES, "np") as file:
        for name, text in sorted(file.metadata().items()):
            config = json.loads(text)
            if isinstance(config, dict) and native.is_gguf_matrix(config.get("type", "I8")):
                data = file.get_tensor(f"{name}.weight")
                yield pytest.param(config["type"], config["shape"], data, id=name)


@pytest.mark.parametrize(("kind", "shape", "data"), list(cases()))
def test_the_bytes_come_out_again(kind, shape, data):
    matrix = native.read_gguf_matrix(kind, data, *shape)
    written = native.write_gguf_matrix(matrix, kind)
    if kind in ("MXFP4", "NVFP4"):  # what they have two spellings for
        again = native.read_gguf_matrix(kind, written, *shape)
        assert again.dequantize().tobytes() == matrix.dequantize().tobytes()
        assert np.mean(written.reshape(-1) != data.reshape(-1)) < 0.1
    else:
        assert written.tobytes() == data.tobytes()
    assert native.gguf_type_for(matrix) == kind


def matrix_of(rng, bits, rows, cols, group_size, zeros="none"):
    """Codes, scales of few bits (either sign, and 0), zero points; and the weight, by numpy."""
    length = cols if group_size == -1 else group_size
    groups = cols // length
    codes = rng.integers(0, 2**bits, (rows, cols), dtype=np.uint8)
    scales = (rng.integers(-127, 128, (rows, groups)) / 1024).astype(np.float32)
    center = np.full((rows, groups), 2 ** (bits - 1), np.float32)
    points = None
    if zeros == "int":
        points = center = rng.integers(0, 2**bits, (rows, groups)).astype(np.float32)
    scheme = native.QuantScheme("int8" if bits == 8 else "int4_clip", group_size, zeros)
    matrix = native.QuantizedMatrix.from_codes(codes, scales, points, scheme)
    group_of = np.arange(cols) // length
    return matrix, scales[:, group_of] * (codes.astype(np.float32) - center[:, group_of])


@pytest.mark.parametrize("group_size", [32, 64, -1])
@pytest.mark.parametrize(("kind", "bits", "zeros"), [
    ("Q4_0", 4, "none"), ("Q4_1", 4, "int"), ("Q8_0", 8, "none"),
])  # fmt: skip
def test_ggufs_own_package_reads_the_same_weight(request, kind, bits, zeros, group_size):
    gguf = pytest.importorskip("gguf")
    rng = np.random.default_rng(seed(request))
    matrix, weight = matrix_of(rng, bits, 5, 128, group_size, zeros)
    data = native.write_gguf_matrix(matrix, kind)
    read = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])
    np.testing.assert_array_equal(read, weight)
    again = native.read_gguf_matrix(kind, data, 5, 128)
    np.testing.assert_array_equal(again.codes(), matrix.codes())
    np.testing.assert_array_equal(again.dequantize(), weight)


@pytest.mark.parametrize(("bits", "kind"), [(2, "Q4_0"), (3, "Q4_0"), (5, "Q5_0"), (6, "Q8_0")])
def test_the_next_wider_type_holds_codes_of_few_bits(request, bits, kind):
    gguf = pytest.importorskip("gguf")
    rng = np.random.default_rng(seed(request))
    codes = rng.integers(0, 2**bits, (3, 64), dtype=np.uint8)
    scales = (rng.integers(-127, 128, (3, 2)) / 1024).astype(np.float32)
    scheme = native.QuantScheme(f"int{bits}", 32)
    matrix = native.QuantizedMatrix.from_codes(codes, scales, None, scheme)
    assert native.gguf_type_for(matrix) == kind
    data = native.write_gguf_matrix(matrix, kind)
    read = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])
    expected = np.repeat(scales, 32, 1) * (codes.astype(np.float32) - 2 ** (bits - 1))
    np.testing.assert_array_equal(read, expected)


def test_what_two_level_scales_and_factors_hold_is_checked(request):
    """Sub-scales that Q3_K's 6 bits, and signs that NVFP4's scales have not; a matrix's factor."""
    rng = np.random.default_rng(seed(request))
    data = rng.integers(0, 256, (2, 110), dtype=np.uint8)
    data[:, 108:] = [0, 0x30]  # a finite scale
    tensors = native.read_gguf_matrix("Q3_K", data.reshape(-1), 2, 256).tensors()
    scales = tensors["scales"].copy()
    scales[1, 3] = 32
    scheme = native.QuantScheme("int3", 16, "none", "two_level")
    wide = native.QuantizedMatrix.from_tensors(
        {**tensors, "scales": scales}, rows=2, cols=256, scheme=scheme
    )
    with pytest.raises(woq.Unsupported, match="a sub-scale is 32, and Q3_K has -32 to 31"):
        native.write_gguf_matrix(wide, "Q3_K")
    data = rng.integers(0, 126, (2, 36), dtype=np.uint8)
    tensors = native.read_gguf_matrix("NVFP4", data.reshape(-1), 2, 64).tensors()
    scheme = native.QuantScheme("fp4_e2m1", 16, "none", "e4m3")
    for name, value, message in (
        ("scales_factor", np.float32([2, 1]), "a factor of the whole matrix, 2 / 1"),
        ("scales", tensors["scales"] | 128, "a scale is negative, and those of NVFP4"),
    ):
        changed = native.QuantizedMatrix.from_tensors(
            {**tensors, name: value}, rows=2, cols=64, scheme=scheme
        )
        with pytest.raises(woq.Unsupported, match=message):
            native.write_gguf_matrix(changed, "NVFP4")


def test_what_is_not_exact_is_refused(request):
    rng = np.random.default_rng(seed(request))
    sym, _ = matrix_of(rng, 4, 4, 64, 32)
    asym, _ = matrix_of(rng, 4, 4, 64, 32, "int")
    with pytest.raises(woq.Unsupported, match="kind 'int', and Q4_0 is symmetric"):
        native.write_gguf_matrix(asym, "Q4_0")
    with pytest.raises(woq.Unsupported, match="kind 'none', and Q4_1 is for integer zero points"):
        native.write_gguf_matrix(sym, "Q4_1")
    wide, _ = matrix_of(rng, 8, 4, 64, 32)
    with pytest.raises(woq.Unsupported, match="dtype is int8, and Q4_0 has int4_clip"):
        native.write_gguf_matrix(wide, "Q4_0")
    with pytest.raises(woq.Unsupported, match="dtype is int4_clip, and IQ4_NL has iq4_nl"):
        native.write_gguf_matrix(sym, "IQ4_NL")
    with pytest.raises(woq.Unsupported, match="type IQ2_S are not written; known: Q4_0"):
        native.write_gguf_matrix(sym, "IQ2_S")
    with pytest.raises(woq.Unsupported, match="act-order"):
        native.write_gguf_matrix(sym.with_g_idx(np.arange(64, dtype=np.int32) % 2), "Q4_0")
    with pytest.raises(woq.Unsupported, match="act_scales"):
        native.write_gguf_matrix(sym.with_act_scales(np.full(64, 2, np.float32)), "Q4_0")
    narrow, _ = matrix_of(rng, 4, 4, 64, 16)
    with pytest.raises(woq.Unsupported, match="groups of 16 are no blocks of 32"):
        native.write_gguf_matrix(narrow, "Q4_0")
    scheme = native.QuantScheme("int4_clip", 32)
    scales = np.full((4, 2), 0.1, np.float32)
    inexact = native.QuantizedMatrix.from_codes(sym.codes(), scales, None, scheme)
    with pytest.raises(woq.Unsupported, match=r"scale 0\.1 is not exact in float16, in which Q4_0"):
        native.write_gguf_matrix(inexact, "Q4_0")
    scales = np.full((4, 2), 1 + 2**-10, np.float32)  # 13 times it needs four bits more
    zeros = np.full((4, 2), 13, np.float32)
    scheme = native.QuantScheme("int4_clip", 32, "int")
    inexact = native.QuantizedMatrix.from_codes(sym.codes(), scales, zeros, scheme)
    with pytest.raises(woq.Unsupported, match=r"minimum -13\.0127 is not exact in float16"):
        native.write_gguf_matrix(inexact, "Q4_1")
