# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of earlier versions are read and written bit for bit.

tests/oracles/stored_checkpoints.py made them.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import woq

FOLDER = Path(__file__).parents[1] / "models" / "stored"
CASES = sorted(path.name for path in FOLDER.iterdir())


def test_every_form_is_there() -> None:
    assert CASES == [
        "awq",
        "gptq_desc_act",
        "hqq",
        "int4_clip_asym",
        "int4_fullrange_double",
        "int8_fp16",
        "nf4_double",
    ]


@pytest.mark.parametrize("name", CASES)
def test_layers_are_what_they_were(name: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(FOLDER / name)
    stored = load_file(FOLDER / name / "model.safetensors")
    digests = json.loads((FOLDER / name / "digests.json").read_text())
    layers = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, woq.WeightOnlyLinear)
    }
    assert set(layers) == set(digests)
    for path, layer in layers.items():
        for key, tensor in layer.stored_tensors().items():
            expected = stored[f"{path}.{key}"]
            assert tensor.dtype == expected.dtype, f"{path}.{key}"
            assert torch.equal(tensor, expected), f"{path}.{key}"
        values = layer.dequantize().numpy()
        assert hashlib.sha256(values.tobytes()).hexdigest() == digests[path], path


@pytest.mark.parametrize("name", CASES)
def test_they_are_written_as_they_were(name: str, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(FOLDER / name)
    model.save_pretrained(tmp_path)
    expected = (FOLDER / name / "model.safetensors").read_bytes()
    assert (tmp_path / "model.safetensors").read_bytes() == expected
    old, new = (
        json.loads((folder / "config.json").read_text())["quantization_config"]
        for folder in (FOLDER / name, tmp_path)
    )
    assert new == old
