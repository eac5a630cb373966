# SPDX-License-Identifier: Apache-2.0
"""Tables and sizes for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["pairs", "size", "table"]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Columns in the order of the first row; text to the left, numbers to the right."""
    columns = list(rows[0])
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [
        max(len(column), *(len(line[i]) for line in cells)) for i, column in enumerate(columns)
    ]
    numeric = [not any(isinstance(row.get(column), str) for row in rows) for column in columns]
    lines = [
        "  ".join(
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in [columns, ["-" * width for width in widths], *cells]
    ]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 100 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def pairs(values: Mapping[str, Any]) -> str:
    """A line for each value; nested ones and lists in one line."""
    width = max(map(len, values))
    return "\n".join(f"{name.ljust(width)}  {_flat(value)}" for name, value in values.items())


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_flat(each)}" for key, each in value.items()) or "-"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)


def size(count: float) -> str:
    return f"{count / 2**20:,.1f} MiB"
