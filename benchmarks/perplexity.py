# SPDX-License-Identifier: Apache-2.0
"""Perplexity, KL divergence to fp32 and top-1 agreement of every weight and compute dtype.

The protocol is woq.reports.evaluation's, over the first `--windows` pieces of `--length` tokens.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import (
    COMPUTE_DTYPES,
    DTYPES,
    add_model_arguments,
    load_fp32,
    machine,
    quantized,
    report,
    windows_of_file,
)

from woq.reports.evaluation import log_probabilities, score


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", required=True, metavar="FILE", help="UTF-8 text to score")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--scheme", choices=("sym", "asym"), default="sym")
    parser.add_argument("--mse-range", action="store_true", help="search scales by squared error")
    parser.add_argument("--lm-head", metavar="NAME", help="also quantize the output embedding")
    add_model_arguments(parser)
    args = parser.parse_args(arguments)
    if args.windows < 1 or args.length < 2:
        parser.error("--windows must be at least 1 and --length at least 2")

    facts = machine(args.threads)
    model, tokenizer, facts["model"] = load_fp32(args.model)
    windows = windows_of_file(tokenizer, args.text, args.windows, args.length)
    facts["text"] = f"{Path(args.text).name}, {args.windows} windows of {args.length} tokens"
    facts["scheme"] = f"{args.scheme}, group size {args.group_size}, output embedding " + (
        args.lm_head or "fp32"
    )

    # 4 * windows * length * vocabulary bytes: 1.6 GB for the defaults, and each model runs once.
    reference = list(log_probabilities(model, windows))
    base = score(windows, reference, reference)
    rows = [{"weights": "fp32", "compute": "fp32", **base, "ppl_change_%": 0.0}]
    dtypes = args.dtype or [
        name for name in DTYPES if args.scheme == "sym" or name.startswith("int")
    ]
    for dtype in dtypes:
        for compute in args.compute or COMPUTE_DTYPES:
            candidate = quantized(
                model,
                weight_dtype=dtype,
                compute_dtype=compute,
                group_size=args.group_size,
                scheme=args.scheme,
                mse_range=args.mse_range,
                quantize_lm_head=args.lm_head or False,
            )
            figures = score(windows, reference, log_probabilities(candidate, windows))
            change = 100 * (figures["perplexity"] / base["perplexity"] - 1)
            rows.append({"weights": dtype, "compute": compute, **figures, "ppl_change_%": change})
            del candidate
    report(facts, rows, as_json=args.json)
    return rows


if __name__ == "__main__":
    main()
