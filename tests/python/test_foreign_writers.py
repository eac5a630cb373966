# SPDX-License-Identifier: Apache-2.0
"""Tensors for other libraries' checkpoints: the bytes that their own packers made
(tests/formats/fixtures) come out again, and whatever goes through a writer and a reader is the same
matrix, bit for bit. What a format has no place for is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from model_support import seed
from safetensors import safe_open

import woq
from woq.core import native
from woq.formats.foreign.methods import foreign_format

FIXTURES = Path(__file__).parents[1] / "formats" / "fixtures"
INTEGERS = {
    traits.bits: name
    for name in native.dtype_names()
    if (traits := native.dtype_traits(name)).is_integer and not traits.signed_scale
}


def as_torch(tensors):
    return {
        name: torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        if array.dtype == np.uint16
        else torch.from_numpy(array)
        for name, array in tensors.items()
    }


def write(config, matrix, scales):
    """The tensors of a format that has this quantization_config."""
    method = config["quant_method"]
    if method == "awq":
        return native.write_awq(matrix, scales=scales)
    if method == "bitsandbytes":
        return native.write_bitsandbytes4(matrix)
    if method == "compressed-tensors":
        packed = config["format"] == "pack-quantized"
        each = native.write_compressed_packed if packed else native.write_compressed_int
        return each(matrix, scales=scales)
    return native.write_gptq(matrix, v2=config["checkpoint_format"] == "gptq_v2", scales=scales)


def has_zero(zero_points):
    return zero_points is not None and bool((zero_points == 0).any())


def owned():
    """The fixtures of formats that are written, and that the hub holds."""
    for stem in ("gptq", "gptq_more", "gptq_v2", "awq", "compressed_pack", "compressed_int"):
        yield from cases(stem)
    for case in cases("bitsandbytes"):
        config, tensors = case.values
        if not config["load_in_8bit"] and tensors["expected"].shape[1] % 64 == 0:
            yield case


def cases(stem):
    with safe_open(FIXTURES / f"{stem}.safetensors", "pt") as file:
        for name, text in sorted(file.metadata().items()):
            config = json.loads(text)
            if not isinstance(config, dict):
                continue
            weights = [each["weights"] for each in config.get("config_groups", {}).values()]
            widths = {each["num_bits"] for each in weights} or {config.get("bits", 4)}
            if not widths <= INTEGERS.keys():
                continue
            tensors = {
                key.removeprefix(f"{name}."): file.get_tensor(key)
                for key in file.keys()  # noqa: SIM118 (not a dict)
                if key.startswith(f"{name}.")
            }
            yield pytest.param(config, tensors, id=f"{stem}-{name}")


@pytest.mark.parametrize(("config", "tensors"), list(owned()))
def test_the_bytes_are_those_of_the_formats_owner(config, tensors):
    expected = tensors.pop("expected")
    matrix, _ = foreign_format(config).read(tensors, *expected.shape)
    stored = tensors.get("scales", tensors.get("weight_scale"))
    scales = "float32" if stored is None else str(stored.dtype).removeprefix("torch.")
    if config.get("checkpoint_format") == "gptq" and has_zero(matrix.zero_points()):
        # v1 has no number for a zero point of 0, which GPTQModel's borrowing gives it.
        with pytest.raises(woq.Unsupported, match="write gptq_v2"):
            write(config, matrix, scales)
        return
    written = as_torch(write(config, matrix, scales))
    prefix = "weight." if config["quant_method"] == "bitsandbytes" else ""
    for name, tensor in written.items():
        key = name if name == "weight" else prefix + name
        if key not in tensors:
            assert name in ("weight_shape", "qzeros", "g_idx")
            continue
        given = tensors[key]
        if name == "weight" and prefix:
            given = given.reshape(-1).view(torch.uint8).reshape(-1, 1)
        assert tensor.dtype == given.dtype, name
        assert torch.equal(tensor, given), name
    left = {key.removeprefix(prefix) for key in tensors} - written.keys()
    assert {key for key in left if "quant_state" not in key} <= {"bias"}


def matrix_of(rng, bits, rows, cols, group_size, *, asym, signed=False):
    """Any codes, scales that float16 and bfloat16 have, zero points from the smallest code to the
    largest; and the weight, computed by numpy."""
    length = cols if group_size == -1 else min(group_size, cols)
    groups = -(-cols // length)
    codes = rng.integers(0, 2**bits, (rows, cols), dtype=np.uint8)
    scales = (rng.integers(0, 128, (rows, groups)) / 1024).astype(np.float32)  # 0 among them
    if signed:
        scales *= rng.choice([-1, 1], scales.shape).astype(np.float32)
    zeros = None
    if asym:
        zeros = rng.integers(0, 2**bits, (rows, groups)).astype(np.float32)
        zeros.flat[:2] = [2**bits - 1, 0][: zeros.size]
    scheme = native.QuantScheme(INTEGERS[bits], group_size, "int" if asym else "none", "fp32")
    matrix = native.QuantizedMatrix.from_codes(codes, scales, zeros, scheme)
    group_of = np.arange(cols) // length
    center = np.full((rows, groups), 2 ** (bits - 1), np.float32) if zeros is None else zeros
    weight = scales[:, group_of] * (codes.astype(np.float32) - center[:, group_of])
    return matrix, codes, weight


def same(read, matrix, codes, weight):
    np.testing.assert_array_equal(read.codes(), codes)
    np.testing.assert_array_equal(read.scales(), matrix.scales())
    if matrix.zero_points() is not None and read.zero_points() is not None:
        np.testing.assert_array_equal(read.zero_points(), matrix.zero_points())
    np.testing.assert_array_equal(read.dequantize(), weight)


SHAPES = [(1, 1), (1, 64), (3, 17), (8, 96), (40, 130), (64, 256)]


@pytest.mark.parametrize("asym", [False, True], ids=["sym", "asym"])
@pytest.mark.parametrize("group_size", [16, 32, 128, -1])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
@pytest.mark.parametrize("bits", sorted(INTEGERS))
def test_written_and_read_is_the_same_matrix(request, bits, shape, group_size, asym):
    rng = np.random.default_rng(seed(request))
    rows, cols = shape
    for signed in (False, True):
        matrix, codes, weight = matrix_of(
            rng, bits, rows, cols, group_size, asym=asym, signed=signed
        )
        for scales in ("float32", "float16", "bfloat16"):
            packed = as_torch(native.write_compressed_packed(matrix, scales=scales))
            assert packed.pop("weight_shape").tolist() == [rows, cols]
            assert ("weight_zero_point" in packed) == asym
            read = native.read_compressed_packed(packed, rows, cols, bits, group_size)
            same(read, matrix, codes, weight)
        if bits == 8:
            packed = as_torch(native.write_compressed_int(matrix, scales="float16"))
            same(native.read_compressed_int(packed, rows, cols, group_size), matrix, codes, weight)
        if bits in (2, 3, 4, 8):
            packed = as_torch(native.write_gptq(matrix, v2=asym, scales="float16"))
            read, rule = native.read_gptq(
                packed,
                rows,
                cols,
                bits=bits,
                group_size=group_size,
                sym=not asym,
                zeros="v2" if asym else "v1",
            )
            assert ("symmetric" in rule) == (not asym)
            same(read, matrix, codes, weight)
        if bits == 4 and rows % 8 == 0:
            packed = as_torch(native.write_awq(matrix, scales="float16"))
            same(native.read_awq(packed, rows, cols, group_size), matrix, codes, weight)


def test_act_order_goes_to_gptq_and_nowhere_else(request):
    rng = np.random.default_rng(seed(request))
    matrix, codes, _ = matrix_of(rng, 4, 8, 64, 16, asym=False)
    order = rng.permutation(64).astype(np.int32) // 16
    shuffled = matrix.with_g_idx(order)
    assert native.has_act_order(shuffled)
    assert not native.has_act_order(matrix.with_g_idx())
    packed = as_torch(native.write_gptq(shuffled, v2=False, scales="float16"))
    read, _ = native.read_gptq(packed, 8, 64, bits=4, group_size=16, sym=True, zeros="v1")
    np.testing.assert_array_equal(read.codes(), codes)
    np.testing.assert_array_equal(read.dequantize(), shuffled.dequantize())
    for each in (native.write_awq, native.write_compressed_packed):
        with pytest.raises(woq.Unsupported, match=r"act-order \(g_idx\).*desc_act=False"):
            each(shuffled, scales="float16")


@pytest.mark.parametrize("double", [False, True], ids=["plain", "nested"])
@pytest.mark.parametrize("dtype", ["nf4", "fp4_e2m1_bnb"])
def test_tables_of_bitsandbytes_come_back(request, dtype, double):
    rng = np.random.default_rng(seed(request))
    scheme = native.QuantScheme(dtype, 64, "none", "double" if double else "fp32")
    codes = rng.integers(0, 16, (24, 192), dtype=np.uint8)
    scales = rng.uniform(0.01, 0.1, (24, 3)).astype(np.float32)
    matrix = native.QuantizedMatrix.from_codes(codes, scales, None, scheme)
    packed = as_torch(native.write_bitsandbytes4(matrix))
    assert ("nested_absmax" in packed) == double
    np.testing.assert_array_equal(packed.pop("quant_map").numpy(), native.code_values(dtype))
    offset = float(matrix.tensors()["scales_offset"][0]) if double else 0.0
    read = native.read_bitsandbytes4(
        packed, 24, 192, nf4=dtype == "nf4", block_size=64, nested_offset=offset
    )
    same(read, matrix, codes, matrix.dequantize())


def codebook(cols=64, group_size=32):
    scheme = native.QuantScheme("nf4", group_size)
    return native.quantize_rtn(np.ones((8, cols), np.float32), scheme)


def test_what_has_no_place_is_refused_by_name(request):
    rng = np.random.default_rng(seed(request))
    matrix, _, _ = matrix_of(rng, 4, 8, 64, 16, asym=True)
    scaled = matrix.with_act_scales(np.full(64, 0.5, np.float32))
    with pytest.raises(woq.Unsupported, match="act_scales"):
        native.write_awq(scaled, scales="float16")
    with pytest.raises(woq.Unsupported, match="dtype is nf4"):
        native.write_gptq(codebook(), v2=False, scales="float16")
    with pytest.raises(woq.Unsupported, match=r"row 0, group 1 is 0.*write gptq_v2"):
        native.write_gptq(matrix, v2=False, scales="float16")
    odd, _, _ = matrix_of(rng, 4, 12, 64, 16, asym=False)
    with pytest.raises(woq.Unsupported, match="12 rows, and awq packs 8"):
        native.write_awq(odd, scales="float16")
    eight, _, _ = matrix_of(rng, 8, 8, 64, 16, asym=False)
    with pytest.raises(woq.Unsupported, match="codes have 8 bits; awq has 4"):
        native.write_awq(eight, scales="float16")
    with pytest.raises(woq.Unsupported, match="has nf4 and fp4"):
        native.write_bitsandbytes4(matrix)
    with pytest.raises(woq.Unsupported, match="groups of 32 do not divide its rows of 72"):
        native.write_bitsandbytes4(codebook(cols=72))
    with pytest.raises(woq.Unsupported, match=r"groups have 12 columns.*blocks at least 16"):
        native.write_bitsandbytes4(codebook(cols=12, group_size=-1))
    scheme = native.QuantScheme("int4_clip", 16, "float")
    real = native.QuantizedMatrix.from_codes(
        matrix.codes(), matrix.scales(), matrix.zero_points().astype(np.float32) / 2, scheme
    )
    with pytest.raises(woq.Unsupported, match=r"of the kind 'float'.*HQQ's zero points"):
        native.write_compressed_packed(real, scales="float16")


def test_scales_are_exact_or_refused_or_rounded_when_asked():
    scheme = native.QuantScheme("int4_clip", 16)
    codes = np.zeros((8, 32), np.uint8)
    scales = np.full((8, 2), 0.1, np.float32)
    matrix = native.QuantizedMatrix.from_codes(codes, scales, None, scheme)
    message = r"its scale 0\.1 \(and at 15 more places\) is not exact in float16.*round_scales"
    with pytest.raises(woq.Unsupported, match=message):
        native.write_awq(matrix, scales="float16")
    rounded = native.write_awq(matrix, scales="float16", round_scales=True)["scales"]
    np.testing.assert_array_equal(rounded, np.full((2, 8), 0.1, np.float16))
    huge = native.QuantizedMatrix.from_codes(codes, scales * 1e6, None, scheme)
    with pytest.raises(woq.Unsupported, match=r"100000.*too large for float16"):
        native.write_awq(huge, scales="float16", round_scales=True)
    with pytest.raises(woq.InvalidArgument, match="known: float32, float16, bfloat16"):
        native.write_awq(matrix, scales="fp8")
