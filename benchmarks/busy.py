# SPDX-License-Identifier: Apache-2.0
"""Milliseconds a token with and without other programs that keep cores busy.

Each case is a process of its own, because OpenMP reads its wait policy when it is loaded: woq as a
library, woq as the command `woq` sets it, unquantized torch, and with --policy further settings of
the environment for woq. All wait for their turn; a turn is one answer without neighbours and one
beside them. A neighbour is a loop in another process. The figures are medians over the turns; the
machine has to be quiet, or "idle" is not.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from common import Timing, add_model_arguments, load_fp32, machine, quantized, report

from woq.cli import wait_briefly

PROMPT = "The capital of France is"
POLICY_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
TORCH = "torch fp32"


def policies(more: Sequence[str]) -> dict[str, dict[str, str]]:
    """Case -> what it adds to the environment."""
    command: dict[str, str] = {}
    wait_briefly(command)
    settings = {setting: dict(part.split("=", 1) for part in setting.split()) for setting in more}
    return {"woq": {}, "woq, the command": command, TORCH: {}} | {
        f"woq, {setting}": environment for setting, environment in settings.items()
    }


def answer(arguments: argparse.Namespace) -> None:
    """What a child does: print the milliseconds a token of one answer for each line of input."""
    import torch

    import woq

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model, tokenizer, _ = load_fp32(arguments.model)
    if arguments.child != TORCH:
        (dtype,), (compute,) = arguments.dtype, arguments.compute
        model = quantized(
            model, weight_dtype=dtype, compute_dtype=compute, group_size=arguments.group_size
        )
    pipe = woq.pipeline("text-generation", model, tokenizer)
    tokens = {"max_new_tokens": arguments.tokens, "min_new_tokens": arguments.tokens}
    pipe(PROMPT, do_sample=False, **tokens)
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        pipe(PROMPT, do_sample=False, **tokens)
        print(1e3 * (time.perf_counter() - start) / arguments.tokens, flush=True)


class Child:
    def __init__(self, name: str, policy: Mapping[str, str], arguments: Sequence[str]) -> None:
        environment = {k: v for k, v in os.environ.items() if k not in POLICY_VARIABLES}
        self.process = subprocess.Popen(
            [sys.executable, __file__, *arguments, "--child", name],
            env={**environment, **policy},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.input: IO[str] = self.process.stdin
        self.output: IO[str] = self.process.stdout
        if self.output.readline().strip() != "ready":
            raise SystemExit(f"{name}: the process has ended, see above")

    def milliseconds(self) -> float:
        self.input.write("\n")
        self.input.flush()
        return float(self.output.readline())

    def close(self) -> None:
        self.input.close()
        self.process.wait()
        self.output.close()


@contextlib.contextmanager
def neighbours(count: int) -> Iterator[None]:
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(0.5 if count else 0.0)  # until they run
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=32, help="of an answer")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--neighbours", type=int, default=1, help="busy processes beside it")
    parser.add_argument(
        "--policy",
        action="append",
        default=[],
        metavar="NAME=VALUE ...",
        help="another case: woq with these variables, such as OMP_WAIT_POLICY=passive",
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    add_model_arguments(parser)
    parser.set_defaults(dtype=["nf4"], compute=["fp32"])
    args = parser.parse_args(arguments)
    if len(args.dtype) != 1 or len(args.compute) != 1:
        parser.error("one --dtype and one --compute")
    if args.child:
        answer(args)
        return []

    given = sys.argv[1:] if arguments is None else list(arguments)
    facts = machine(args.threads)
    facts["neighbours"] = args.neighbours
    facts["protocol"] = (
        f"{args.dtype[0]} {args.compute[0]}, answers of {args.tokens} tokens, median of "
        f"{args.repeats} turns, idle and busy in turn"
    )
    children = {name: Child(name, policy, given) for name, policy in policies(args.policy).items()}
    times: dict[str, dict[int, list[float]]] = {}
    for _ in range(args.repeats):
        for name, child in children.items():
            for count in (0, args.neighbours):
                with neighbours(count):
                    seen = times.setdefault(name, {}).setdefault(count, [])
                    seen.append(child.milliseconds())
    for child in children.values():
        child.close()
    rows = []
    for name, by_count in times.items():
        idle, busy = (Timing(tuple(by_count[count])) for count in (0, args.neighbours))
        rows.append(
            {
                "case": name,
                "idle_ms": idle.median,
                "idle_spread": idle.spread,
                "busy_ms": busy.median,
                "busy_spread": busy.spread,
                "busy/idle": busy.median / idle.median,
            }
        )
    report(facts, rows, as_json=args.json)
    return rows


if __name__ == "__main__":
    main()
