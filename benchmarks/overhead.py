# SPDX-License-Identifier: Apache-2.0
"""Cost of one call: a tiny layer beside torch's, and a large one at M = 1 beside its alternatives.

The tiny layer shows what Python, dispatch and thread start-up cost (its arithmetic is nothing). The
large one is compared with dequantizing the whole weight before each matmul and with torch's own
linear. `--copies` layers are used in turn, so that the weights come from memory and not from the
last-level cache. Medians of interleaved repeats.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from common import COMPUTE_DTYPES, DTYPES, interleave, machine, report, seconds_per_call
from torch import nn
from torch.nn import functional

import woq


def quantized_layer(layer: nn.Linear, dtype: str, compute: str, group_size: int) -> nn.Module:
    config = woq.WeightOnlyQuantConfig(
        weight_dtype=dtype, compute_dtype=compute, group_size=group_size
    )
    holder = nn.Sequential(
        nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    )
    holder.load_state_dict({f"0.{name}": value for name, value in layer.state_dict().items()})
    return woq.quantize(holder, config)[0]


def dequantize_then_matmul(layer: nn.Linear, dtype: str, group_size: int) -> Callable[..., Any]:
    matrix = woq.quantize_rtn(layer.weight.detach(), dtype=dtype, group_size=group_size)

    def call(x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, torch.from_numpy(matrix.dequantize()), layer.bias)

    return call


def in_turn(calls: Sequence[Callable[[torch.Tensor], Any]], x: torch.Tensor) -> Callable[[], Any]:
    turn = itertools.cycle(calls)
    return lambda: next(turn)(x)


def small_cases(args: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    layer = nn.Linear(args.small, args.small).eval()
    x = torch.randn(1, args.small)
    cases: dict[str, Callable[[], Any]] = {
        "torch fp32": lambda: functional.linear(x, layer.weight, layer.bias)
    }
    for dtype, compute in itertools.product(args.dtype, args.compute):
        candidate = quantized_layer(layer, dtype, compute, args.group_size)
        cases[f"woq {dtype} {compute}"] = lambda candidate=candidate: candidate(x)
    return cases


def large_cases(args: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    layers = [nn.Linear(args.large, args.large, bias=False).eval() for _ in range(args.copies)]
    halves = [layer.weight.to(torch.bfloat16) for layer in layers]
    x = torch.randn(1, args.large)

    def half(weight: torch.Tensor) -> Callable[[torch.Tensor], Any]:
        return lambda x: functional.linear(x, weight)

    cases = {
        "torch fp32": in_turn(layers, x),
        "torch bf16": in_turn([half(weight) for weight in halves], x.to(torch.bfloat16)),
    }
    for dtype in args.dtype:
        cases[f"dequantize {dtype}, matmul"] = in_turn(
            [dequantize_then_matmul(layer, dtype, args.group_size) for layer in layers], x
        )
        for compute in args.compute:
            cases[f"woq {dtype} {compute}"] = in_turn(
                [quantized_layer(layer, dtype, compute, args.group_size) for layer in layers], x
            )
    return cases


@torch.inference_mode()
def measure(
    size: int, cases: dict[str, Callable[[], Any]], calls: int, repeats: int
) -> list[dict[str, Any]]:
    timings = interleave(
        {name: seconds_per_call(call, calls) for name, call in cases.items()}, repeats
    )
    rows = []
    for name, timing in timings.items():
        dequantize = timings.get(f"dequantize {name.split(' ')[1]}, matmul")
        half = timings.get("torch bf16")
        rows.append(
            {
                "layer": f"{size}x{size}",
                "case": name,
                "us": 1e6 * timing.median,
                "spread": timing.spread,
                "us_above_torch": 1e6 * (timing.median - timings["torch fp32"].median),
                "x_torch_fp32": timings["torch fp32"].median / timing.median,
                "x_torch_bf16": half.median / timing.median if half else None,
                "x_dequantize": dequantize.median / timing.median if dequantize else None,
            }
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", type=int, default=64, help="size of the tiny layer")
    parser.add_argument("--large", type=int, default=4096, help="size of the large layer")
    parser.add_argument("--copies", type=int, default=4, help="large layers used in turn")
    parser.add_argument("--small-calls", type=int, default=2000)
    parser.add_argument("--large-calls", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["nf4", "int4_clip"])
    parser.add_argument("--compute", nargs="+", choices=COMPUTE_DTYPES, default=COMPUTE_DTYPES)
    parser.add_argument("--group-size", type=int, default=32)
    parser.add_argument("--threads", type=int, help="default: as torch chooses")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args(arguments)

    facts = machine(args.threads)
    facts["protocol"] = (
        f"M = 1, group size {args.group_size}, median of {args.repeats} interleaved repeats; "
        f"{args.copies} large layers in turn"
    )
    torch.manual_seed(0)
    rows = measure(args.small, small_cases(args), args.small_calls, args.repeats)
    rows += measure(args.large, large_cases(args), args.large_calls, args.repeats)
    report(facts, rows, as_json=args.json)
    return rows


if __name__ == "__main__":
    main()
