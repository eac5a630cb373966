# SPDX-License-Identifier: Apache-2.0
"""What `woq.export` writes, read by the packages of the formats' owners: the same float32 weights,
bit for bit. Run by scripts/test_oracles.sh, with WOQ_ORACLE_PYTHON naming the Python of an
environment with these packages (tests/oracles/read_exported.py); skipped without it. GPTQ's and
bitsandbytes' packers are compared byte for byte in test_foreign_writers.py."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from model_support import llama

import woq
from woq import WeightOnlyQuantConfig

PYTHON = os.environ.get("WOQ_ORACLE_PYTHON")
READER = Path(__file__).parents[1] / "oracles" / "read_exported.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="WOQ_ORACLE_PYTHON names no environment of oracles"),
]

CASES = {
    "ct": ("compressed-tensors", {}),
    "ct int8": ("compressed-tensors", {"weight_dtype": "int8"}),
    "ct asym": ("compressed-tensors", {"scheme": "asym"}),
    "ct channel": ("compressed-tensors", {"group_size": -1}),
    "ct mixed": ("compressed-tensors", {"layer_config": {"down_proj": {"weight_dtype": "int8"}}}),
    "ct w8a8": ("compressed-tensors-int8", {"weight_dtype": "int8", "group_size": -1}),
    "awq": ("awq", {}),
    "awq asym": ("awq", {"scheme": "asym"}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_owners_read_the_same_weights(case: str, tmp_path: Path) -> None:
    form, settings = CASES[case]
    torch.manual_seed(0)
    model = llama(intermediate_size=128, initializer_range=0.2)
    given = {"weight_dtype": "int4", "scale_dtype": "fp16", **settings}
    woq.quantize(model, WeightOnlyQuantConfig(**given))
    woq.export(model, tmp_path / "out", format=form)
    done = subprocess.run(
        [str(PYTHON), str(READER), str(tmp_path / "out"), str(tmp_path / "read.npz")],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    read = dict(np.load(tmp_path / "read.npz"))
    computed = read.pop("logits", None)
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, woq.WeightOnlyLinear)
    }
    assert read.keys() == layers.keys()
    for name, layer in layers.items():
        np.testing.assert_array_equal(read[name], layer.dequantize().numpy(), err_msg=name)
    if computed is not None:
        with torch.no_grad():
            ours = model(torch.arange(12)[None]).logits.numpy()
        if form == "compressed-tensors-int8":
            # Inputs are rounded to 8 bits: steps of 1/127 of the largest, some three deviations
            # from 0, have an error of 3 / 127 / sqrt(12) = 0.7 % of one, and 14 layers add theirs.
            assert np.std(computed - ours) < 0.007 * 14**0.5 * 2 * np.std(ours)
            return
        # The same weights, summed in another order: K is at most 128, logits below 16.
        np.testing.assert_allclose(computed, ours, atol=1e-4)
