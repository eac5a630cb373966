# SPDX-License-Identifier: Apache-2.0
"""`woq bench`."""

from __future__ import annotations

import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from ._command import Command, Output, output_of
from ._models import find_model, load_model
from ._options import Choice, option
from ._quantization import COMPUTE_DTYPES, DTYPES
from ._text import counted, table

_SHAPES = ((4096, 4096), (4096, 11008))
_ROUNDS = 5
# Weights are read from memory, not from a cache, when the copies that take turns are larger.
_CACHES = 3
_MOST_BYTES = 1 << 30


class _Shape(click.ParamType):
    name = "NxK"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        found = re.fullmatch(r"(\d+)x(\d+)", str(value))
        if found is None or int(found[1]) * int(found[2]) == 0:
            raise click.BadParameter(
                f"{value} is not like 4096x4096 (out_features x in_features)", ctx, param
            )
        return int(found[1]), int(found[2])


@click.command(
    cls=Command,
    short_help="Measure the kernels beside this machine's limit.",
    examples=[
        "woq bench",
        "woq bench --shape 4096x14336 --dtype nf4 --compute-dtype int8 --rows 1 --rows 64",
        "woq bench --model ./SmolLM2-135M-Instruct --threads 4 --json",
    ],
)
@option(
    "--shape",
    "shapes",
    type=_Shape(),
    multiple=True,
    show_default=", ".join(f"{n}x{k}" for n, k in _SHAPES),
    help="Weights [N, K], N = out_features.",
)
@option("--model", metavar="MODEL", help="The shapes of this model's layers.")
@option(
    "--rows",
    type=click.IntRange(1),
    metavar="M",
    multiple=True,
    default=(1, 32),
    show_default=True,
    help="Rows of the input: tokens at a time.",
)
@option(
    "--dtype",
    "dtypes",
    type=Choice(DTYPES),
    multiple=True,
    default=("nf4", "int4_clip", "int8"),
    show_default=True,
    help="Weight dtypes.",
)
@option(
    "--compute-dtype",
    "computes",
    type=Choice(COMPUTE_DTYPES),
    multiple=True,
    default=("fp32", "int8"),
    show_default=True,
    help="What products are made in.",
)
@option("--group-size", type=int, default=32, show_default=True, metavar="N")
@option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    default=0.25,
    show_default=True,
    metavar="S",
    help="Time for each line.",
)
@option("--threads", type=click.IntRange(1), metavar="N", show_default="torch's")
@click.pass_context
def command(
    ctx: click.Context,
    shapes: tuple[tuple[int, int], ...],
    model: str | None,
    rows: tuple[int, ...],
    dtypes: tuple[str, ...],
    computes: tuple[str, ...],
    group_size: int,
    seconds: float,
    threads: int | None,
) -> None:
    """Measure the kernels on this machine, and how near they come to its limit.

    A product with few rows cannot take less time than reading the weights: "of read" is that time
    as a share of the one measured. The bandwidth it rests on is the best that torch's own
    reductions reach here, which is somewhat below the machine's: 100 % and more are possible.
    Weights that fit the caches have no such share. "x torch" is torch's fp32 time for the same
    shape, divided by the kernel's.

    All lines are measured in turn, five times, on weights that are larger than the cache together;
    shown is the median. Let the machine do nothing else. `make bench` in woq's sources has loops of
    its own for the limits, of arithmetic too.
    """
    output = output_of(ctx)
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    if model is not None:
        shapes = (*shapes, *_shapes_of(model, output))
    rows_of = _measure(
        shapes or _SHAPES, rows, dtypes, computes, group_size, seconds, output.progress
    )
    from woq.core.environment import environment

    values = {"environment": environment(), **rows_of}
    output.result(values, lambda: _text(values))


def _shapes_of(model: str, output: Output) -> list[tuple[int, int]]:
    loaded = load_model(find_model(model), output)
    from woq.reports.inspection import layer_facts

    found = {layer.shape for layer in layer_facts(loaded) if layer.is_linear}
    return sorted(found)


