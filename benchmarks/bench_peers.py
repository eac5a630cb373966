# SPDX-License-Identifier: Apache-2.0
"""The same products through woq and through every other library that is installed.

Interleaved: each repeat runs every candidate once, in a shuffled but seeded order, after a pause
in which the last one's threads go to sleep and a call that isn't timed. With few rows the calls of
a turn go through copies of the weight of more than four last-level caches. Outputs are checked
before anything is timed, and what doesn't run is listed with the reason.

x_peer and x_woq are the speed over the fastest peer's and the fastest of woq's, among candidates
with the same kind of products: float (fp32 and bf16) or int8. A candidate that was asked for less
but is as exact as fp32 computes in fp32, and is listed so. GB/s counts canonical bytes: codes,
2 bytes a scale, zero points.

    bench_peers.py --m 1 16 256 --dtype int4_clip nf4 --group-size 32 128 --threads 2
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import random
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import DTYPES, Timing, machine, print_header, print_table
from numpy.typing import NDArray
from peers import CANDIDATES, TOLERANCE, Peer, Run, Weight, Work, relative_error

# Up to so many rows a product is bound by memory (as in cpp/gemm_case.h).
MEMORY_BOUND_ROWS = 4
PAUSE = 0.005  # seconds; OpenMP's and ONNX Runtime's threads spin for less

Row = dict[str, Any]


def last_level_cache_bytes() -> int:
    """The kernel's word; glibc's sysconf counts ten times the cache on some AMD processors."""
    try:
        size = Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text().strip()
        return int(size.removesuffix("K")) << 10
    except (OSError, ValueError):
        return 32 << 20


def copies_of(work: Work, cache_bytes: int) -> int:
    if work.m > MEMORY_BOUND_ROWS:
        return 1
    return int(4.2 * cache_bytes / work.weight_bytes) + 1


@contextmanager
def limited_to(threads: int) -> Iterator[None]:
    """As many CPUs as threads, so that no library's own pool can use more."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:threads])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


# Building and checking


def build(
    peer: Peer, weight: Weight, copies: int, threads: int, x: NDArray[np.float32]
) -> tuple[Run | None, str, float | None]:
    """The candidate, checked; or None and why not. Third: the error of its output."""
    reason = peer.missing() or peer.unsupported(weight.work)
    if reason:
        return None, reason, None
    try:
        run = peer.build(weight, copies, threads)
        outputs = [peer.to_numpy(y) for y in run(peer.prepare(x))]
        expected = torch.from_numpy(x) @ torch.from_numpy(peer.reference(weight)).T
        error = max(relative_error(y, expected.numpy()) for y in outputs)
    except Exception as failure:  # noqa: BLE001  # other people's code fails in its own ways
        text = str(failure).strip() or "no message"
        return None, f"failed: {type(failure).__name__}: {text.splitlines()[0]}", None
    if not error <= peer.tolerance:
        return None, f"wrong: relative error {error:.2g}, allowed {peer.tolerance:.2g}", error
    return run, "", error


# Timing


def seconds_of(run: Run, x: Any, least: float) -> float:
    """Mean seconds of one product over about `least` seconds, at least one turn of all copies."""
    products = 0
    start = time.perf_counter()
    while True:
        products += len(run(x))
        elapsed = time.perf_counter() - start
        if elapsed >= least:
            return elapsed / products


