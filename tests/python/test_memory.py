# SPDX-License-Identifier: Apache-2.0
"""Resident memory while loading and saving, measured in processes of their own."""

from __future__ import annotations

import os

import pytest
import torch
from model_support import last_json, llama, run_python

pytest.importorskip("transformers")

pytestmark = pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak of RSS cannot be reset here"
)

MIB = 1 << 20

MEASURE = """
import json, os, sys
import torch, transformers, woq, woq.hf.quantizer
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from woq.modules.targets import quantized_layers

def rss(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))

def measured(action):
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")  # VmHWM := VmRSS
    before = rss("VmRSS")
    result = action()
    return result, rss("VmHWM") - before

config = woq.WeightOnlyQuantConfig({dtype!r}, quantize_lm_head={head!r})
load = lambda: AutoModelForCausalLM.from_pretrained(
    {path!r}, quantization_config=config, **{arguments})
model, loading = measured(load)
size = sum(layer.nbytes for layer in quantized_layers(model).values())
size += sum(p.numel() * p.element_size() for p in model.parameters())
_, saving = measured(lambda: woq.save_pretrained(model, {path!r} + "-woq"))
print(json.dumps([loading, size, saving]))
"""

RELOAD = """
import json
exec({measure!r}.split("config = ")[0])
model, loading = measured(lambda: AutoModelForCausalLM.from_pretrained({path!r} + "-woq"))
size = sum(layer.nbytes for layer in quantized_layers(model).values())
size += sum(p.numel() * p.element_size() for p in model.parameters())
print(json.dumps([loading, size]))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """292 MiB of bfloat16 in files of 100 MB; the largest tensor has 16 MiB."""
    model = llama(
        dtype=torch.bfloat16,
        vocab_size=8192,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=10,
        num_attention_heads=16,
        num_key_value_heads=16,
    )
    size = sum(p.numel() for p in model.parameters()) * 2
    assert size > 250 * MIB
    path = tmp_path_factory.mktemp("memory") / "float"
    model.save_pretrained(path, max_shard_size="100MB")
    return str(path), max(p.numel() for p in model.parameters()) * 2


@pytest.mark.parametrize(
    ("dtype", "head", "arguments"),
    [
        ("nf4", False, {}),
        ("int8", "int8", {}),
        # Every tensor is cast on its way; the largest then has twice the bytes.
        ("int4_clip", True, {"dtype": "float32"}),
    ],
    ids=["nf4", "int8", "float32"],
)
def test_peak_while_quantizing(checkpoint, dtype, head, arguments):
    path, largest = checkpoint
    if "dtype" in arguments:
        largest *= 2
    code = MEASURE.format(path=path, dtype=dtype, head=head, arguments=arguments)
    loading, size, saving = last_json(run_python(code))
    limit = size + 1.5 * largest + 64 * MIB
    assert loading <= limit, f"{loading / MIB:.0f} MiB, allowed {limit / MIB:.0f}"
    # One layer at a time, and the pages of embeddings that were never touched before.
    assert saving <= 2 * largest + 64 * MIB, f"saving took {saving / MIB:.0f} MiB"
    loading, size = last_json(run_python(RELOAD.format(measure=MEASURE, path=path)))
    limit = size + 1.5 * largest + 64 * MIB
    assert loading <= limit, f"reading back: {loading / MIB:.0f} MiB, allowed {limit / MIB:.0f}"


def test_only_checkpoint_files_are_released(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    from woq.formats.pages import CheckpointPages, release_file_pages

    anonymous = torch.randn(1 << 18)
    expected = anonymous.clone()
    assert not release_file_pages(anonymous)
    assert torch.equal(anonymous, expected)

    file = tmp_path / "a.safetensors"
    values = {"before": torch.randn(1000), "x": torch.randn(1 << 18), "z": torch.randn(1000)}
    save_file(values, file)
    other = tmp_path / "b.bin"
    other.write_bytes(expected.numpy().tobytes())
    mapped = torch.from_file(str(other), shared=False, size=1 << 18)
    mapped.mul_(2)  # these changes live in memory only, and must not be dropped
    assert not release_file_pages(mapped)
    assert torch.equal(mapped, expected * 2)

    with safe_open(file, "pt") as opened:
        views = {key: opened.get_slice(key)[...] for key in values}
        views["before"].add_(1)
        pages = CheckpointPages([str(file), str(other), str(tmp_path / "missing.safetensors")])
        assert release_file_pages(views["x"]) or pages.release("x")
        assert torch.equal(views["x"], values["x"])
        assert torch.equal(views["before"], values["before"] + 1)
        assert torch.equal(views["z"], values["z"])
        assert not pages.release("unknown")
    assert not release_file_pages(torch.empty(0))
    assert not release_file_pages(torch.randn(64, 64).t())
