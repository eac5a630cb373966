# SPDX-License-Identifier: Apache-2.0
"""woq.save_pretrained: a failed save leaves what was there."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_support import llama, logits, run_python, seed

pytest.importorskip("transformers")

from safetensors import safe_open
from transformers import AutoModelForCausalLM

import woq
from woq import InvalidArgument
from woq.formats.safetensors import Entry, write_safetensors


@pytest.fixture(autouse=True)
def _seed(request):
    seed(request)


def quantized(dtype="nf4"):
    return woq.quantize(llama(), woq.WeightOnlyQuantConfig(dtype, quantize_lm_head=True))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_same_tensors_as_transformers(tmp_path):
    model = quantized()
    model.save_pretrained(tmp_path / "theirs")
    woq.save_pretrained(model, tmp_path / "ours")
    assert {p.name for p in (tmp_path / "ours").iterdir()} == {
        p.name for p in (tmp_path / "theirs").iterdir()
    }
    with (
        safe_open(tmp_path / "ours" / "model.safetensors", "pt") as ours,
        safe_open(tmp_path / "theirs" / "model.safetensors", "pt") as theirs,
    ):
        assert sorted(ours.keys()) == sorted(theirs.keys())
        digest = json.loads((tmp_path / "ours" / "config.json").read_text())
        digest = digest["quantization_config"]["digest"]
        assert theirs.metadata() == {"format": "pt", "woq_digest": digest}
        assert ours.metadata() == {
            **theirs.metadata(),
            "woq_tensors": ours.metadata()["woq_tensors"],
        }
        for key in sorted(ours.keys()):
            a, b = ours.get_tensor(key), theirs.get_tensor(key)
            assert a.dtype == b.dtype
            assert torch.equal(a, b), key


def test_over_itself(tmp_path):
    """The embeddings of a loaded model are views of the file that is being replaced."""
    quantized().save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    expected = logits(model)
    woq.save_pretrained(model, tmp_path)
    assert torch.equal(logits(model), expected)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), expected)


def test_stale_shards_go_and_other_files_stay(tmp_path):
    model = quantized()
    (tmp_path / "tokenizer.json").write_text("{}")
    woq.save_pretrained(model, tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    assert not (tmp_path / "model.safetensors").exists()
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model))
    woq.save_pretrained(model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    }


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("after", [0, 3, 9])
def test_failure_in_the_middle(tmp_path, monkeypatch, error, after):
    first = quantized()
    woq.save_pretrained(first, tmp_path)
    before = contents(tmp_path)
    calls = []
    real = woq.WeightOnlyLinear.stored_tensors

    def stored_tensors(layer):
        calls.append(1)
        if len(calls) > after:
            raise error
        return real(layer)

    monkeypatch.setattr(woq.WeightOnlyLinear, "stored_tensors", stored_tensors)
    with pytest.raises(type(error)):
        woq.save_pretrained(quantized("int8"), tmp_path)
    assert contents(tmp_path) == before
    # A folder that did not exist is not left behind either.
    with pytest.raises(type(error)):
        woq.save_pretrained(quantized("int8"), tmp_path / "new")
    assert not (tmp_path / "new").exists()


LIMITED = """
import resource, sys
sys.path.insert(0, {here!r})
import torch, woq
from model_support import llama
model = woq.quantize(llama(vocab_size=512), woq.WeightOnlyQuantConfig("int8"))
# No file may grow beyond 64 KiB: what a full disk does to a writer.
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    woq.save_pretrained(model, {target!r})
except OSError as error:
    print(error)
    sys.exit(3)
"""


def test_file_size_limit(tmp_path):
    woq.save_pretrained(quantized(), tmp_path)
    before = contents(tmp_path)
    code = LIMITED.format(here=os.path.dirname(__file__), target=str(tmp_path))
    process = run_python(code, check=False)
    assert process.returncode == 3, process.stderr
    assert "the files that were there are unchanged" in process.stdout
    assert contents(tmp_path) == before


@pytest.fixture
def mounted(tmp_path):
    """Mounts a small file system on a folder; skips where that is not allowed."""
    folder = tmp_path / "mounted"
    folder.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("there is no mount command")
        if done.returncode:
            pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
        return folder

    yield mount
    subprocess.run(["umount", str(folder)], capture_output=True, check=False)


def test_full_disk(mounted):
    folder = mounted("size=160k")
    woq.save_pretrained(quantized(), folder)
    before = contents(folder)
    with pytest.raises(OSError, match="files that were there are unchanged"):
        woq.save_pretrained(quantized("int8"), folder)
    assert contents(folder) == before
    AutoModelForCausalLM.from_pretrained(folder)


def test_read_only_folder(mounted):
    folder = mounted("ro")
    with pytest.raises(OSError, match="Read-only"):
        woq.save_pretrained(quantized(), folder)
    with pytest.raises(OSError, match="nothing was written"):
        woq.save_pretrained(quantized(), folder / "new")


def test_target_is_a_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("kept")
    with pytest.raises(OSError, match="exists"):
        woq.save_pretrained(quantized(), path)
    assert path.read_text() == "kept"


@pytest.mark.parametrize("size", ["", "5 apples", "0", -1, "GB"])
def test_bad_shard_size(size, tmp_path):
    with pytest.raises(InvalidArgument, match="max_shard_size"):
        woq.save_pretrained(quantized(), tmp_path / "new", max_shard_size=size)
    assert not (tmp_path / "new").exists()


def test_not_a_transformers_model(tmp_path):
    with pytest.raises(InvalidArgument, match="transformers model"):
        woq.save_pretrained(torch.nn.Linear(2, 2), tmp_path)


DTYPES = [torch.float32, torch.bfloat16, torch.uint8, torch.int64, torch.bool, torch.float16]


@settings(deadline=None, max_examples=40)
@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=8).filter(lambda s: s != "__metadata__"),
        st.tuples(st.lists(st.integers(0, 5), max_size=3), st.sampled_from(DTYPES)),
        max_size=6,
    )
)
def test_writer_round_trip(tmp_path_factory, specs):
    path = tmp_path_factory.mktemp("writer") / "x.safetensors"
    tensors = {k: torch.randint(0, 2, shape).to(dtype) for k, (shape, dtype) in specs.items()}
    entries = {
        key: Entry(tuple(value.shape), value.dtype, lambda value=value: value)
        for key, value in tensors.items()
    }
    write_safetensors(path, entries, {"format": "pt"})
    with safe_open(path, "pt") as opened:
        assert set(opened.keys()) == set(tensors)
        for key, value in tensors.items():
            read = opened.get_tensor(key)
            assert read.dtype == value.dtype
            assert torch.equal(read, value)


def test_writer_checks_what_it_was_promised(tmp_path):
    entry = Entry((3,), torch.float32, lambda: torch.zeros(4))
    with pytest.raises(RuntimeError, match="announced"):
        write_safetensors(tmp_path / "x.safetensors", {"x": entry}, {})


def test_config_on_disk_names_the_method(tmp_path):
    woq.save_pretrained(quantized(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "woq"
    assert config["architectures"] == ["LlamaForCausalLM"]
