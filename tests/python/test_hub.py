# SPDX-License-Identifier: Apache-2.0
"""Models of the hub: saved there and loaded from there, by a process that knows one on this machine
(hub_support)."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import foreign_support
import pytest
import torch
from gguf_support import build, write
from hub_support import TOKEN, Client, FakeHub
from model_support import letters_checkpoint, llama
from safetensors.torch import load_file

import woq


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    hub = FakeHub()
    yield hub
    hub.close()


@pytest.fixture(scope="module")
def client(hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    client = Client(hub, tmp_path_factory.mktemp("home"))
    yield client
    client.close()


def quantized(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    model = woq.quantize(llama(), woq.WeightOnlyQuantConfig(weight_dtype="int4"))
    woq.save_pretrained(model, folder, max_shard_size="20KB")
    return folder


PRELUDE = """
import time
import torch, transformers, woq
from pathlib import Path
from model_support import logits

# Where nothing answers, huggingface_hub waits and tries again, a minute in all.
time.sleep = lambda seconds: None

def load(name, **keywords):
    return woq.AutoModelForCausalLM.from_pretrained(name, **keywords)

def same(model, folder, **keywords):
    return torch.equal(logits(model), logits(load(folder, **keywords)))

def error_of(call, *arguments, **keywords):
    try:
        call(*arguments, **keywords)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
