#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Calibration's attention beside torch's, causal, in bfloat16.

    python benchmarks/attention.py [--tokens 2048] [--heads 9] [--kv-heads 3] [--head-dim 64]

Both compute the same call in turn; medians, and the largest difference of the results. On a CPU
without products of bfloat16 torch computes both rows.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch.nn import functional

from woq.observe.attention import FastAttention


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="attention in bfloat16, woq's and torch's")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--heads", type=int, default=9)
    parser.add_argument("--kv-heads", type=int, default=3)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()

    torch.manual_seed(0)
    q, k, v = (
        torch.randn(options.batch, heads, options.tokens, options.head_dim, dtype=torch.bfloat16)
        for heads in (options.heads, options.kv_heads, options.kv_heads)
    )
    seconds: dict[str, list[float]] = {"torch": [], "woq": []}
    results: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for _ in range(options.repeats + 1):
            begin = time.perf_counter()
            results["torch"] = attend(q, k, v)
            middle = time.perf_counter()
            with FastAttention():
                results["woq"] = attend(q, k, v)
            seconds["torch"].append(middle - begin)
            seconds["woq"].append(time.perf_counter() - middle)
    median = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    difference = (results["woq"].float() - results["torch"].float()).abs().max().item()
    shape = f"{options.heads} heads of {options.head_dim} over {options.kv_heads}"
    print(f"{options.batch} x {options.tokens} tokens, {shape}, {torch.get_num_threads()} threads")
    for name, value in median.items():
        print(f"{name:6} {1e3 * value:9.2f} ms")
    print(
        f"woq is {median['torch'] / median['woq']:.2f} times as fast; differs by {difference:.1e}"
    )


if __name__ == "__main__":
    main()
