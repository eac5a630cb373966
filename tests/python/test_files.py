# SPDX-License-Identifier: Apache-2.0
"""Files and folders appear whole or not at all, whatever fails while they are written."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from woq.formats.files import replace_file, replace_files_in, replace_folder

FULL = OSError(28, "No space left on device")
ERRORS = [FULL, KeyboardInterrupt()]


def contents(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@contextlib.contextmanager
def failing(
    monkeypatch: pytest.MonkeyPatch, where: str | None, error: BaseException
) -> Iterator[None]:
    """`error` must come out; os.`where` raises it when it is called for the first time, or the body
    where that is None."""
    calls = []

    with monkeypatch.context() as patch:
        if where is not None:
            real = getattr(os, where)

            def fail(*args: object) -> object:
                calls.append(args)
                if len(calls) == 1:
                    raise error
                return real(*args)

            patch.setattr(os, where, fail)
        with pytest.raises(type(error)):
            yield
    assert where is None or calls, f"os.{where} was not called"


@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("where", ["fsync", "replace", None])
def test_a_file_that_fails_leaves_the_old_one(
    where: str | None,
    error: BaseException,
    old: bytes | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = tmp_path / "file.bin"
    if old is not None:
        target.write_bytes(old)
    before = contents(tmp_path)
    with failing(monkeypatch, where, error), replace_file(target) as scratch:
        scratch.write_bytes(b"new")
        assert contents(tmp_path).keys() == {*before, scratch.name}
        if where is None:
            raise error
    assert contents(tmp_path) == before
    with replace_file(target) as scratch:
        scratch.write_bytes(b"new")
    assert contents(tmp_path) == {"file.bin": b"new"}


def test_a_file_and_its_folder_are_flushed_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def flushed(handle: int) -> None:
        done.append("folder" if os.path.samestat(os.fstat(handle), tmp_path.stat()) else "file")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("rename"), replace(*names)))
    with replace_file(tmp_path / "file") as scratch:
        scratch.write_bytes(b"new")
    assert done == ["file", "rename", "folder"]


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("where", ["fsync", "rename", None])
def test_a_folder_that_fails_leaves_the_old_one(
    where: str | None,
    error: BaseException,
    old: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = tmp_path / "made" / "folder"
    if old:
        target.mkdir(parents=True)
        (target / "kept").write_bytes(b"old")
    before = contents(tmp_path)
    with failing(monkeypatch, where, error), replace_folder(target) as scratch:
        (scratch / "inner").mkdir()
        (scratch / "inner" / "new").write_bytes(b"new")
        if where is None:
            raise error
    assert contents(tmp_path) == before
    with replace_folder(target) as scratch:
        (scratch / "new").write_bytes(b"new")
    assert contents(tmp_path) == {"made": None, "made/folder": None, "made/folder/new": b"new"}


def test_an_old_folder_comes_back_when_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "kept").write_bytes(b"old")
    before = contents(tmp_path)
    real = os.rename

    def rename(source: Path, destination: Path) -> None:
        if "-unfinished-" in str(source):
            raise FULL
        real(source, destination)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(OSError, match="No space"), replace_folder(target):
        pass
    assert contents(tmp_path) == before


def test_a_new_folder_has_the_mode_of_any_other(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with replace_folder(tmp_path / "folder"):
        pass
    assert (tmp_path / "folder").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("where", ["fsync", "replace", None])
def test_files_that_fail_leave_the_old_ones(
    where: str | None, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "other").write_bytes(b"stays")
    before = contents(tmp_path)
    with failing(monkeypatch, where, error), replace_files_in(tmp_path) as scratch:
        (scratch / "a").write_bytes(b"new")
        (scratch / "b").write_bytes(b"new")
        if where is None:
            raise error
    assert contents(tmp_path) == before


def test_files_are_renamed_in_the_given_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed: list[str] = []
    real = os.replace

    def replace(source: Path, target: Path) -> None:
        renamed.append(target.name)
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with replace_files_in(tmp_path, order=lambda name: (name == "a", name)) as scratch:
        for name in "abc":
            (scratch / name).write_text(name)
    assert renamed == ["b", "c", "a"]
    assert contents(tmp_path) == {"a": b"a", "b": b"b", "c": b"c"}
