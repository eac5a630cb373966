# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of every version of the format are read bit for bit, and those of the present one are
written so.

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

MODELS = Path(__file__).parents[1] / "models"
FOLDERS = {1: MODELS / "stored", 2: MODELS / "stored_2"}
CASES = sorted(path.name for path in FOLDERS[2].iterdir())
IDS = torch.tensor([[(7 + 3 * j) % 16 for j in range(12)]])


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    return {key: value for file in files for key, value in load_file(file).items()}


@pytest.mark.parametrize("version", FOLDERS)
def test_every_form_is_there(version: int) -> None:
    assert sorted(path.name for path in FOLDERS[version].iterdir()) == [
        "awq",
        "gptq_desc_act",
        "hqq",
        "int4_clip_asym",
        "int4_fullrange_double",
        "int8_fp16",
        "nf4_double",
    ]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("version", FOLDERS)
def test_layers_are_what_they_were(version: int, name: str) -> None:
    folder = FOLDERS[version] / name
    model = AutoModelForCausalLM.from_pretrained(folder)
    stored = tensors_of(folder)
    digests = json.loads((folder / "digests.json").read_text())
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
            if version == 1 and key == "weight":
                assert expected.tolist() == [1], f"{path}.{key}"  # the marker, now of version 2
            else:
                assert torch.equal(tensor, expected), f"{path}.{key}"
        values = layer.dequantize().numpy()
        assert hashlib.sha256(values.tobytes()).hexdigest() == digests[path], path


@pytest.mark.parametrize("name", CASES)
def test_logits_are_what_they_were(name: str) -> None:
    """Up to the order in which another CPU's kernels sum. No sum has more than 40 terms, and there
    are 10 layers one after the other: 400 roundings, of the largest value at most."""
    folder = FOLDERS[2] / name
    expected = torch.tensor(json.loads((folder / "logits.json").read_text()))
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        values = model(IDS).logits[0]
    assert values.shape == expected.shape == (12, 16)
    assert (values - expected).abs().max() <= 400 * 2.0**-23 * expected.abs().max()


@pytest.mark.parametrize("name", CASES)
def test_they_are_written_as_they_were(name: str, tmp_path: Path) -> None:
    old = FOLDERS[2] / name
    size = "4KB" if (old / "model.safetensors.index.json").exists() else "1GB"
    model = AutoModelForCausalLM.from_pretrained(old)
    woq.save_pretrained(model, tmp_path, max_shard_size=size)
    written = [path.name for path in sorted(tmp_path.iterdir()) if "generation" not in path.name]
    ours = {"digests.json", "logits.json"}
    assert written == sorted({path.name for path in old.iterdir()} - ours)
    for file in written:
        if file != "config.json":
            assert (tmp_path / file).read_bytes() == (old / file).read_bytes(), file
    assert settings(tmp_path) == settings(old)
    # transformers writes the same tensors, under the same digest.
    model.save_pretrained(tmp_path / "theirs")
    assert settings(tmp_path / "theirs") == settings(old)
    expected, theirs = tensors_of(old), tensors_of(tmp_path / "theirs")
    assert expected.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in expected.items())


def settings(folder: Path) -> dict[str, object]:
    config: dict[str, object] = json.loads((folder / "config.json").read_text())
    return config["quantization_config"]  # type: ignore[return-value]


@pytest.mark.parametrize("name", CASES)
def test_version_1_is_written_as_version_2(name: str, tmp_path: Path) -> None:
    """The same checkpoint but for what version 2 adds, where the same woq would make it today."""
    model = AutoModelForCausalLM.from_pretrained(FOLDERS[1] / name)
    assert "digest" not in settings(FOLDERS[1] / name)
    woq.save_pretrained(model, tmp_path)
    new = settings(tmp_path)
    assert new.pop("format_version") == 2
    assert len(str(new.pop("digest"))) == 64
    assert new.items() <= settings(FOLDERS[1] / name).items()
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, model(IDS).logits)
