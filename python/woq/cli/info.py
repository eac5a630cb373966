# SPDX-License-Identifier: Apache-2.0
"""`woq info`."""

from __future__ import annotations

import importlib.util
from typing import Any

import click

from ._command import Command, output_of
from ._text import pairs, table


@click.command(
    cls=Command,
    short_help="Show versions, CPU features, threads and kernels.",
    examples=["woq info", "woq info --json | jq .cpu"],
)
@click.pass_context
def command(ctx: click.Context) -> None:
    """Show versions, CPU features, threads and which kernels run here.

    This is what a bug report should carry: paste all of it.
    """
    if importlib.util.find_spec("torch") is not None:
        import torch  # noqa: F401  (its number of threads is the one that counts)
    from woq.core.environment import environment

    facts = environment()
    facts["kernels"] = _kernels()
    output_of(ctx).result(facts, lambda: _text(facts))


def _kernels() -> list[dict[str, str]]:
    """The kernel that this machine chooses for every pair of weight and compute dtype."""
    import numpy as np

    from woq.core import native

    rows = []
    weight = np.ones((64, 64), dtype=np.float32)
    for dtype in native.dtype_names():
        matrix = native.quantize_rtn(weight, native.QuantScheme(dtype))
        row = {"weights": dtype}
        for compute in native.compute_dtype_names():
            row[compute] = str(native.Linear(matrix, None, compute).explain()["kernel"])
        rows.append(row)
    return rows


def _text(facts: dict[str, Any]) -> str:
    plain = {name: value for name, value in facts.items() if name != "kernels"}
    plain["versions"] = {
        name: version or "not installed" for name, version in facts["versions"].items()
    }
    return f"{pairs(plain)}\n\nKernels by weight and compute dtype\n{table(facts['kernels'])}"