class _Case:
    """A function to time; what it returned last is kept, so that nothing is left out."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call
        self.times: list[float] = []

    def run(self, seconds: float) -> None:
        """One figure: the median of the calls that fit into `seconds`, at least three."""
        self.call()
        taken: list[float] = []
        stop = time.perf_counter() + seconds
        while len(taken) < 3 or time.perf_counter() < stop:
            start = time.perf_counter()
            self.call()
            taken.append(time.perf_counter() - start)
        self.times.append(statistics.median(taken))

    @property
    def seconds(self) -> float:
        return statistics.median(self.times)


def _measure(
    shapes: Sequence[tuple[int, int]],
    rows: Sequence[int],
    dtypes: Sequence[str],
    computes: Sequence[str],
    group_size: int,
    seconds: float,
    progress: bool,
) -> dict[str, Any]:
    import torch
    from tqdm import tqdm

    buffer = torch.ones(max(64 << 20, _CACHES * _cache_bytes()) // 4)
    matrix = buffer[: len(buffer) // 4096 * 4096].view(-1, 4096)
    vector = torch.ones(4096)
    reads = [_Case(buffer.sum), _Case(lambda: matrix @ vector)]
    steps = len(shapes) * len(dtypes) * len(computes) * len(rows)
    results: list[dict[str, Any]] = []
    with (
        torch.inference_mode(),
        tqdm(total=steps, desc="Measuring", file=sys.stderr, disable=not progress) as bar,
    ):
        for shape in shapes:
            weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
            plain = {count: _float_case(weight, count) for count in rows}
            for dtype in dtypes:
                lines = list(_lines(weight, rows, dtype, computes, group_size))
                for _ in range(_ROUNDS):
                    for case in (*reads, *plain.values(), *(line[1] for line in lines)):
                        case.run(seconds / _ROUNDS)
                for facts, case in lines:
                    facts |= {
                        "seconds": case.seconds,
                        "torch_fp32_seconds": plain[facts["rows"]].seconds,
                    }
                    results.append(facts)
                    bar.update()
    bandwidth = len(buffer) * 4 / min(read.seconds for read in reads)
    for facts in results:
        read = facts.pop("copies") * facts["bytes"]
        cached = read <= _cache_bytes()
        facts["of_read"] = None if cached else facts["bytes"] / bandwidth / facts["seconds"]
    return {"read_bytes_per_second": bandwidth, "results": results}


def _float_case(weight: Any, count: int) -> _Case:
    import torch

    x = torch.ones(count, weight.shape[1])
    copies = [weight.clone() for _ in range(_copies(weight.numel() * 4))]
    return _Case(_in_turn([lambda w=w: torch.nn.functional.linear(x, w) for w in copies]))  # type: ignore[misc]


def _lines(
    weight: Any, rows: Sequence[int], dtype: str, computes: Sequence[str], group_size: int
) -> Iterator[tuple[dict[str, Any], _Case]]:
    import torch

    from woq.core import native

    threads = torch.get_num_threads()
    quantized = native.quantize_rtn(weight, native.QuantScheme(dtype, group_size))
    for compute in computes:
        first = native.Linear(quantized, None, compute, "", threads)
        others = [
            native.Linear(quantized, None, compute, "", threads)
            for _ in range(_copies(first.nbytes) - 1)
        ]
        for count in rows:
            x = torch.ones(count, weight.shape[1])
            y = torch.empty(count, weight.shape[0])
            calls = [
                lambda layer=layer, x=x, y=y: layer.forward(x, y, threads)  # type: ignore[misc]
                for layer in (first, *others)
            ]
            facts = {
                "shape": f"{weight.shape[0]}x{weight.shape[1]}",
                "rows": count,
                "weights": dtype,
                "compute": first.compute_dtype,
                "kernel": first.explain()["kernel"],
                "bytes": first.nbytes,
                "copies": 1 + len(others),
                "operations": 2 * count * weight.numel(),
            }
            yield facts, _Case(_in_turn(calls))


def _in_turn(calls: Sequence[Callable[[], Any]]) -> Callable[[], Any]:
    state = iter(range(1 << 62))
    return lambda: calls[next(state) % len(calls)]()


def _copies(nbytes: int) -> int:
    wanted = -(-_CACHES * _cache_bytes() // nbytes)
    return max(1, min(wanted, _MOST_BYTES // nbytes))


def _cache_bytes() -> int:
    """Of the last level, as Linux tells it: of all such caches that this process's CPUs have."""
    caches: dict[str, int] = {}
    for cpu in os.sched_getaffinity(0):
        folder = Path(f"/sys/devices/system/cpu/cpu{cpu}/cache/index3")
        size, shared = folder / "size", folder / "shared_cpu_list"
        if size.is_file() and shared.is_file():
            found = re.fullmatch(r"(\d+)K\s*", size.read_text())
            caches[shared.read_text()] = int(found[1]) << 10 if found else 0
    return sum(caches.values()) or 32 << 20


def _text(values: dict[str, Any]) -> str:
    machine = values["environment"]
    lines = [
        f"{machine['cpu']}, {counted(machine['threads'], 'thread')}",
        f"read bandwidth {values['read_bytes_per_second'] / 1e9:.1f} GB/s, as torch reads",
        "",
        table(
            [
                {
                    "shape": each["shape"],
                    "rows": each["rows"],
                    "weights": each["weights"],
                    "compute": each["compute"],
                    "kernel": each["kernel"],
                    "us": each["seconds"] * 1e6,
                    "GB/s": each["bytes"] / each["seconds"] / 1e9,
                    "of read": None
                    if each["of_read"] is None
                    else f"{100 * each['of_read']:.0f} %",
                    "GFLOP/s": each["operations"] / each["seconds"] / 1e9,
                    "x torch": each["torch_fp32_seconds"] / each["seconds"],
                }
                for each in values["results"]
            ]
        ),
    ]
    shares = [each["of_read"] for each in values["results"]]
    if any(share is not None and share > 1 for share in shares):
        lines += [
            "",
            "of read above 100 %: the kernel reads faster than torch's reductions, which the "
            "bandwidth above is measured by.",
        ]
    if None in shares:
        lines += ["", "of read -: the weights are read from a cache, not from memory."]
    return "\n".join(lines)
