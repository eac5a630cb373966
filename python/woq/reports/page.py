# SPDX-License-Identifier: Apache-2.0
"""`woq.write_report(model, path)`: what a quantization did to a model, as one HTML file.

Nothing is loaded from elsewhere: style, script and plots are inside. The plots
are SVG elements, the tables can be sorted.

The function is not called `report`: that is the name of the module beside this one, which importing
it sets on the package.
"""

from __future__ import annotations

import datetime
import math
import os
import statistics
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..core import native
from ..core.environment import environment
from ..formats.files import replace_file
from ..quantizing.report import QuantizationReport
from .evaluation import Evaluation
from .inspection import layer_facts
from .plots import Plots
from .table import Row, escape, format_of, layers_table, left_table, mib, number_text, pairs_table

__all__ = ["write_report"]

_TEMPLATE = "page.html"
_WORST_BARS = 20
_WORST_HISTOGRAMS = 6


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
            "and is not part of a checkpoint, nor of a GGUF file; `woq inspect` shows the layers "
            "of any model"
        )
    page = _page(model, report, title or _name_of(model), evaluation, facts or {})
    target = Path(path)
    with replace_file(target) as scratch:
        scratch.write_text(page, encoding="utf-8")
    return target


def _name_of(model: nn.Module) -> str:
    name = str(getattr(getattr(model, "config", None), "name_or_path", "") or "")
    return Path(name).name or type(model).__name__


def _page(
    model: nn.Module,
    report: QuantizationReport,
    title: str,
    evaluation: Evaluation | None,
    facts: Mapping[str, Any],
) -> str:
    by_name = {each.name: each for each in layer_facts(model) if each.quantized}
    rows = [Row(layer, by_name.get(layer.name)) for layer in report.layers]
    worst_first = sorted(rows, key=lambda row: row.badness)
    plots = Plots()
    kept = sum(each.nbytes for each in layer_facts(model) if not each.quantized)
    template = string.Template(Path(__file__).with_name(_TEMPLATE).read_text("utf-8"))
    return template.substitute(
        title=escape(title),
        subtitle=escape(_subtitle(report, rows)),
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
        table=layers_table(worst_first),
        calibrated=(
            " Loss is the error of the outputs that was tuned, relative to the outputs, and as a "
            "multiple of what it was before."
            if any(row.report.loss is not None for row in rows)
            else ""
        ),
        count=len(rows),
        left=left_table(report),
        evaluation=_evaluation(evaluation),
        configuration=pairs_table(_configuration(model, report, facts)),
        environment=pairs_table(_flat(environment())),
        version=escape(native.build_info()["version"]),
        date=datetime.datetime.now().astimezone().strftime("%d %B %Y, %H:%M %Z"),
    )


# Parts of the page


def _subtitle(report: QuantizationReport, rows: Sequence[Row]) -> str:
    kinds = dict.fromkeys(format_of(row) for row in rows)
    algorithms = dict.fromkeys(row.report.algorithm for row in rows)
    return (
        f"{len(rows)} layers quantized by {' and '.join(algorithms)} to {', '.join(kinds)}: "
        f"{100 * report.share:.1f} % of the parameters"
    )


def _tiles(report: QuantizationReport, rows: Sequence[Row], evaluation: Evaluation | None) -> str:
    values = sorted(row.report.sqnr_db for row in rows if not math.isnan(row.report.sqnr_db))
    bits = 8 * report.bytes_after / max(1, report.quantized_parameters)
    tiles = [
        (
            f"{report.bytes_before / max(1, report.bytes_after):.2f}&times;",
            f"smaller: {mib(report.bytes_before)} &rarr; {mib(report.bytes_after)} in these layers",
        ),
        (f"{bits:.2f} bits", "for each quantized weight, scales included"),
    ]
    if values:
        tiles.append(
            (f"{number_text(statistics.median(values), '.1f')} dB", "median SQNR of the layers")
        )
        tiles.append(
            (f"{number_text(values[0], '.1f')} dB", f"lowest SQNR: {escape(_worst_name(report))}")
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
    return f'<section id="predictions"><h2>Predictions</h2>{pairs_table(lines)}</section>'


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


def _histograms(plots: Plots, rows: Sequence[Row]) -> str:
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
            f"<figure><figcaption><b>{escape(name)}</b> <span>"
            f"{number_text(row.report.sqnr_db, '.1f')} dB, {escape(format_of(row))}{beyond}"
            f"</span></figcaption>{svg}</figure>"
        )
    return "\n".join(figures)
