# SPDX-License-Identifier: Apache-2.0
"""The plots of the report page: matplotlib's SVG with its colours replaced by the page's CSS
variables, so that they follow light and dark."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from ..core import native
from ..quantizing.report import WeightHistogram
from .table import Row, escape, mib

__all__ = ["Plots"]

_CODE_POINTS_DRAWN = 32  # 256 lines would be a grey area

# Colours that matplotlib is given, and what they become.
_INK, _MUTED, _GRID, _BAR, _POINTS = "#010101", "#020202", "#030303", "#040404", "#050505"
_SERIES = tuple(f"#0600{number:02x}" for number in range(8))
_VARIABLES = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _GRID: "var(--grid)",
    _BAR: "var(--bar)",
    _POINTS: "var(--points)",
    **{colour: f"var(--series-{number})" for number, colour in enumerate(_SERIES)},
}
# Kinds of layers differ by their marks too: colour alone is not seen by everybody.
_MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")


class Plots:
    """Figures by matplotlib, as SVG elements to put into a page."""

    def __init__(self) -> None:
        try:
            import matplotlib
            from matplotlib.figure import Figure
        except ImportError as error:
            raise native.Unsupported(
                "the report's plots need matplotlib: pip install 'woq[report]'"
            ) from error
        self._matplotlib, self._figure = matplotlib, Figure
        self._count = 0

    def svg(self, draw: Callable[[], Any], label: str) -> str:
        """The figure that `draw` makes, as an <svg> element with a text for those who can't see
        it."""
        settings = {
            "svg.fonttype": "none",  # text stays text
            "svg.hashsalt": "woq",
            "font.family": "sans-serif",
            "font.size": 10,
            "text.color": _INK,
            "axes.labelcolor": _MUTED,
            "axes.edgecolor": _GRID,
            "xtick.color": _MUTED,
            "ytick.color": _MUTED,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.facecolor": "none",
            "grid.color": _GRID,
        }
        stream = io.StringIO()
        with self._matplotlib.rc_context(settings):
            figure = draw()
            figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
        self._count += 1
        return _embeddable(stream.getvalue(), f"plot{self._count}", label)

    def _axes(self, width: float, height: float) -> tuple[Any, Any]:
        figure = self._figure(figsize=(width, height), layout="constrained")
        return figure, figure.add_subplot()

    def size(self, before: int, after: int, kept: int) -> Any:
        """Bytes in floating point and quantized, before and after."""
        figure, axes = self._axes(10.7, 1.9)
        for place, (name, part) in enumerate((("after", after), ("before", before))):
            axes.barh(place, part / 2**20, color=_SERIES[0], height=0.62)
            axes.barh(place, kept / 2**20, left=part / 2**20, color=_SERIES[1], height=0.62)
            _text_right_of(axes, (part + kept) / 2**20, place, mib(part + kept))
            if name == "before":
                axes.text(0, 1.45, "quantized layers", color=_SERIES[0], va="bottom")
                axes.text(
                    part / 2**20,
                    1.45,
                    "left in floating point",
                    color=_SERIES[1],
                    va="bottom",
                    ha="left" if part > 0.3 * (part + kept) else "right",
                )
        axes.set_yticks([0, 1], ["after", "before"])
        axes.set_xlim(0, 1.16 * (before + kept) / 2**20)
        axes.set_ylim(-0.45, 1.85)
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.tick_params(length=0)
        axes.set_xticks([])
        return figure

    def by_depth(self, rows: Sequence[Row]) -> Any:
        """SQNR along the model, a mark for each layer."""
        figure, axes = self._axes(10.7, 3.6)
        kinds: dict[str, list[tuple[int, float]]] = {}
        blocks = [_block_of(row.report.name) for row in rows]
        end = 1 + max((block for block in blocks if block is not None), default=-1)
        for block, row in zip(blocks, rows, strict=True):
            if math.isfinite(row.report.sqnr_db):
                kind = row.report.name.rpartition(".")[2]
                # What is in no block is mostly the output embedding.
                at = end if block is None else block
                kinds.setdefault(kind, []).append((at, row.report.sqnr_db))
        # The kinds after the eighth share the last look.
        for number, (kind, points) in enumerate(kinds.items()):
            look = min(number, len(_SERIES) - 1)
            axes.plot(
                *zip(*points, strict=True),
                linestyle="none",
                marker=_MARKS[look],
                markersize=5,
                color=_SERIES[look],
                label=kind,
            )
        axes.set_xlabel("block")
        axes.set_ylabel("SQNR, dB")
        axes.grid(axis="y", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if kinds:
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
        return figure

    def worst(self, rows: Sequence[Row]) -> Any:
        """Bars of SQNR, the lowest on top."""
        figure, axes = self._axes(10.7, 0.55 + 0.26 * len(rows))
        shown = [row for row in rows if math.isfinite(row.report.sqnr_db)]
        values = [row.report.sqnr_db for row in shown]
        axes.barh(range(len(shown)), values, color=_BAR, height=0.66)
        for place, value in enumerate(values):
            _text_right_of(axes, max(value, 0.0), place, f"{value:.2f}")
        axes.set_yticks(range(len(shown)), [row.report.name for row in shown], size=9)
        axes.invert_yaxis()
        axes.set_xlabel("SQNR, dB")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.margins(y=0.02)
        axes.set_xlim(right=1.1 * max([*values, 1e-9]))
        return figure

    def histogram(self, histogram: WeightHistogram) -> Any:
        """A sample of the weights, and the values that they are rounded to."""
        figure, axes = self._axes(5.1, 2.4)
        width = (histogram.high - histogram.low) / len(histogram.counts)
        middles = [histogram.low + (i + 0.5) * width for i in range(len(histogram.counts))]
        axes.bar(middles, histogram.counts, width=width, color=_BAR, linewidth=0)
        points = histogram.code_points
        if len(points) <= _CODE_POINTS_DRAWN:
            top = max(histogram.counts) * 1.06
            axes.vlines(points, 0, top, color=_POINTS, linewidth=1, linestyle=(0, (3, 2)))
            label = f"weight / scale; lines: the {len(points)} code points"
        else:
            label = f"weight / scale; {len(points)} code points, one at every whole number"
        axes.set_xlabel(label, size=9)
        axes.set_xlim(histogram.low, histogram.high)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        return figure


def _text_right_of(axes: Any, x: float, y: float, text: str) -> None:
    axes.annotate(text, (x, y), (6, 0), textcoords="offset points", va="center", color=_INK, size=9)


def _block_of(name: str) -> int | None:
    """The number of the block that a layer is in: the first number in its name."""
    number = re.search(r"\.(\d+)\.", name)
    return int(number[1]) if number else None


def _embeddable(svg: str, prefix: str, label: str) -> str:
    """matplotlib's SVG file as an element: no prolog, ids of its own, the page's colours, fonts and
    width."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    size = re.search(r'<svg[^>]* width="([\d.]+)pt"', svg)
    width = f' style="max-width: {float(size[1]) * 4 / 3:.0f}px"' if size else ""
    svg = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"{width}', 1)
