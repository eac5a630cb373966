# SPDX-License-Identifier: Apache-2.0
"""`woq.write_report(model, path)`: what a quantization did to a model, as one HTML file.

Nothing is loaded from elsewhere: style, script and plots are inside. The plots are matplotlib's SVG
with its colours replaced by the page's CSS variables, so that they follow light and dark.

The function is not called `report`: that is the name of the module beside this one, which importing
it sets on the package.
"""

from __future__ import annotations

import dataclasses
import datetime
import html
import io
import math
import os
import re
import statistics
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..core import native
from ..core.environment import environment
from ..formats.files import replace_file
from ..quantizing.report import LayerReport, QuantizationReport, WeightHistogram
from .evaluation import Evaluation
from .inspection import LayerFacts, layer_facts

__all__ = ["write_report"]

_TEMPLATE = "page.html"
_WORST_BARS = 20
_WORST_HISTOGRAMS = 6
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


def write_report(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    title: str = "",
    evaluation: Evaluation | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Write what quantizing `model` did to it: sizes, the error of each layer (the worst ones with
    a histogram of their weights between the code points), configuration and versions.

    Args:
        model: a model that this process has quantized (`model.woq_report`).
        path: the HTML file, which appears whole or not at all.
        title: name of the model; by default the one that transformers knows.
        evaluation: figures of `woq.evaluate` to show.
        facts: more lines for the table of the configuration, such as the command line.

    Raises:
        InvalidArgument: the model has no report, or nothing was quantized.
        Unsupported: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    report = getattr(model, "woq_report", None)
    if not isinstance(report, QuantizationReport) or not report.layers:
        raise native.InvalidArgument(
            "the model has no report of a quantization: it is made while a model is quantized, "
            "and is not part of a saved checkpoint"
        )
    page = _page(model, report, title or _name_of(model), evaluation, facts or {})
    target = Path(path)
    with replace_file(target) as scratch:
        scratch.write_text(page, encoding="utf-8")
    return target


def _name_of(model: nn.Module) -> str:
    name = str(getattr(getattr(model, "config", None), "name_or_path", "") or "")
    return Path(name).name or type(model).__name__


@dataclasses.dataclass(frozen=True)
class _Row:
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


def _page(
    model: nn.Module,
    report: QuantizationReport,
    title: str,
    evaluation: Evaluation | None,
    facts: Mapping[str, Any],
) -> str:
    by_name = {each.name: each for each in layer_facts(model) if each.quantized}
    rows = [_Row(layer, by_name.get(layer.name)) for layer in report.layers]
    worst_first = sorted(rows, key=lambda row: row.badness)
    plots = _Plots()
    kept = sum(each.nbytes for each in layer_facts(model) if not each.quantized)
    template = string.Template(Path(__file__).with_name(_TEMPLATE).read_text("utf-8"))
    return template.substitute(
        title=_escape(title),
        subtitle=_escape(_subtitle(report, rows)),
        warning=""
        if report.complete
        else '<p class="warning">The quantization was interrupted: some layers are missing.</p>',
        tiles=_tiles(report, rows, evaluation),
        size=plots.svg(
            lambda: plots.size(report.bytes_before, report.bytes_after, kept), "Size by part"
        ),
        depth=plots.svg(lambda: plots.by_depth(rows), "SQNR of every layer along the model"),
        worst=plots.svg(
            lambda: plots.worst(worst_first[:_WORST_BARS]), "The layers with the lowest SQNR"
        ),
        worst_count=min(_WORST_BARS, len(rows)),
        histograms=_histograms(plots, worst_first),
        table=_table(worst_first),
        calibrated=(
            " Loss is the error of the outputs that was tuned, relative to the outputs, and as a "
            "multiple of what it was before."
            if any(row.report.loss is not None for row in rows)
            else ""
        ),
        count=len(rows),
        left=_left(report),
        evaluation=_evaluation(evaluation),
        configuration=_pairs(_configuration(model, report, facts)),
        environment=_pairs(_flat(environment())),
        version=_escape(native.build_info()["version"]),
        date=datetime.datetime.now().astimezone().strftime("%d %B %Y, %H:%M %Z"),
    )


# Parts of the page


def _escape(value: Any) -> str:
    return html.escape(str(value))


def _mib(count: float) -> str:
    return f"{count / 2**20:,.1f} MiB"


def _number(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else str(value)


def _subtitle(report: QuantizationReport, rows: Sequence[_Row]) -> str:
    kinds = dict.fromkeys(_format_of(row) for row in rows)
    algorithms = dict.fromkeys(row.report.algorithm for row in rows)
    return (
        f"{len(rows)} layers quantized by {' and '.join(algorithms)} to {', '.join(kinds)}: "
        f"{100 * report.share:.1f} % of the parameters"
    )


def _format_of(row: _Row) -> str:
    if row.facts is None:
        return row.report.weight_dtype
    group = "rows" if row.facts.group_size == -1 else f"groups of {row.facts.group_size}"
    return f"{row.report.weight_dtype} {row.facts.scheme} in {group}"


def _tiles(report: QuantizationReport, rows: Sequence[_Row], evaluation: Evaluation | None) -> str:
    values = sorted(row.report.sqnr_db for row in rows if not math.isnan(row.report.sqnr_db))
    bits = 8 * report.bytes_after / max(1, report.quantized_parameters)
    tiles = [
        (
            f"{report.bytes_before / max(1, report.bytes_after):.2f}&times;",
            f"smaller: {_mib(report.bytes_before)} &rarr; {_mib(report.bytes_after)} "
            "in these layers",
        ),
        (f"{bits:.2f} bits", "for each quantized weight, scales included"),
    ]
    if values:
        tiles.append(
            (f"{_number(statistics.median(values), '.1f')} dB", "median SQNR of the layers")
        )
        tiles.append(
            (f"{_number(values[0], '.1f')} dB", f"lowest SQNR: {_escape(_worst_name(report))}")
        )
    if evaluation is not None:
        tiles.append((f"{evaluation.perplexity:.3f}", _perplexity_note(evaluation)))
    tiles.append((f"{report.seconds:,.1f} s", "spent on quantizing"))
    return "\n".join(
        f'<div class="tile"><b>{value}</b><span>{note}</span></div>' for value, note in tiles
    )


def _worst_name(report: QuantizationReport) -> str:
    return report.worst.name if report.worst is not None else ""


def _perplexity_note(evaluation: Evaluation) -> str:
    if evaluation.reference_perplexity is None:
        return "perplexity"
    change = 100 * (evaluation.perplexity / evaluation.reference_perplexity - 1)
    return f"perplexity; unquantized {evaluation.reference_perplexity:.3f} ({change:+.2f} %)"


def _evaluation(evaluation: Evaluation | None) -> str:
    if evaluation is None:
        return ""
    lines = {"Perplexity": f"{evaluation.perplexity:.4f}"}
    if evaluation.reference_perplexity is not None:
        lines["Perplexity, unquantized"] = f"{evaluation.reference_perplexity:.4f}"
    if evaluation.kl is not None:
        lines["KL divergence from the unquantized model"] = f"{evaluation.kl:.5f} nats a token"
    if evaluation.top1 is not None:
        lines["Same first choice"] = f"{100 * evaluation.top1:.2f} % of the tokens"
    lines["Protocol"] = (
        f"{evaluation.windows} windows of {evaluation.length} tokens, each on its own, without "
        f"special tokens: {evaluation.tokens:,} predicted tokens"
    )
    return f'<section id="predictions"><h2>Predictions</h2>{_pairs(lines)}</section>'


def _pairs(values: Mapping[str, Any]) -> str:
    rows = "\n".join(
        f'<tr><th scope="row">{_escape(name)}</th><td>{_escape(value)}</td></tr>'
        for name, value in values.items()
    )
    return f'<table class="pairs"><tbody>{rows}</tbody></table>'


def _flat(values: Mapping[str, Any]) -> dict[str, str]:
    """Nested values in a line of text each; what is not installed is left out."""
    flat = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            present = {key: text for key, text in value.items() if text is not None}
            value = ", ".join(f"{key} {text}" for key, text in present.items())
        elif isinstance(value, (list, tuple)):
            value = ", ".join(map(str, value))
        if value != "":
            flat[name.replace("_", " ")] = str(value)
    return flat


def _configuration(
    model: nn.Module, report: QuantizationReport, facts: Mapping[str, Any]
) -> dict[str, str]:
    config: Any = getattr(getattr(model, "config", None), "quantization_config", None)
    values = config.to_dict() if hasattr(config, "to_dict") else {}
    flat = {str(name): str(value) for name, value in facts.items()}
    for name, value in values.items():
        if name not in ("quant_method", "format_version") and value not in (None, {}, []):
            flat[name] = str(value)
    return flat or {"configuration": "not known: this is no transformers model"}


def _left(report: QuantizationReport) -> str:
    if not report.left:
        return "<p>Nothing.</p>"
    rows = "\n".join(
        f"<tr><td>{_escape(entry.name)}</td><td>{'&times;'.join(map(str, entry.shape))}</td>"
        f'<td class="number">{entry.parameters:,}</td><td>{_escape(entry.reason)}</td></tr>'
        for entry in sorted(report.left, key=lambda each: -each.parameters)
    )
    return (
        '<div class="scroll"><table><thead><tr><th scope="col">Tensor</th>'
        '<th scope="col">Shape</th><th scope="col" class="number">Parameters</th>'
        f'<th scope="col">Why</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


_COLUMNS = "Layer|Format, group|Shape|MiB|Bits|SQNR, dB|MSE|Algorithm|Loss|Note".split("|")
_NUMBERS = ("Shape", "MiB", "Bits", "MSE", "Loss")


def _table(rows: Sequence[_Row]) -> str:
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


def _cell(column: str, row: _Row, top: float) -> str:
    layer = row.report
    if column == "Layer":
        return f'<th scope="row" data-value="{_escape(layer.name)}">{_escape(layer.name)}</th>'
    if column == "Format, group":
        short = _format_of(row).replace(" in groups of", ",").replace(" in", ",")
        return _data(_format_of(row), short)
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
        value = "exact" if exact else _number(layer.sqnr_db, ".2f")
        text = f'<span class="value">{value}</span>'
        return f'<td class="bars" data-value="{row.badness!r}">{text}{bar}</td>'
    if column == "MSE":
        return _data(layer.mse, _number(layer.mse, ".3e"), number=True)
    if column == "Algorithm":
        return _data(layer.algorithm, layer.algorithm)
    if column == "Loss":
        if layer.loss is None:
            return _data(math.inf, "&ndash;", number=True)
        # Beside what it was before tuning.
        beside = f" ({layer.loss / layer.start_loss:.2f}&times;)" if layer.start_loss else ""
        return _data(layer.loss, f"{layer.loss:.2e}{beside}", number=True)
    return _data(layer.note, _escape(layer.note))


def _data(value: Any, text: str, *, number: bool = False) -> str:
    kind = ' class="number"' if number else ""
    return f'<td{kind} data-value="{_escape(value)}">{text}</td>'


def _histograms(plots: _Plots, rows: Sequence[_Row]) -> str:
    figures = []
    for row in rows[:_WORST_HISTOGRAMS]:
        histogram = row.report.histogram
        if histogram is None:
            continue
        name = row.report.name
        svg = plots.svg(lambda h=histogram: plots.histogram(h), f"Weights of {name}")  # type: ignore[misc]
        beyond = ""
        if histogram.outside:
            share = 100 * histogram.outside / (histogram.outside + sum(histogram.counts))
            beyond = f"; {share:.2f} % lie outside of the picture"
        figures.append(
            f"<figure><figcaption><b>{_escape(name)}</b> <span>"
            f"{_number(row.report.sqnr_db, '.1f')} dB, {_escape(_format_of(row))}{beyond}"
            f"</span></figcaption>{svg}</figure>"
        )
    return "\n".join(figures)


# Plots


class _Plots:
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
            _text_right_of(axes, (part + kept) / 2**20, place, _mib(part + kept))
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

    def by_depth(self, rows: Sequence[_Row]) -> Any:
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

    def worst(self, rows: Sequence[_Row]) -> Any:
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
    return svg.replace("<svg", f'<svg role="img" aria-label="{_escape(label)}"{width}', 1)
