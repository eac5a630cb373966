# SPDX-License-Identifier: Apache-2.0
"""`woq` as a process: Ctrl-C, full disks, exit codes, shell completion, what it imports."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import resource
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("click")

from model_support import last_json, letters_checkpoint, run_python  # noqa: E402

import woq  # noqa: E402

WOQ = (sys.executable, "-m", "woq")
PATIENCE = 180  # seconds


@pytest.fixture(scope="module", autouse=True)
def _ctrl_c_reaches_children() -> Iterator[None]:
    """A shell that starts the tests in the background has SIGINT ignored, which is inherited."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join(
        [str(Path(woq.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    )
    return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", **more}


def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*WOQ, *map(str, arguments)],
        **{"capture_output": True, "env": environment(), **options},
        text=True,
        check=False,
        timeout=PATIENCE,
    )


def wait_for(what: Callable[[], Any], process: subprocess.Popen[Any]) -> Any:
    stop = time.monotonic() + PATIENCE
    while time.monotonic() < stop:
        ended = process.poll() is not None
        found = what()
        if found:
            return found
        if ended:  # what it said last may still be under way
            stop = min(stop, time.monotonic() + 1)
        time.sleep(0.02)
    raise AssertionError("it took too long, or ended early")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = letters_checkpoint(tmp_path_factory.mktemp("letters"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }} {{ m.content }}. {% endfor %}"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "kill"]
)
def test_interrupted_quantize_leaves_only_the_work_dir(
    checkpoint: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    arguments = (
        *("quantize", checkpoint, out, "--algorithm", "autoround", "--option", "iters=400"),
        *("--dataset", "self", "--nsamples", "4", "--seqlen", "16", "--work-dir", work),
    )
    process = subprocess.Popen(
        [*WOQ, *map(str, arguments)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        # In the middle: the first block is done, the second is not.
        wait_for(lambda: len(list(work.glob("*.safetensors"))) >= 7, process)
        assert [path.name for path in tmp_path.glob(".out-unfinished-*")]
        process.send_signal(number)
        printed, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == code
    assert printed == ""
    assert "Traceback" not in errors
    assert "%|" not in errors, "a bar is for terminals"
    assert "Call quantize again" not in errors, "the library's advice for a living model"
    if number == signal.SIGINT:
        assert f"{out} was not made; {work} has the finished layers" in errors
        assert errors.splitlines()[-1] == "woq: interrupted"
    assert [path.name for path in tmp_path.iterdir()] == ["work"]


class Terminal:
    """A process with a terminal of its own."""

    def __init__(self, *arguments: object) -> None:
        self._master, slave = pty.openpty()
        # Progress bars are as wide as the terminal.
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self.process = subprocess.Popen(
            [*WOQ, *map(str, arguments)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment(TERM="dumb"),
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(slave)
        self.text = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def _read(self) -> None:
        ready, _, _ = select.select([self._master], [], [], 0)
        if ready:
            with contextlib.suppress(OSError):  # EIO: the other end is closed
                self.text += os.read(self._master, 4096).decode(errors="replace")

    def expect(self, text: str, *, after: int = 0) -> int:
        """Wait until `text` is shown behind position `after`; where it ends."""

        def look() -> bool:
            self._read()
            return text in self.text[after:]

        wait_for(look, self.process)
        return self.text.index(text, after) + len(text)


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_ctrl_c_stops_the_answer_and_not_the_chat(checkpoint: Path) -> None:
    with Terminal(
        *("chat", checkpoint, "--generation", "min_new_tokens=100000", "--temperature", "0"),
        *("--max-new-tokens", "100000", "--dtype", "nf4"),
    ) as terminal:
        at = terminal.expect("> ")
        assert "Ctrl-D leaves" in terminal.text
        terminal.type("hello\n")
        at = terminal.expect("hello\r\n", after=at)
        wait_for(lambda: terminal._read() or len(terminal.text) > at + 20, terminal.process)
        terminal.type("\x03")
        at = terminal.expect("(stopped)", after=at)
        at = terminal.expect("> ", after=at)
        # Ctrl-C at the prompt is no way out either, and the program still listens.
        terminal.type("\x03")
        at = terminal.expect("/exit or Ctrl-D leaves", after=at)
        at = terminal.expect("> ", after=at)
        terminal.type("/reset\n")
        at = terminal.expect("begins anew", after=at)
        terminal.expect("> ", after=at)
        terminal.type("\x04")
        assert terminal.process.wait(timeout=PATIENCE) == 0
    assert "Traceback" not in terminal.text


def test_progress_is_shown_on_a_terminal(checkpoint: Path, tmp_path: Path) -> None:
    arguments = ("--algorithm", "gptq", "--dataset", "self", "--nsamples", "2", "--seqlen", "16")
    with Terminal("quantize", checkpoint, tmp_path / "a", *arguments) as terminal:
        terminal.expect("saved in")
        assert terminal.process.wait(timeout=PATIENCE) == 0
    assert "Quantizing: 100%" in terminal.text
    assert "14/14 [" in terminal.text
    # The last part of a layer's name: the whole one would leave no room for the bar.
    assert ", down_proj loss " in terminal.text


def test_full_disk(checkpoint: Path, tmp_path: Path) -> None:
    """A limit on file sizes fails like a full disk, and needs no rights."""

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = run("quantize", checkpoint, tmp_path / "out", preexec_fn=small_files)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    expected = f"woq: cannot save the model: File too large; {tmp_path / 'out'} was not made"
    assert line == expected
    assert list(tmp_path.iterdir()) == []


def test_standard_output_that_is_full() -> None:
    with open("/dev/full", "w") as full:
        done = run("info", "--json", stdout=full, capture_output=False, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "woq: No space left on device"
    assert "Traceback" not in done.stderr


def test_a_reader_that_leaves() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as pipe:
        done = run("info", stdout=pipe, capture_output=False, stderr=subprocess.PIPE)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("woq qu", {"quantize"}),
        ("woq quantize a b --dtype nf", {"nf4"}),
        ("woq quantize a b --compute-dtype ", {"fp32", "bf16", "int8", "auto"}),
        ("woq quantize a b --algorithm a", {"awq", "autoround", "awq+gptq"}),
        ("woq inspect --a", {"--all"}),
        ("woq completion ", {"bash", "zsh", "fish"}),
    ],
)
def test_completion(words: str, expected: set[str]) -> None:
    count = len(words.split()) - (not words.endswith(" "))
    variables = {"_WOQ_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(count)}
    done = run(env=environment(**variables))
    assert done.returncode == 0, done.stderr
    found = {line.partition(",")[2] for line in done.stdout.splitlines()}
    assert {each.lower() for each in found} == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, tmp_path: Path) -> None:
    done = run("completion", shell)
    assert done.returncode == 0
    assert "_WOQ_COMPLETE" in done.stdout
    if shutil.which(shell):
        script = tmp_path / "script"
        script.write_text(done.stdout)
        subprocess.run([shell, "-n", script], check=True)


@pytest.mark.parametrize(
    ("given", "rounds"),
    [({}, 20000), ({"OMP_WAIT_POLICY": "passive"}, 0), ({"GOMP_SPINCOUNT": "7"}, 7)],
    ids=["default", "the user's policy", "the user's count"],
)
def test_waiting_threads_sleep_soon(given: dict[str, str], rounds: int) -> None:
    """What libgomp itself says that it has read; what the user has set stays."""
    variables = {**environment(**given), "OMP_DISPLAY_ENV": "verbose"}
    for name in {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} - given.keys():
        variables.pop(name, None)
    done = run("info", env=variables)
    assert done.returncode == 0, done.stderr
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("the OpenMP runtime is not libgomp")
    assert f"GOMP_SPINCOUNT = '{rounds}'" in done.stderr


def test_help_and_completion_load_neither_torch_nor_transformers() -> None:
    process = run_python(
        """
        import json, sys
        from woq.cli._app import COMMANDS, app
        for command in COMMANDS:
            app([command, "--help"], standalone_mode=False, prog_name="woq")
        print(json.dumps([name for name in ("torch", "transformers") if name in sys.modules]))
        """
    )
    assert last_json(process) == []


def test_without_click_one_line_says_what_to_install() -> None:
    process = run_python(
        """
        import sys
        sys.modules["click"] = None
        from woq.cli import main
        main()
        """,
        check=False,
    )
    assert process.returncode == 1
    assert process.stderr == "woq: the command line needs click: pip install 'woq[cli]'\n"