def measure_limits(program: Path, threads: int) -> dict[str, float]:
    """Read bandwidth and peaks, best instruction set, in units a second: one quick probe."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    output = subprocess.run(
        [str(program), "1", "0.05"], env=environment, capture_output=True, text=True, check=True
    ).stdout
    limits: dict[str, float] = {}
    for line in output.splitlines():
        fields = line.split()
        if len(fields) == 6 and fields[2] == str(threads):
            limits[fields[0]] = max(limits.get(fields[0], 0.0), 1e9 * float(fields[3]))
    return limits


def measure(
    work: Work, candidates: Sequence[Peer], args: argparse.Namespace, seed: int
) -> tuple[list[Row], list[Row], list[dict[str, float]]]:
    """Rows of the timed candidates, of the others, and the limits of each repeat."""
    weight = Weight(work, seed)
    x = np.random.default_rng(seed + 1).standard_normal((work.m, work.k), dtype=np.float32)
    copies = copies_of(work, args.cache_mib << 20 if args.cache_mib else last_level_cache_bytes())
    running: dict[str, tuple[Peer, Run, Any, float]] = {}
    left_out: list[Row] = []
    for peer in candidates:
        run, reason, error = build(peer, weight, copies, args.threads, x)
        if run is None:
            left_out.append({"work": work.name, "candidate": peer.name, "reason": reason})
        else:
            assert error is not None
            running[peer.name] = (peer, run, peer.prepare(x), error)
    gc.collect()

    order = list(running)
    shuffle = random.Random(seed)
    values: dict[str, list[float]] = {name: [] for name in order}
    limits: list[dict[str, float]] = []
    for _ in range(args.repeats):
        shuffle.shuffle(order)
        if args.roofline:
            limits.append(measure_limits(args.roofline, args.threads))
        for name in order:
            _, run, prepared, _ = running[name]
            time.sleep(PAUSE)
            run(prepared)
            values[name].append(seconds_of(run, prepared, args.seconds))

    rows: list[Row] = []
    for name, (peer, _, _, error) in running.items():
        timing = Timing(tuple(values[name]))
        rows.append(
            {
                "dtype": work.dtype,
                "group": work.group_size,
                "scheme": "asym" if work.asym else "sym",
                "N": work.n,
                "K": work.k,
                "M": work.m,
                "candidate": name,
                "products": "fp32" if error <= TOLERANCE["fp32"] else peer.activations,
                "us": 1e6 * timing.median,
                "spread": timing.spread,
                "GB/s": work.weight_bytes / timing.median / 1e9,
                "GFLOP/s": work.operations / timing.median / 1e9,
                "FLOP/byte": work.operations / work.weight_bytes,
                "error": error,
            }
        )
        if limits:
            rows[-1]["%limit"] = percent_of_limit(work, rows[-1]["products"], timing, limits)
    add_ratios(rows)
    return rows, left_out, limits


def add_ratios(rows: Sequence[Row]) -> None:
    """Speed over the fastest peer's and over woq's fastest, among the same kind of products."""

    def kind(row: Row) -> str:
        return "int8" if row["products"] == "int8" else "float"

    def is_ours(row: Row) -> bool:
        return row["candidate"].startswith("woq ")

    for row in rows:
        alike = [other for other in rows if kind(other) == kind(row)]
        for column, ours in (("x_peer", False), ("x_woq", True)):
            times = [other["us"] for other in alike if is_ours(other) == ours]
            row[column] = min(times) / row["us"] if times else None


def percent_of_limit(
    work: Work, products: str, timing: Timing, limits: Sequence[Mapping[str, float]]
) -> float | None:
    """Of what bounds the work, bandwidth for few rows, else a peak: median of the ratios."""
    memory_bound = work.m <= MEMORY_BOUND_ROWS
    name = "read" if memory_bound else products if products in limits[0] else "fp32"
    if name not in limits[0]:
        return None
    amount = work.weight_bytes if memory_bound else work.operations
    return 100 * statistics.median(
        amount / seconds / limit[name] for seconds, limit in zip(timing.values, limits, strict=True)
    )


# Report


def report(
    facts: Row,
    rows: Sequence[Row],
    left_out: Sequence[Row],
    limits: Mapping[str, float],
    path: Path | None,
) -> None:
    if path is not None:
        everything = {
            "machine": facts,
            "limits": limits,
            "results": rows,
            "not_timed": left_out,
        }
        path.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
    print_header(facts)
    for name, rate in limits.items():
        print(f"# limit {name}: {rate / 1e9:.1f} {'GB/s' if name == 'read' else 'GFLOP/s'}")
    print()
    if rows:
        print_table([{k: v for k, v in row.items() if k != "FLOP/byte"} for row in rows])
    if left_out:
        print("\nNot timed:")
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in left_out:
        reasons.setdefault((row["candidate"], row["reason"]), []).append(row["work"])
    for (candidate, reason), works in reasons.items():
        print(f"  {candidate}: {reason} ({len(works)} of the works, first {works[0]})")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    libraries = list(dict.fromkeys(peer.library for peer in CANDIDATES))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--m", nargs="+", type=int, default=[1, 4, 16, 64, 256, 1024])
    parser.add_argument(
        "--shape", nargs=2, type=int, action="append", metavar=("N", "K"), help="may be repeated"
    )
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["int4_clip", "nf4"])
    parser.add_argument("--group-size", nargs="+", type=int, default=[32])
    parser.add_argument("--scheme", nargs="+", choices=("sym", "asym"), default=["sym"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.05, help="of one turn of a candidate")
    parser.add_argument("--seed", type=int, default=0, help="of the matrices and of the order")
    parser.add_argument("--cache-mib", type=int, help="default: the last-level cache's size")
    parser.add_argument("--peers", nargs="+", choices=libraries, default=libraries, metavar="NAME")
    parser.add_argument(
        "--roofline", type=Path, help="the C++ program; measures the limits in every repeat"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    args = parser.parse_args(arguments)
    if args.threads > len(os.sched_getaffinity(0)):
        parser.error(f"--threads {args.threads}: there are {len(os.sched_getaffinity(0))} CPUs")
    args.shape = args.shape or [[14336, 4096]]
    return args


def works_of(args: argparse.Namespace) -> list[Work]:
    """Every combination; only integers have an asymmetric scheme."""
    return [
        Work(m, n, k, dtype, group, scheme == "asym")
        for dtype, group, scheme, (n, k), m in itertools.product(
            args.dtype, args.group_size, args.scheme, args.shape, args.m
        )
        if scheme == "sym" or dtype.startswith("int")
    ]


def main(
    arguments: Sequence[str] | None = None, candidates: Sequence[Peer] = tuple(CANDIDATES)
) -> tuple[list[Row], list[Row]]:
    args = parse(arguments)
    works = works_of(args)
    # For libraries that ask the environment when they are loaded.
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    chosen = [peer for peer in candidates if peer.library in args.peers]
    packages = dict.fromkeys(package for peer in chosen for package in peer.packages)
    facts = machine(args.threads, tuple(packages))
    facts["protocol"] = (
        f"median of {args.repeats} interleaved repeats of {args.seconds} s, order shuffled with "
        f"seed {args.seed}; up to M = {MEMORY_BOUND_ROWS} through more than four last-level caches"
    )
    rows: list[Row] = []
    left_out: list[Row] = []
    probes: list[dict[str, float]] = []
    with limited_to(args.threads), torch.inference_mode():
        for work in works:
            results = measure(work, chosen, args, args.seed)
            for total, part in zip((rows, left_out, probes), results, strict=True):
                total.extend(part)
    limits = {
        name: statistics.median(probe[name] for probe in probes)
        for name in (probes[0] if probes else {})
    }
    report(facts, rows, left_out, limits, args.json)
    return rows, left_out


if __name__ == "__main__":
    main()
