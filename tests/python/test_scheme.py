# SPDX-License-Identifier: Apache-2.0
"""QuantScheme: the form in which a number format crosses every border."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from woq import InvalidArgument, QuantizedMatrix, WeightOnlyQuantConfig, quantize_rtn
from woq.core import native
from woq.core.native import QuantScheme


def test_fields_and_what_follows_from_them() -> None:
    scheme = QuantScheme("int4", 64, "int", "bf16")
    assert (scheme.dtype, scheme.group_size) == ("int4_clip", 64)
    assert (scheme.zeros, scheme.scales) == ("int", "bf16")
    assert (scheme.asym, scheme.bits) == (True, 4)
    assert (scheme.group_length(100), scheme.groups(100)) == (64, 2)
    assert (QuantScheme("nf4", -1).group_length(100), QuantScheme("nf4", -1).groups(100)) == (
        100,
        1,
    )
    assert repr(scheme) == (
        "QuantScheme(dtype='int4_clip', group_size=64, zeros='int', scales='bf16')"
    )
    assert eval(repr(scheme), {"QuantScheme": QuantScheme}) == scheme


def test_it_is_frozen_comparable_and_hashable() -> None:
    scheme = QuantScheme("int8", 16)
    with pytest.raises(AttributeError):
        scheme.dtype = "nf4"  # type: ignore[misc]
    assert scheme == QuantScheme("int8", 16)
    assert scheme != QuantScheme("int8", 24)
    assert scheme != "int8"
    assert len({scheme, QuantScheme("int8", 16), scheme.replace(zeros="float")}) == 2
    assert scheme.replace(scales="double") == QuantScheme("int8", 16, "none", "double")


@pytest.mark.parametrize("dtype", native.dtype_names())
@pytest.mark.parametrize("scales", ["fp32", "fp16", "bf16", "double"])
def test_it_survives_json_and_pickle(dtype: str, scales: str) -> None:
    for zeros in ("none", "int", "float") if dtype.startswith("int") else ("none",):
        scheme = QuantScheme(dtype, 32, zeros, scales)
        assert QuantScheme.from_dict(json.loads(json.dumps(scheme.to_dict()))) == scheme
        assert pickle.loads(pickle.dumps(scheme)) == scheme


def test_the_spellings_of_configs_are_read() -> None:
    scheme = QuantScheme("int4_clip", 32, "int", "double")
    fields = {"dtype": "int4_clip", "asym": True, "scale_dtype": "fp32", "double_quant": True}
    assert QuantScheme.from_dict(fields) == scheme
    assert {name: scheme[name] for name in fields} == fields
    weight = np.random.default_rng(0).standard_normal((3, 32), dtype=np.float32)
    assert quantize_rtn(weight, **fields).scheme == quantize_rtn(weight, scheme).scheme == scheme
    with pytest.raises(KeyError):
        scheme["bit"]
    with pytest.raises(InvalidArgument, match="not both"):
        quantize_rtn(weight, scheme, dtype="nf4")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("int9",), "unknown weight dtype 'int9'; known: int8"),
        (("int8", 20), "group_size 20 is not supported"),
        (("int8", 32, "both"), "unknown kind of zero points 'both'; known: none, int, float"),
        (("nf4", 32, "int"), "'nf4' has no asymmetric form"),
        (("int8", 32, "none", "fp8"), "unknown scale dtype 'fp8'; known: fp32, fp16, bf16, double"),
    ],
)
def test_what_is_no_scheme_is_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        QuantScheme(*arguments)  # type: ignore[arg-type]


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="no field 'bits'; known: dtype, group_size"):
        QuantScheme.from_dict({"bits": 4})
    with pytest.raises(InvalidArgument, match="group_size must be an integer, got 'x'"):
        QuantScheme.from_dict({"group_size": "x"})


def test_a_config_names_its_scheme() -> None:
    config = WeightOnlyQuantConfig(weight_dtype="int8", scheme="asym", use_double_quant=True)
    assert config.number_format() == QuantScheme("int8", 32, "int", "double")
    assert WeightOnlyQuantConfig(
        algorithm="HQQ", weight_dtype="int8", scheme="asym"
    ).number_format() == QuantScheme("int8", 32, "float")


def test_traits_are_the_cores() -> None:
    traits = native.dtype_traits("int4")
    assert (traits.name, traits.bits, traits.center, traits.max_code) == ("int4_clip", 4, 8, 15)
    assert traits.is_integer
    assert not traits.signed_scale
    assert native.dtype_traits("int4_fullrange").signed_scale
    for name in native.dtype_names():
        assert np.array_equal(native.dtype_traits(name).values, native.code_values(name))


def test_a_matrix_from_its_parts() -> None:
    weight = np.random.default_rng(1).standard_normal((5, 40), dtype=np.float32)
    for scheme in (
        QuantScheme("int4_clip", 16, "int", "fp16"),
        QuantScheme("nf4", 24),
        QuantScheme("int8", -1, "none", "bf16"),
    ):
        matrix = quantize_rtn(weight, scheme)
        zeros = matrix.zero_points()
        zeros = None if zeros is None else zeros.astype(np.float32)
        again = QuantizedMatrix.from_codes(matrix.codes(), matrix.scales(), zeros, scheme)
        assert again.scheme == scheme
        for name, tensor in matrix.tensors().items():
            np.testing.assert_array_equal(again.tensors()[name], tensor, err_msg=name)
        np.testing.assert_array_equal(matrix.dequantize_rows(1, 4), matrix.dequantize()[1:4])
    codes = matrix.codes().copy()
    with pytest.raises(InvalidArgument, match=r"scales has shape \[5, 2\], expected \[5, 1\]"):
        QuantizedMatrix.from_codes(codes, np.ones((5, 2), np.float32), None, scheme)


def test_groups_and_multipliers_are_added() -> None:
    weight = np.random.default_rng(2).standard_normal((5, 40), dtype=np.float32)
    matrix = quantize_rtn(weight, QuantScheme("int8", 16))
    assert not matrix.has_g_idx
    assert not matrix.has_act_scales
    neutral = matrix.with_g_idx()
    assert neutral.has_g_idx
    np.testing.assert_array_equal(neutral.tensors()["g_idx"], np.arange(40) // 16)
    np.testing.assert_array_equal(neutral.dequantize(), matrix.dequantize())
    factors = np.linspace(0.5, 2, 40, dtype=np.float32)
    scaled = matrix.with_act_scales(factors)
    np.testing.assert_array_equal(scaled.dequantize(), matrix.dequantize() * factors)
    names = native.stored_tensors(scaled.scheme, 5, 40, has_act_scales=True)
    assert {name: (array.shape, str(array.dtype)) for name, array in scaled.tensors().items()} == (
        names
    )
    with pytest.raises(InvalidArgument, match="act_scales has 39 elements, expected 40"):
        matrix.with_act_scales(factors[1:])
    with pytest.raises(InvalidArgument, match="g_idx puts more than 16 columns into group 0"):
        matrix.with_g_idx(np.zeros(40, np.int32))
