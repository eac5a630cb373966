# SPDX-License-Identifier: Apache-2.0
"""HQQ on whole models: real zero points, saved and loaded, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import model_support as support
import numpy as np
import pytest
import torch

import woq
from woq import HqqConfig, InvalidArgument, WeightOnlyQuantConfig
from woq.core import native


@pytest.mark.parametrize("bits", [4, 8])
def test_layers_are_those_of_the_core(bits: int) -> None:
    model = support.llama()
    name = "model.layers.1.mlp.down_proj"
    weight = model.get_submodule(name).weight.detach().clone()
    config = HqqConfig(nbits=bits, group_size=32, iters=7, beta=5.0)
    woq.quantize(model, config)
    expected = native.quantize_hqq(
        weight,
        native.QuantScheme("int8" if bits == 8 else "int4_clip", 32, "float"),
        beta=5.0,
        steps=7,
    )
    got = model.get_submodule(name).quantized()
    np.testing.assert_array_equal(got.dequantize(), expected.dequantize())
    assert got.zero_points().dtype == np.float32
    assert {layer.algorithm for layer in model.woq_report.layers} == {"HQQ"}


def test_a_checkpoint_gives_the_same_model(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    support.llama().save_pretrained(tmp_path / "float")
    config = HqqConfig(group_size=32)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "float", quantization_config=config)
    assert {layer.algorithm for layer in model.woq_report.layers} == {"HQQ"}
    woq.save_pretrained(model, tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(support.logits(again), support.logits(model), rtol=0, atol=0)
    stored = again.state_dict()
    again.load_state_dict(stored)
    torch.testing.assert_close(support.logits(again), support.logits(model), rtol=0, atol=0)


def test_the_error_is_below_rtns() -> None:
    def absolute_error(**fields: object) -> float:
        torch.manual_seed(5)
        model = support.llama(hidden_size=128)
        weights = {name: p.detach().clone() for name, p in model.named_parameters()}
        woq.quantize(model, WeightOnlyQuantConfig(scheme="asym", group_size=64, **fields))
        return sum(
            float((layer.dequantize() - weights[f"{name}.weight"]).abs().sum())
            for name, layer in model.named_modules()
            if isinstance(layer, woq.WeightOnlyLinear)
        )

    assert absolute_error(algorithm="HQQ") < 0.98 * absolute_error()
    assert absolute_error(algorithm="HQQ", algorithm_args={"iters": 0}) == absolute_error()


def test_the_config_is_the_canonical_one() -> None:
    config = HqqConfig(nbits=8, group_size=128, skip_modules=["x"], lp_norm=0.5)
    plain = WeightOnlyQuantConfig(
        algorithm="hqq",
        weight_dtype="int8",
        scheme="asym",
        group_size=128,
        modules_to_not_convert=["x"],
        algorithm_args={"lp_norm": 0.5},
    )
    assert config == plain
    assert HqqConfig.from_dict(config.to_dict()) == config
    assert not config.needs_calibration
    assert config.algorithm_args == {
        "iters": 20,
        "lp_norm": 0.5,
        "beta": 10.0,
        "kappa": 1.01,
    }


def test_what_has_no_zero_points_is_refused() -> None:
    for fields in ({"weight_dtype": "int4_clip"}, {"weight_dtype": "nf4"}):
        with pytest.raises(InvalidArgument, match="HQQ finds zero points: it needs scheme='asym'"):
            WeightOnlyQuantConfig(algorithm="HQQ", **fields)
    with pytest.raises(InvalidArgument, match="asymmetric"):
        WeightOnlyQuantConfig(algorithm="HQQ", weight_dtype="nf4", scheme="asym")
    with pytest.raises(InvalidArgument, match="axis must be 1"):
        HqqConfig(axis=0)
    with pytest.raises(InvalidArgument, match="nbits must be 2 to 8"):
        HqqConfig(nbits=9)
    with pytest.raises(InvalidArgument, match="lp_norm must be a number above 0 and at most 1"):
        HqqConfig(lp_norm=1.5)
    with pytest.raises(InvalidArgument, match="'beta'"):
        HqqConfig(betta=3)
    with pytest.raises(InvalidArgument, match="imatrix is for algorithm RTN; HQQ"):
        WeightOnlyQuantConfig(algorithm="HQQ", scheme="asym", imatrix="x.gguf")
