# SPDX-License-Identifier: Apache-2.0
"""`woq inspect`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import click

from ._command import Command, output_of
from ._models import Loading, model_options
from ._options import option
from ._text import size, table


@click.command(
    cls=Command,
    short_help="Show dtype, group size, bytes and kernel of each layer.",
    examples=[
        "woq inspect smollm2-nf4",
        "woq inspect smollm2-nf4 --all",
        "woq inspect smollm2-nf4 --json | jq '.layers[] | select(.kernel)'",
    ],
)
@click.argument("model")
@option("--all", "each", is_flag=True, help="A line for each layer, not for each kind.")
@model_options
@click.pass_context
def command(
    ctx: click.Context,
    model: str,
    each: bool,
    loading: Loading,
) -> None:
    """Show what MODEL consists of: dtype, group size, bytes and kernel of each layer.

    The model is loaded: bytes are those in memory, kernels those of this machine.
    """
    output = output_of(ctx)
    loaded = loading.load(loading.find(model), output)
    from woq.modules.targets import parameter_count
    from woq.reports.inspection import layer_facts, model_bytes

    facts = layer_facts(loaded)
    values = {
        "model": model,
        "architecture": type(loaded).__name__,
        "parameters": parameter_count(loaded),
        "bytes": model_bytes(loaded),
        "layers": [dataclasses.asdict(layer) for layer in facts],
    }
    output.result(values, lambda: _text(values, facts, each))


def _text(values: dict[str, Any], facts: Sequence[Any], each: bool) -> str:
    quantized = [layer for layer in facts if layer.quantized]
    weights = sum(layer.shape[0] * layer.shape[1] for layer in quantized)
    lines = [
        f"{values['architecture']}, {values['parameters']:,} parameters, "
        f"{size(values['bytes'])} in memory"
    ]
    if quantized:
        nbytes = sum(layer.nbytes for layer in quantized)
        lines.append(
            f"{len(quantized)} layers quantized: {size(nbytes)}, "
            f"{8 * nbytes / weights:.2f} bits a weight"
        )
    else:
        lines.append("nothing is quantized")
    groups: dict[Any, list[Any]] = {}
    for layer in facts:
        groups.setdefault(layer.name if each else _kind(layer), []).append(layer)
    rows = []
    for layers in groups.values():
        first = layers[0]
        group = {-1: "row", None: None}.get(first.group_size, first.group_size)
        rows.append(
            {
                "layer": first.name if each else _pattern(first.name),
                "count": len(layers),
                "shape": f"{first.shape[0]}x{first.shape[1]}",
                "dtype": first.weight_dtype + ("" if first.scheme == "sym" else f" {first.scheme}"),
                "group": None if group is None else str(group),
                "scales": first.scale_dtype,
                "MiB": round(sum(layer.nbytes for layer in layers) / 2**20, 2),
                "kernel": first.kernel,
            }
        )
        if each:
            del rows[-1]["count"]
    return "\n".join([*lines, "", table(rows)])


def _pattern(name: str) -> str:
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)


def _kind(layer: Any) -> tuple[Any, ...]:
    """What layers must have in common to share a line."""
    values = {name: value for name, value in dataclasses.asdict(layer).items() if name != "nbytes"}
    return (_pattern(values.pop("name")), *values.values())
