# SPDX-License-Identifier: Apache-2.0
"""SIGKILL at random moments, and write errors at each moment, of all that writes over what is
there: afterwards it is what it was, or the new one, or (where it is several files) refused when
loaded.

A few kills by default; `pytest -m slow` has WOQ_KILLS of them, 400 if that is not set.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import io
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from crash_support import fit_for_children, kill_at_random
from model_support import llama, logits, seed
from transformers import AutoModelForCausalLM

import woq
from woq import InvalidArgument, WeightOnlyQuantConfig

KILLS = [
    10,
    pytest.param(int(os.environ.get("WOQ_KILLS", "400")) // 5, marks=pytest.mark.slow, id="many"),
]

Save = Callable[[Any, Path], object]

SAVERS: dict[str, Save] = {
    "woq": woq.save_pretrained,
    "woq, shards": lambda model, folder: woq.save_pretrained(model, folder, max_shard_size="30KB"),
    "transformers": lambda model, folder: model.save_pretrained(folder),
    "transformers, shards": lambda model, folder: model.save_pretrained(
        folder, max_shard_size="30KB"
    ),
}


@pytest.fixture(autouse=True)
def draw(request: pytest.FixtureRequest) -> Iterator[random.Random]:
    with fit_for_children():
        yield random.Random(seed(request))


def models() -> tuple[Any, Any, dict[str, torch.Tensor]]:
    """Two models whose stored tensors have the same types and shapes, and their logits."""
    pair = [
        woq.quantize(llama(initializer_range=0.1 + 0.1 * i), WeightOnlyQuantConfig(dtype))
        for i, dtype in enumerate(("nf4", "fp4_e2m1"))
    ]
    return pair[0], pair[1], {"old": logits(pair[0]), "new": logits(pair[1])}


def what_it_is(folder: Path, right: dict[str, torch.Tensor]) -> str:
    """The name of the model in the folder, or "refused". A JSON file that transformers was writing
    is refused by an error of its own: OSError for config.json, ValueError for an index."""
    try:
        values = logits(AutoModelForCausalLM.from_pretrained(folder))
    except (ValueError, OSError):  # InvalidArgument is a ValueError
        return "refused"
    return next((name for name, each in right.items() if torch.equal(values, each)), "another")


@pytest.mark.parametrize("kills", KILLS)
@pytest.mark.parametrize("saver", SAVERS)
def test_kills_while_saving(saver: str, kills: int, tmp_path: Path, draw: random.Random) -> None:
    old, new, right = models()
    save, folder = SAVERS[saver], tmp_path / "model"
    found: collections.Counter[str] = collections.Counter()
    save(old, folder)
    for _, killed in kill_at_random(lambda: save(new, folder), kills, draw):
        result = what_it_is(folder, right)
        assert result in ("old", "new", "refused"), f"{result} after {found}"
        assert killed or result == "new"
        found[result] += 1
        save(old, folder)
        assert what_it_is(folder, right) == "old"
        # transformers lets safetensors write each file aside, under a name that nobody else knows.
        left = [path.name for path in folder.glob(".*")]
        if saver.startswith("transformers"):
            left = [name for name in left if not name.startswith(".tmp")]
        assert not left
    print(f"{saver}: {kills} kills, {dict(found)}")


@pytest.mark.parametrize("kills", KILLS)
def test_kills_of_the_command_line(kills: int, tmp_path: Path, draw: random.Random) -> None:
    """The folder is always a whole model; the page about it, always a whole page."""
    pytest.importorskip("click")
    pytest.importorskip("matplotlib")
    from click.testing import CliRunner

    from woq.cli._app import app

    source, folder, page = tmp_path / "float", tmp_path / "model", tmp_path / "page.html"
    llama(initializer_range=0.1).save_pretrained(source)

    def run(dtype: str) -> None:
        words = ["quantize", str(source), str(folder), "--overwrite", "--report", str(page)]
        done = CliRunner().invoke(app, [*words, "--dtype", dtype], prog_name="woq")
        assert done.exit_code == 0, done.output

    run("fp4")
    right = {"new": logits(AutoModelForCausalLM.from_pretrained(folder))}
    run("nf4")
    right["old"] = logits(AutoModelForCausalLM.from_pretrained(folder))
    found: collections.Counter[str] = collections.Counter()
    before = {path.name for path in folder.iterdir()}
    for _, killed in kill_at_random(lambda: run("fp4"), kills, draw):
        result = what_it_is(folder, right)
        assert result in ("old", "new"), f"{result} after {found}"
        assert killed or result == "new"
        assert {path.name for path in folder.iterdir()} == before
        text = page.read_text()
        assert text.rstrip().endswith("</html>")
        assert ("nf4" in text) != ("fp4" in text)
        found[result] += 1
        run("nf4")
        assert what_it_is(folder, right) == "old"
        assert {path.name for path in tmp_path.iterdir()} == {"float", "model", "page.html"}
    print(f"woq quantize: {kills} kills, {dict(found)}")


def exported(new: bool) -> Any:
    """A model that formats of other libraries can hold; two of them differ in their values only."""
    torch.manual_seed(int(new))
    model = llama(intermediate_size=128, initializer_range=0.2)
    return woq.quantize(model, WeightOnlyQuantConfig("int4", scale_dtype="fp16"))


@pytest.mark.parametrize("kills", KILLS)
@pytest.mark.parametrize("source", ["model", "folder"])
def test_kills_while_exporting(
    source: str, kills: int, tmp_path: Path, draw: random.Random
) -> None:
    """`woq.export` of a model in memory, and (what `woq convert` does) of another library's
    checkpoint: the folder is always a whole one, the old or the new."""
    pair: list[Any] = [exported(False), exported(True)]
    right = {"old": logits(pair[0]), "new": logits(pair[1])}
    if source == "folder":
        for number, name in enumerate(right):
            woq.export(pair[number], tmp_path / name, format="compressed-tensors")
        pair = [tmp_path / name for name in right]
    folder = tmp_path / "model"

    def write(number: int) -> None:
        woq.export(pair[number], folder, format="gptq", overwrite=True, max_shard_size="60KB")

    def found_there() -> str:
        values = logits(woq.AutoModelForCausalLM.from_pretrained(folder))
        return next((name for name, each in right.items() if torch.equal(values, each)), "another")

    write(0)
    names = {path.name for path in tmp_path.iterdir()}
    files = {path.name for path in folder.iterdir()}
    found: collections.Counter[str] = collections.Counter()
    for _, killed in kill_at_random(lambda: write(1), kills, draw):
        result = found_there()
        assert result in ("old", "new"), f"{result} after {found}"
        assert killed or result == "new"
        assert {path.name for path in folder.iterdir()} == files
        found[result] += 1
        write(0)
        assert found_there() == "old"
        assert {path.name for path in tmp_path.iterdir()} == names
    print(f"export of a {source}: {kills} kills, {dict(found)}")


@pytest.mark.parametrize("kills", KILLS)
@pytest.mark.parametrize("source", ["model", "file"])
def test_kills_while_writing_gguf(
    source: str, kills: int, tmp_path: Path, draw: random.Random
) -> None:
    """`woq.export` of a model in memory, and (what `woq convert` does) of a GGUF file: the file is
    always a whole one, the old or the new."""
    from tokenizer_support import sentence_tokenizer

    words = sentence_tokenizer(prefix=True, fallback=False)
    pair: list[Any] = [exported(False), exported(True)]
    for number, name in enumerate(("old", "new")):
        woq.export(pair[number], tmp_path / f"{name}.gguf", format="gguf", tokenizer=words)
    right = {name: (tmp_path / f"{name}.gguf").read_bytes() for name in ("old", "new")}
    if source == "file":
        pair = [tmp_path / f"{name}.gguf" for name in right]
    target = tmp_path / "model.gguf"

    def write(number: int) -> None:
        tokenizer = words if source == "model" else None
        woq.export(pair[number], target, format="gguf", tokenizer=tokenizer, overwrite=True)

    write(0)
    names = {path.name for path in tmp_path.iterdir()}
    found: collections.Counter[str] = collections.Counter()
    for _, killed in kill_at_random(lambda: write(1), kills, draw):
        bytes_ = target.read_bytes()
        result = next((name for name, each in right.items() if bytes_ == each), "another")
        assert result in ("old", "new"), f"{result} after {found}"
        assert killed or result == "new"
        found[result] += 1
        write(0)
        assert target.read_bytes() == right["old"]
        assert {path.name for path in tmp_path.iterdir()} == names
    print(f"GGUF from a {source}: {kills} kills, {dict(found)}")


class Operations:
    """Counts what writes to the disk, and has the operation of number `last` fail."""

    def __init__(self, last: int, error: int) -> None:
        self.count = 0
        self.renamed = False
        self._last, self._error = last, error

    def step(self) -> None:
        self.count += 1
        if self.count == self._last:
            raise OSError(self._error, os.strerror(self._error))

    def counted(self, real: Callable[..., Any], *, renames: bool = False) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            if "dir_fd" in keywords:  # the scratch folder is removed
                return real(*arguments, **keywords)
            self.step()
            result = real(*arguments, **keywords)
            self.renamed |= renames
            return result

        return call

    def opened(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def open_(file: Any, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
            stream = real(file, mode, *arguments, **keywords)
            return Stream(stream, self.step) if "w" in mode else stream

        return open_


class Stream:
    """A file whose writes are counted."""

    def __init__(self, stream: Any, step: Callable[[], None]) -> None:
        self._stream, self._step = stream, step

    def write(self, data: Any) -> Any:
        self._step()
        return self._stream.write(data)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def failing(operations: Operations) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        opened = operations.opened(open)
        patch.setattr("builtins.open", opened)
        patch.setattr(io, "open", opened)
        patch.setattr(os, "fsync", operations.counted(os.fsync))
        patch.setattr(os, "unlink", operations.counted(os.unlink, renames=True))
        patch.setattr(os, "replace", operations.counted(os.replace, renames=True))
        yield


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
@pytest.mark.parametrize(("before", "after"), [("1GB", "1GB"), ("1GB", "4KB")])
def test_a_write_error_at_any_operation(
    before: str, after: str, error: int, tmp_path: Path
) -> None:
    """Every write, flush, rename and removal of a save fails once."""
    golden = Path(__file__).parents[1] / "models" / "stored_2"
    old, new = (
        AutoModelForCausalLM.from_pretrained(golden / name)
        for name in ("nf4_double", "int4_fullrange_double")
    )
    ids = torch.arange(12)[None]
    with torch.no_grad():
        right = [old(ids).logits, new(ids).logits]
    folder = tmp_path / "model"
    woq.save_pretrained(old, folder, max_shard_size=before)
    whole = contents(folder)
    refused = 0
    for last in range(1, 1000):
        operations = Operations(last, error)
        message = ""
        with failing(operations):
            try:
                woq.save_pretrained(new, folder, max_shard_size=after)
            except OSError as raised:
                message = str(raised)
        assert (os.strerror(error) in message) == bool(message)
        if not operations.renamed:
            assert "the files that were there are unchanged" in message
            assert contents(folder) == whole
            continue
        if not message:
            break
        assert "save it again" in message
        assert not list(folder.glob(".*"))
        try:
            with torch.no_grad():
                values = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
            assert any(torch.equal(values, each) for each in right)
        except InvalidArgument:
            refused += 1
        woq.save_pretrained(old, folder, max_shard_size=before)
        assert contents(folder) == whole
    assert operations.count > 50
    assert refused
    with torch.no_grad():
        values = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
    assert torch.equal(values, right[1])
