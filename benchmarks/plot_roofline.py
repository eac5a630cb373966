# SPDX-License-Identifier: Apache-2.0
"""Draws a roofline of bench_peers.py's figures: one panel for each weight and shape.

x is the operational intensity, operations for each canonical byte of the weight, which grows with
M; y is GFLOP/s. The lines are the limits that bench_peers.py measured with --roofline: read
bandwidth (the slope) and the peak of each type of products (the ceilings). The same input gives
the same bytes.

    plot_roofline.py figures.json roofline.svg
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

# Okabe and Ito's colours, which the colour-blind tell apart; a library's marker says the same, and
# the type of products is the line's style. woq is black.
STYLES = {
    "woq": ("#000000", "o"),
    "torch": ("#D55E00", "s"),
    "torchao": ("#E69F00", "D"),
    "bitsandbytes": ("#CC79A7", "v"),
    "onnxruntime": ("#0072B2", "^"),
    "openvino": ("#009E73", "P"),
    "bestla": ("#56B4E9", "X"),
    "ggml": ("#999999", "*"),
}
OTHER = ("#444444", "h")
LINES = {"fp32": "solid", "bf16": "dashed", "int8": "dotted"}
FILLS = ("full", "none", "left", "top")  # settings of one library with the same products
PANEL = (7.0, 4.6)  # inches

Row = Mapping[str, Any]


def panels_of(rows: Sequence[Row]) -> dict[str, list[Row]]:
    panels: dict[str, list[Row]] = {}
    for row in rows:
        title = f"{row['dtype']} g{row['group']} {row['scheme']}, {row['N']} x {row['K']}"
        panels.setdefault(title, []).append(row)
    return panels


def draw_limits(axes: Axes, limits: Mapping[str, float], low: float, high: float) -> None:
    """Bandwidth up to the highest ceiling, and each ceiling from where bandwidth reaches it."""
    peaks = {name: rate for name, rate in limits.items() if name != "read"}
    bandwidth = limits.get("read")
    style = {"color": "#BBBBBB", "linewidth": 2.5, "zorder": 1}
    if bandwidth:
        ridge = min(high, max(peaks.values()) / bandwidth) if peaks else high
        axes.plot([low, ridge], [low * bandwidth / 1e9, ridge * bandwidth / 1e9], **style)
    for name, rate in peaks.items():
        start = max(low, rate / bandwidth) if bandwidth else low
        if start < high:
            axes.plot([start, high], [rate / 1e9] * 2, **style)
        axes.annotate(
            f"{name} peak", (high, rate / 1e9), (-3, 3), textcoords="offset points", ha="right"
        )


def draw_panel(axes: Axes, title: str, rows: Sequence[Row], limits: Mapping[str, float]) -> None:
    intensities = [row["FLOP/byte"] for row in rows]
    low, high = min(intensities) / 1.6, max(intensities) * 1.6
    draw_limits(axes, limits, low, high)
    lines: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        lines.setdefault((row["candidate"], row["products"]), []).append(row)
    for (candidate, products), points in lines.items():
        colour, marker = STYLES.get(candidate.split(" ")[0], OTHER)
        points = sorted(points, key=lambda row: row["M"])
        library = (candidate.split(" ")[0], products)
        alike = [name for name, kind in lines if (name.split(" ")[0], kind) == library]
        fill = FILLS[alike.index(candidate) % len(FILLS)]
        axes.plot(
            [row["FLOP/byte"] for row in points],
            [row["GFLOP/s"] for row in points],
            color=colour,
            marker=marker,
            markersize=7 if candidate.startswith("woq ") else 5,
            fillstyle=fill,
            markeredgewidth=0.8,
            linestyle=LINES.get(products, "solid"),
            linewidth=1.8 if candidate.startswith("woq ") else 1.0,
            zorder=3 if candidate.startswith("woq ") else 2,
            label=candidate if candidate.endswith(products) else f"{candidate} ({products})",
        )
    axes.set(title=title, xscale="log", yscale="log", xlim=(low, high))
    axes.set(xlabel="operations for each byte of the weight", ylabel="GFLOP/s")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(True, which="major", color="#EEEEEE", zorder=0)
    top = axes.secondary_xaxis("top")
    rows_at = {row["FLOP/byte"]: f"M={row['M']}" for row in rows}
    top.set_xticks(list(rows_at), labels=list(rows_at.values()), fontsize=7)
    top.minorticks_off()
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)


def plot(figures: Mapping[str, Any], path: Path) -> None:
    panels = panels_of(figures["results"])
    if not panels:
        raise SystemExit("the file has no timed results")
    settings = {"svg.hashsalt": "woq", "svg.fonttype": "none", "font.size": 9}
    with mpl.rc_context({**mpl.rcParamsDefault, "backend": "svg", **settings}):
        size = (PANEL[0], PANEL[1] * len(panels))
        figure, grid = plt.subplots(
            len(panels), 1, squeeze=False, figsize=size, layout="constrained"
        )
        for axes, (title, rows) in zip(grid[:, 0], panels.items(), strict=True):
            draw_panel(axes, title, rows, figures["limits"])
        machine = figures["machine"]
        figure.suptitle(f"{machine['cpu']}, {machine['threads']} threads")
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
        plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figures", type=Path, help="what bench_peers.py --json wrote")
    parser.add_argument("svg", type=Path)
    args = parser.parse_args(arguments)
    plot(json.loads(args.figures.read_text(encoding="utf-8")), args.svg)


if __name__ == "__main__":
    main()
