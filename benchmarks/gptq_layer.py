# SPDX-License-Identifier: Apache-2.0
"""GPTQ of one layer beside the same algorithm in torch, at the same number of threads.

Both get the same weight and the same second moments of correlated inputs, and do algorithm 1 of the
paper (arXiv:2210.17323): damping, the upper Cholesky factor of the inverse, blocks of 128 columns
whose error is passed on at once, the scale of a group from the weights in flight. Symmetric int4
(absmax / 7), no order of the columns, no search of ranges. Medians of interleaved repeats; the
error shown is of the layer's output, relative to rounding to nearest.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from common import interleave, machine, report, seconds_per_call

import woq
from woq.core import native

_DAMP, _BLOCK = 0.01, 128


def layer(rows: int, cols: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight [N, K] and inputs [2 K, K]: neighbours are correlated, some channels large."""
    x = torch.randn(2 * cols, cols)
    x[:, 1:] += 0.7 * x[:, :-1]
    x[:, 5::24] *= 8
    return 0.02 * torch.randn(rows, cols), x


def torch_gptq(weight: torch.Tensor, moments: torch.Tensor, group: int) -> torch.Tensor:
    """W~ [N, K]; moments [K, K] are X^T X."""
    w, h = weight.clone(), moments.clone()
    rows, cols = w.shape
    h.diagonal().add_(_DAMP * h.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    upper = torch.linalg.cholesky(inverse, upper=True)
    result = torch.empty_like(w)
    scale = torch.empty(rows)
    for first in range(0, cols, _BLOCK):
        last = min(first + _BLOCK, cols)
        errors = torch.empty(rows, last - first)
        for k in range(first, last):
            if k % group == 0:
                scale = w[:, k : k + group].abs().amax(dim=1).div_(7).clamp_(min=1e-30)
            column = w[:, k]
            result[:, k] = (column / scale).round_().clamp_(-8, 7).mul_(scale)
            errors[:, k - first] = (column - result[:, k]) / upper[k, k]
            w[:, k:last].addr_(errors[:, k - first], upper[k, k:last], alpha=-1)
        w[:, last:].addmm_(errors, upper[first:last, last:], alpha=-1)
    return result


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", nargs=2, type=int, default=[4096, 4096], metavar=("N", "K"))
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="default: as torch chooses")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args(arguments)
    if args.group_size < 1 or _BLOCK % args.group_size:
        parser.error(f"--group-size must divide {_BLOCK}")  # as torch_gptq has it

    facts = machine(args.threads)
    torch.manual_seed(0)
    weight, x = layer(*args.shape)
    moments = x.T @ x
    hessian = native.Hessian(args.shape[1])
    hessian.add(x, num_threads=torch.get_num_threads())
    scheme = native.QuantScheme("int4_clip", args.group_size)
    results: dict[str, torch.Tensor] = {}

    def ours() -> None:
        matrix = native.quantize_gptq(
            weight,
            hessian,
            scheme,
            damp=_DAMP,
            block_size=_BLOCK,
            act_order="none",
            num_threads=torch.get_num_threads(),
        )
        results["woq"] = torch.from_numpy(matrix.dequantize())

    def theirs() -> None:
        results["torch"] = torch_gptq(weight, moments, args.group_size)

    cases = {"torch": seconds_per_call(theirs, 1), "woq": seconds_per_call(ours, 1)}
    timings = interleave(cases, args.repeats)

    def error(rounded: torch.Tensor) -> float:
        return float(native.layer_error(weight, rounded, hessian, torch.get_num_threads()))

    nearest = error(torch.from_numpy(woq.quantize_rtn(weight, scheme).dequantize()))
    rows = [
        {
            "case": name,
            "seconds": timing.median,
            "spread": timing.spread,
            "x_torch": timings["torch"].median / timing.median,
            "error_of_rtn": error(results[name]) / nearest,
        }
        for name, timing in timings.items()
    ]
    facts["layer"] = f"{args.shape[0]} x {args.shape[1]}, group size {args.group_size}"
    report(facts, rows, as_json=args.json)
    return rows


if __name__ == "__main__":
    main()
