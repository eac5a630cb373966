# SPDX-License-Identifier: Apache-2.0
"""GPTQ and AWQ folders that `woq.export` wrote, loaded by transformers with GPTQModel. Run by
scripts/test_oracles.sh, with WOQ_GPTQMODEL_PYTHON naming the Python of an environment that has it
(tests/oracles/run_gptqmodel.py); skipped without it."""

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

PYTHON = os.environ.get("WOQ_GPTQMODEL_PYTHON")
RUN = Path(__file__).parents[1] / "oracles" / "run_gptqmodel.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="WOQ_GPTQMODEL_PYTHON names no environment of GPTQModel"),
]

CASES = {
    "gptq": ("gptq", {}),
    "gptq_v2": ("gptq", {"scheme": "asym"}),
    "gptq in 8 bits": ("gptq", {"weight_dtype": "int8"}),
    "awq": ("awq", {}),
    "awq asym": ("awq", {"scheme": "asym"}),
}


@pytest.mark.parametrize("case", CASES)
def test_gptqmodel_computes_what_the_model_computes(case: str, tmp_path: Path) -> None:
    form, settings = CASES[case]
    torch.manual_seed(0)
    model = llama(hidden_size=128, intermediate_size=256, initializer_range=0.2)
    woq.quantize(
        model,
        WeightOnlyQuantConfig(
            **{"weight_dtype": "int4", "scale_dtype": "fp16", "compute_dtype": "fp32", **settings}
        ),
    )
    report = woq.export(model, tmp_path / "out", format=form)
    assert any("gptqmodel" in place for place in report.loads_in)
    tokens = np.arange(3, 15)
    np.save(tmp_path / "tokens.npy", tokens)
    done = subprocess.run(
        [str(PYTHON), str(RUN), *(str(tmp_path / name) for name in ("out", "tokens.npy", "o.npz"))],
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    read = np.load(tmp_path / "o.npz")
    assert str(read["layer"]).startswith("gptqmodel.")
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens)[None]).logits[0].float().numpy()
    # Its kernels round weights and inputs to float16, 2^-11 each, in 14 products one after the
    # other; a zero point that is off by one changes logits by their own size.
    error = np.linalg.norm(read["logits"] - logits) / np.linalg.norm(logits)
    assert error < 14 * 2**-11