"""


def run(client: Client, code: str, **values: object) -> Any:
    """What `code` calls `result`, with the values by their names."""
    given = "".join(f"{name} = {value!r}\n" for name, value in values.items())
    return client.run(PRELUDE + given + textwrap.dedent(code))


def weights_fetched(hub: FakeHub) -> int:
    gets = [path for method, path, _ in hub.requests if method == "GET"]
    return sum(path.endswith(".safetensors") for path in gets)


def test_a_model_is_pushed_and_loaded_again(hub: FakeHub, client: Client, tmp_path: Path) -> None:
    quantized(tmp_path / "model")
    message = run(
        client,
        """
        model = load(folder)
        model.push_to_hub("tests/one", token=token, max_shard_size="20KB", private=True)
        woq.save_pretrained(model, again, max_shard_size="20KB")
        loaded = load("tests/one", token=token)
        assert loaded.is_quantized
        assert torch.equal(logits(loaded), logits(model))
        result = error_of(load, "tests/one", force_download=True)
        """,
        folder=str(tmp_path / "model"),
        again=str(tmp_path / "again"),
        token=TOKEN,
    )
    assert message.startswith("OSError: there is no folder tests/one, and no such model on the hub")
    pushed = hub.repositories["tests/one"].files("main")
    shards = sorted(path for path in pushed if path.startswith("model-"))
    assert len(shards) > 2
    stored: dict[str, torch.Tensor] = {}
    for shard in shards:
        (tmp_path / shard).write_bytes(pushed[shard])
        stored |= load_file(tmp_path / shard)
    saved: dict[str, torch.Tensor] = {}
    for file in (tmp_path / "again").glob("*.safetensors"):
        saved |= load_file(file)
    assert stored.keys() == saved.keys()
    assert all(torch.equal(stored[name], saved[name]) for name in saved)


def test_revisions_caches_and_subfolders(hub: FakeHub, client: Client, tmp_path: Path) -> None:
    repository = hub.add("tests/two")
    first = repository.add_folder(quantized(tmp_path / "a"))
    repository.add_folder(quantized(tmp_path / "b", seed=1), revision="wide")
    repository.add_folder(quantized(tmp_path / "c", seed=2), revision="wide", below="inner/")
    missing, unknown = run(
        client,
        """
        folder = Path(folder)
        assert same(load("tests/two", revision=first), folder / "a")
        assert same(load("tests/two", revision="wide"), folder / "b")
        assert same(load("tests/two", revision="wide", subfolder="inner"), folder / "c")
        files = {"cache_dir": folder / "cache", "local_files_only": True}
        missing = error_of(load, "tests/two", **files)
        assert same(load("tests/two", cache_dir=folder / "cache"), folder / "a")
        assert same(load("tests/two", **files), folder / "a")
        result = [missing, error_of(load, "tests/two", revision="none")]
        """,
        folder=str(tmp_path),
        first=first,
    )
    assert missing.startswith("OSError: tests/two is not in the hub's cache on this machine")
    assert "local_files_only" in missing
    assert "\n" not in missing
    assert unknown.startswith("OSError: tests/two has no revision 'none' on the hub")
    before = weights_fetched(hub)
    run(client, 'load("tests/two", revision="wide")')
    assert weights_fetched(hub) == before
    run(client, 'load("tests/two", revision="wide", force_download=True)')
    assert weights_fetched(hub) > before


def test_foreign_checkpoints(hub: FakeHub, client: Client, tmp_path: Path) -> None:
    """One whose settings are in config.json, and one that has them beside it, in a folder."""
    folder = foreign_support.write_checkpoint(
        tmp_path / "gptq", llama(), foreign_support.gptq_layer, foreign_support.GPTQ
    )
    hub.add("tests/gptq").add_folder(folder)
    config = folder / "config.json"
    values = json.loads(config.read_text())
    settings = values.pop("quantization_config")
    (folder / "quantize_config.json").write_text(json.dumps(settings))
    config.write_text(json.dumps(values))
    hub.add("tests/beside").add_folder(folder, below="4bit/")
    run(
        client,
        """
        for name, keywords in (("tests/gptq", {}), ("tests/beside", {"subfolder": "4bit"})):
            model = load(name, **keywords)
            assert model.config.quantization_config.weight_dtype == "int4_clip"
            assert same(model, folder)
        """,
        folder=str(folder),
    )


def test_gguf_files(hub: FakeHub, client: Client, tmp_path: Path) -> None:
    """Two in one repository, one of them in parts; and a damaged one."""
    folder = tmp_path / "files"
    folder.mkdir()
    write(build("llama"), folder / "m-q8_0.gguf", "llama", "Q8_0")
    write(build("llama"), folder / "m-q4_0.gguf", "llama", "Q4_0", splits=8)
    (folder / "cut.gguf").write_bytes((folder / "m-q8_0.gguf").read_bytes()[:-100])
    parts = sorted(file.name for file in folder.glob("m-q4_0-*"))
    assert len(parts) > 2
    hub.add("tests/gguf").add_folder(folder, revision="r1")
    damaged, absent = run(
        client,
        """
        for keyword, name in {"model_file": "m-q8_0.gguf", "gguf_file": part}.items():
            model = load("tests/gguf", revision="r1", **{keyword: name})
            assert isinstance(model.lm_head, woq.WeightOnlyLinear)
            assert same(model, folder, gguf_file=name)
        result = [
            error_of(load, "tests/gguf", revision="r1", gguf_file=name)
            for name in ("cut.gguf", "none.gguf")
        ]
        """,
        folder=str(folder),
        part=parts[0],
    )
    assert damaged.startswith("InvalidArgument")
    assert "is damaged" in damaged
    assert absent.startswith("OSError")
    assert "none.gguf" in absent


def test_pipeline_of_a_private_model(hub: FakeHub, client: Client, tmp_path: Path) -> None:
    folder = letters_checkpoint(tmp_path / "letters")
    hub.add("tests/letters", private=True).add_folder(folder)
    message = run(
        client,
        """
        pipe = woq.pipeline(
            "text-generation", "tests/letters", load_in_8bit=True, model_kwargs={"token": token}
        )
        assert pipe("a cat", max_new_tokens=4)
        result = error_of(woq.pipeline, "text-generation", "tests/none")
        """,
        token=TOKEN,
    )
    assert "no such model on the hub" in message
    assert "\n" not in message
    files = [trusted for _, path, trusted in hub.requests if "tests/letters/resolve" in path]
    assert files
    assert all(files)


def test_a_gated_model_and_a_hub_that_is_away(hub: FakeHub, client: Client, tmp_path: Path) -> None:
    hub.add("tests/gated", gated=True).add_folder(quantized(tmp_path / "a"))
    code = """
        result = [
            error_of(load, "tests/gated", cache_dir=folder, **keywords)
            for keywords in ({}, {"gguf_file": "a.gguf"})
        ]
        """
    for message in run(client, code, folder=str(tmp_path / "cache")):
        assert message.startswith("OSError: tests/gated is a gated model of the hub: ask"), message
    with hub.away():
        messages = run(client, code, folder=str(tmp_path / "cache"))
    for message in messages:
        assert message.startswith("OSError: tests/gated is not in the hub's cache"), message
        assert f"{hub.endpoint} cannot be reached: check the network" in message
        assert "\n" not in message


def test_a_model_in_the_cache_needs_no_hub(hub: FakeHub, client: Client, tmp_path: Path) -> None:
    """Nor do files that it might have, and has not: settings beside config.json."""
    hub.add("tests/float").add_folder(letters_checkpoint(tmp_path / "letters"))
    code = 'result = load("tests/float", load_in_8bit=True).config.quantization_config.weight_dtype'
    assert run(client, code) == "int8"
    with hub.away():
        assert run(client, code) == "int8"
