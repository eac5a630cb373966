# SPDX-License-Identifier: Apache-2.0
"""The tables of the report page, and the words and numbers in them."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..quantizing.report import LayerReport, QuantizationReport
from .inspection import LayerFacts

__all__ = [
    "Row",
    "escape",
    "format_of",
    "layers_table",
    "left_table",
    "mib",
    "number_text",
    "pairs_table",
]


@dataclasses.dataclass(frozen=True)
class Row:
    """One quantized layer: what was done to it, and what it is now."""

    report: LayerReport
    facts: LayerFacts | None  # None for a layer that has been replaced since

    @property
    def bits(self) -> float:
        return 8 * self.report.bytes_after / self.report.parameters

    @property
    def badness(self) -> float:
        """What the rows are sorted by: the lowest SQNR first, those without one last."""
        return math.inf if math.isnan(self.report.sqnr_db) else self.report.sqnr_db


def escape(value: Any) -> str:
    """`value` as text of a page."""
    return html.escape(str(value))


def mib(count: float) -> str:
    """A number of bytes."""
    return f"{count / 2**20:,.1f} MiB"


def number_text(value: float, form: str) -> str:
    """`value` in the format `form`, or the name of what is no number."""
    return format(value, form) if math.isfinite(value) else str(value)


def format_of(row: Row) -> str:
    """The number format of a layer in words."""
    if row.facts is None:
        return row.report.weight_dtype
    group = "rows" if row.facts.group_size == -1 else f"groups of {row.facts.group_size}"
    return f"{row.report.weight_dtype} {row.facts.scheme} in {group}"


_COLUMNS = "Layer|Format, group|Shape|MiB|Bits|SQNR, dB|MSE|Algorithm|Loss|Note".split("|")
_NUMBERS = ("Shape", "MiB", "Bits", "MSE", "Loss")


def layers_table(rows: Sequence[Row]) -> str:
    """A row for each layer, sortable by each column."""
    finite = [row.report.sqnr_db for row in rows if math.isfinite(row.report.sqnr_db)]
    top = max(finite, default=1.0)
    calibrated = any(row.report.loss is not None for row in rows)
    noted = any(row.report.note for row in rows)
    shown = [
        column
        for column in _COLUMNS
        if (column != "Loss" or calibrated) and (column != "Note" or noted)
    ]
    heads = "".join(
        f'<th scope="col"{_head(column)}><button type="button">{column}</button></th>'
        for column in shown
    )
    body = "\n".join(
        "<tr>" + "".join(_cell(column, row, top) for column in shown) + "</tr>" for row in rows
    )
    return f'<table id="layers"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>'


def _head(column: str) -> str:
    if column.startswith("SQNR"):
        return ' aria-sort="ascending"'
    return ' class="number"' if column in _NUMBERS else ""


def _cell(column: str, row: Row, top: float) -> str:
    layer = row.report
    if column == "Layer":
        return f'<th scope="row" data-value="{escape(layer.name)}">{escape(layer.name)}</th>'
    if column == "Format, group":
        short = format_of(row).replace(" in groups of", ",").replace(" in", ",")
        return _data(format_of(row), short)
    if column == "Shape":
        return _data(layer.parameters, f"{layer.shape[0]}&times;{layer.shape[1]}", number=True)
    if column == "MiB":
        return _data(layer.bytes_after, f"{layer.bytes_after / 2**20:.2f}", number=True)
    if column == "Bits":
        return _data(row.bits, f"{row.bits:.2f}", number=True)
    if column == "SQNR, dB":
        exact = layer.sqnr_db == math.inf
        share = 1.0 if exact else layer.sqnr_db / top if math.isfinite(layer.sqnr_db) else 0.0
        bar = f'<span class="bar" style="width: {100 * max(0.0, share):.1f}%"></span>'
        bar = f'<span class="track">{bar}</span>'
        value = "exact" if exact else number_text(layer.sqnr_db, ".2f")
        text = f'<span class="value">{value}</span>'
        return f'<td class="bars" data-value="{row.badness!r}">{text}{bar}</td>'
    if column == "MSE":
        return _data(layer.mse, number_text(layer.mse, ".3e"), number=True)
    if column == "Algorithm":
        return _data(layer.algorithm, layer.algorithm)
    if column == "Loss":
        if layer.loss is None:
            return _data(math.inf, "&ndash;", number=True)
        # Beside what it was before tuning.
        beside = f" ({layer.loss / layer.start_loss:.2f}&times;)" if layer.start_loss else ""
        return _data(layer.loss, f"{layer.loss:.2e}{beside}", number=True)
    return _data(layer.note, escape(layer.note))


def _data(value: Any, text: str, *, number: bool = False) -> str:
    kind = ' class="number"' if number else ""
    return f'<td{kind} data-value="{escape(value)}">{text}</td>'


def left_table(report: QuantizationReport) -> str:
    """What stays in floating point, and why."""
    if not report.left:
        return "<p>Nothing.</p>"
    rows = "\n".join(
        f"<tr><td>{escape(entry.name)}</td><td>{'&times;'.join(map(str, entry.shape))}</td>"
        f'<td class="number">{entry.parameters:,}</td><td>{escape(entry.reason)}</td></tr>'
        for entry in sorted(report.left, key=lambda each: -each.parameters)
    )
    return (
        '<div class="scroll"><table><thead><tr><th scope="col">Tensor</th>'
        '<th scope="col">Shape</th><th scope="col" class="number">Parameters</th>'
        f'<th scope="col">Why</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def pairs_table(values: Mapping[str, Any]) -> str:
    """Names and their values."""
    rows = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
        for name, value in values.items()
    )
    return f'<table class="pairs"><tbody>{rows}</tbody></table>'
