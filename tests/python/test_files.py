# SPDX-License-Identifier: Apache-2.0
"""Files and folders appear whole or not at all, whatever fails while they are written."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from woq.formats import files
from woq.formats.files import PartlyReplaced, replace_file, replace_files_in, replace_folder

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


@pytest.fixture(params=[True, False], ids=["exchange", "two steps"])
def exchange(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the file system can swap two names."""
    if not request.param:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    return bool(request.param)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("where", ["fsync", "rename", None])
def test_a_folder_that_fails_leaves_the_old_one(
    exchange: bool,
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
    if exchange and old and where == "rename":
        where = None  # nothing is renamed
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
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
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


def killed(function: Callable[[], object]) -> None:
    """Run `function` in a child that must end by SIGKILL."""
    child = os.fork()
    if child == 0:
        function()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("place", [replace_file, replace_files_in, replace_folder])
def test_what_a_killed_process_leaves_is_removed_by_the_next(
    place: Callable[[Path], contextlib.AbstractContextManager[Path]], tmp_path: Path
) -> None:
    target = tmp_path / "target"
    if place is replace_files_in:
        target.mkdir()

    def fill(scratch: Path) -> None:
        if place is replace_file:
            scratch.write_bytes(b"new")
        else:
            (scratch / "file").write_bytes(b"new")

    def start_and_die() -> None:
        with place(target) as scratch:
            fill(scratch)
            die()

    others = (".target-unfinished", ".targetb-unfinished-1", "target-unfinished-1")
    for name in others:
        (tmp_path / name).write_bytes(b"somebody else's")
    clean = contents(tmp_path)
    for _ in range(3):
        killed(start_and_die)
    # The second and third have removed what the one before has left.
    left = contents(tmp_path).keys() - clean.keys()
    assert len(left) == (1 if place is replace_file else 2)
    with place(target) as scratch:
        fill(scratch)
    new = {"target"} if place is replace_file else {"target", "target/file"}
    assert contents(tmp_path).keys() == {*others, *new}


@pytest.mark.parametrize("place", [replace_file, replace_files_in, replace_folder])
def test_what_a_living_process_writes_is_left_alone(
    place: Callable[[Path], contextlib.AbstractContextManager[Path]], tmp_path: Path
) -> None:
    target = tmp_path / "target"
    if place is replace_files_in:
        target.mkdir()
    with place(target) as first:
        with place(target) as second:
            assert first.exists()
            assert second != first
        assert first.exists()


def test_a_folder_is_there_whenever_the_process_is_killed(tmp_path: Path) -> None:
    """Also between the last two steps, where the old one is still on the disk."""
    target = tmp_path / "folder"
    target.mkdir()
    (target / "file").write_bytes(b"old")

    def replace_and_die() -> None:
        files._remove = die
        with replace_folder(target) as scratch:
            (scratch / "file").write_bytes(b"new")

    killed(replace_and_die)
    assert (target / "file").read_bytes() == b"new"
    assert len(contents(tmp_path)) == 4
    with replace_folder(target) as scratch:
        (scratch / "file").write_bytes(b"newer")
    assert contents(tmp_path) == {"folder": None, "folder/file": b"newer"}


def test_the_old_folder_is_kept_if_there_is_none_at_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the file system cannot swap names, a kill between two steps leaves none."""
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    target = tmp_path / "folder"
    target.mkdir()
    (target / "file").write_bytes(b"old")
    real = os.rename

    def replace_and_die() -> None:
        os.rename = lambda *names: (real(*names), die())
        with replace_folder(target) as scratch:
            (scratch / "file").write_bytes(b"new")

    killed(replace_and_die)
    assert not target.exists()
    (old,) = tmp_path.glob(".folder-old-*")
    assert (old / "file").read_bytes() == b"old"
    with pytest.raises(KeyboardInterrupt), replace_folder(target):
        raise KeyboardInterrupt
    assert (old / "file").read_bytes() == b"old"
    with replace_folder(target) as scratch:
        (scratch / "file").write_bytes(b"new")
    assert contents(tmp_path) == {"folder": None, "folder/file": b"new"}


def test_a_link_to_a_folder_is_replaced_and_what_it_leads_to_stays(
    tmp_path: Path, exchange: bool
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    with replace_folder(tmp_path / "link") as scratch:
        (scratch / "file").write_bytes(b"new")
    assert not (tmp_path / "link").is_symlink()
    assert contents(tmp_path) == {
        "real": None,
        "real/file": b"old",
        "link": None,
        "link/file": b"new",
    }


def test_other_errors_of_swapping_are_raised(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files._exchange(tmp_path / "none", tmp_path / "neither")


def test_old_files_go_before_the_last_new_one_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b", "stale", "stays"):
        (tmp_path / name).write_bytes(b"old")
    at_last: list[set[str]] = []
    real = os.replace

    def replace(source: Path, target: Path) -> None:
        if target.name == "c":
            at_last.append({path.name for path in tmp_path.iterdir() if path.is_file()})
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with replace_files_in(tmp_path, obsolete=lambda name: name in ("b", "stale")) as scratch:
        for name in "bc":
            (scratch / name).write_bytes(b"new")
    assert at_last == [{"b", "stays"}]
    assert contents(tmp_path) == {"b": b"new", "c": b"new", "stays": b"old"}


def test_an_error_after_the_first_renaming_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.replace

    def replace(source: Path, target: Path) -> None:
        if target.name == "b":
            raise OSError(errno.EIO, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)

    def write() -> None:
        with replace_files_in(tmp_path) as scratch:
            for name in "ab":
                (scratch / name).write_bytes(b"new")

    with pytest.raises(PartlyReplaced):
        write()
    assert contents(tmp_path) == {"a": b"new"}
