# SPDX-License-Identifier: Apache-2.0
"""`woq.write_report`: one well-formed page that loads nothing, with every layer, the worst first;
and the histograms that it draws."""

from __future__ import annotations

import dataclasses
import html.parser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("matplotlib")

from model_support import gpt2, llama, seed  # noqa: E402

import woq  # noqa: E402
from woq.quantizing.histograms import _in_units, weight_histogram  # noqa: E402
from woq.reports.evaluation import Evaluation  # noqa: E402

VOID = {"meta", "input", "br", "link", "img", "hr"}


class Page(html.parser.HTMLParser):
    """Checks that elements nest; collects ids, references, and the rows of the table of layers."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.texts: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.ids += [value for name, value in attributes if name == "id" and value]
        self.references += [
            value for name, value in attributes if name in ("src", "href", "xlink:href") and value
        ]
        if tag == "tr":
            self.rows.append([])
        if "data-value" in values:
            self.rows[-1].append(values["data-value"] or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def layers(self) -> list[list[str]]:
        return [row for row in self.rows if row]


@pytest.fixture(scope="module")
def quantized() -> Any:
    torch.manual_seed(1)
    config = woq.WeightOnlyQuantConfig(
        weight_dtype="nf4", layer_config={"down_proj": {"bits": 8}}, quantize_lm_head="int8"
    )
    return woq.quantize(llama(), config)


def test_page_has_every_layer_worst_first_and_loads_nothing(quantized: Any, tmp_path: Path) -> None:
    path = woq.write_report(quantized, tmp_path / "out.html", title="a <b> & c")
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    names = [row[0] for row in page.layers]
    assert sorted(names) == sorted(layer.name for layer in quantized.woq_report.layers)
    assert names[0] == quantized.woq_report.worst.name
    values = [float(row[5]) for row in page.layers]
    assert values == sorted(values)
    assert values[0] == quantized.woq_report.worst.sqnr_db
    assert "a <b> & c" in page.text
    assert "nf4 sym in groups of 32" in page.text
    assert "int8 sym in groups of 32" in page.text
    assert "model.embed_tokens.weight" in page.text, "what was left in floating point"
    assert woq.__version__ in page.text
    assert woq.cpu_info()["brand"] in page.text
    # Nothing from outside: all references are to the page itself, to what is there.
    assert page.references
    assert all(ref[0] == "#" and ref[1:] in page.ids for ref in page.references)
    assert not re.search(r"url\((?!#)|@import", text)
    assert len(page.ids) == len(set(page.ids))


def test_plots_take_the_pages_colours(quantized: Any, tmp_path: Path) -> None:
    text = woq.write_report(quantized, tmp_path / "out.html").read_text(encoding="utf-8")
    plots = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(plots) == 3 + 6, "size, depth, worst layers, and six histograms"
    for plot in plots:
        assert 'role="img" aria-label="' in plot
        colours = set(re.findall(r"#[0-9a-f]{6}\b", plot))
        assert colours == set(), "a fixed colour would not be seen on dark or on light"
    defined = set(re.findall(r"(--[\w-]+):", text))
    assert set(re.findall(r"var\((--[\w-]+)\)", text)) <= defined


def test_evaluation_and_facts_are_shown(quantized: Any, tmp_path: Path) -> None:
    evaluation = Evaluation(4, 128, 508, 11.0, reference_perplexity=10.0, kl=0.0625, top1=0.875)
    path = woq.write_report(
        quantized, tmp_path / "out.html", evaluation=evaluation, facts={"command": "woq x <y>"}
    )
    text = Page(path.read_text(encoding="utf-8")).text
    for expected in ("11.000", "(+10.00 %)", "0.06250 nats", "87.50 %", "4 windows of 128"):
        assert expected in text
    assert "woq x <y>" in text
    plain = Page(woq.write_report(quantized, tmp_path / "b.html").read_text(encoding="utf-8"))
    assert "nats" not in plain.text


def test_calibrated_and_interrupted_runs_say_so(tmp_path: Path) -> None:
    ids = [torch.randint(0, 128, (64,)) for _ in range(4)]
    model = woq.quantize(llama(), woq.GPTQConfig(dataset=ids, nsamples=4, seqlen=32))
    page = Page(woq.write_report(model, tmp_path / "a.html").read_text(encoding="utf-8"))
    assert "Loss" in page.text
    assert "interrupted" not in page.text
    model.woq_report.complete = False
    page = Page(woq.write_report(model, tmp_path / "a.html").read_text(encoding="utf-8"))
    assert "The quantization was interrupted" in page.text


def test_no_report_no_page(tmp_path: Path) -> None:
    with pytest.raises(woq.InvalidArgument, match="no report of a quantization"):
        woq.write_report(llama(), tmp_path / "a.html")
    assert list(tmp_path.iterdir()) == []


def test_page_appears_whole_or_not_at_all(
    quantized: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.html"
    path.write_text("older")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        woq.write_report(quantized, path)
    assert path.read_text() == "older"
    assert list(tmp_path.iterdir()) == [path]


def test_without_matplotlib_the_message_says_what_to_install(
    quantized: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(woq.Unsupported, match=r"pip install 'woq\[report\]'"):
        woq.write_report(quantized, tmp_path / "a.html")


def test_script_is_valid(quantized: Any, tmp_path: Path) -> None:
    text = woq.write_report(quantized, tmp_path / "a.html").read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    if shutil.which("node") is None:
        pytest.skip("no node to parse the script with")
    (tmp_path / "a.js").write_text(script)
    subprocess.run(["node", "--check", tmp_path / "a.js"], check=True)


# Histograms

SCHEMES = [
    *({"dtype": name} for name in woq.core.native.dtype_names()),
    {"dtype": "int4_clip", "asym": True},
    {"dtype": "int8", "asym": True},
    {"dtype": "nf4", "group_size": -1},
    {"dtype": "int4_fullrange", "group_size": 48},
    {"dtype": "nf4", "double_quant": True},
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_rounded_weights_lie_on_the_code_points(
    scheme: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    seed(request)
    weight = torch.randn(40, 128)
    matrix = woq.quantize_rtn(weight, **scheme)
    histogram = weight_histogram(weight, matrix)
    points = np.array(histogram.code_points)
    units = _in_units(matrix.dequantize(), matrix, np.arange(40))
    distance = np.abs(units[..., None] - points).min(-1).max()
    assert distance <= 1e-4 * np.abs(points).max()
    assert sum(histogram.counts) + histogram.outside == weight.numel()
    # The float weights are not on them, or the picture would show nothing.
    assert np.abs(_in_units(weight.numpy(), matrix, np.arange(40)) - units).max() > 1e-3


@pytest.mark.parametrize("algorithm", ["AwqConfig", "GPTQConfig", "HqqConfig"])
def test_rounded_weights_of_other_algorithms_too(
    algorithm: str, request: pytest.FixtureRequest
) -> None:
    """Multipliers of the input, columns out of order, zero points that are no integers."""
    seed(request)
    options: dict[str, Any] = {}
    if algorithm != "HqqConfig":
        ids = [torch.randint(0, 128, (64,)) for _ in range(4)]
        options = {"dataset": ids, "nsamples": 4, "seqlen": 32}
    if algorithm == "GPTQConfig":
        options["desc_act"] = True
    model = woq.quantize(llama(), getattr(woq, algorithm)(**options))
    matrix = model.model.layers[0].mlp.down_proj.quantized()
    assert (matrix.has_act_scales, matrix.has_g_idx) == (
        algorithm == "AwqConfig",
        algorithm == "GPTQConfig",
    )
    units = _in_units(matrix.dequantize(), matrix, np.arange(matrix.rows))
    assert np.abs(units - np.round(units)).max() < 1e-4


def test_every_way_of_quantizing_makes_histograms(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    config = woq.WeightOnlyQuantConfig()
    loaded = woq.AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config)
    for model in (loaded, woq.quantize(gpt2(), config)):
        layers = model.woq_report.layers
        assert layers
        for layer in layers:
            assert layer.histogram is not None
            assert sum(layer.histogram.counts) > 0


def test_a_large_layer_is_sampled() -> None:
    weight = torch.randn(2048, 256)
    histogram = weight_histogram(weight, woq.quantize_rtn(weight, dtype="nf4"))
    assert sum(histogram.counts) + histogram.outside == 1 << 16


def test_a_group_of_zeros_is_at_zero() -> None:
    weight = torch.zeros(4, 32)
    histogram = weight_histogram(weight, woq.quantize_rtn(weight, dtype="nf4"))
    assert histogram.outside == 0
    middle = len(histogram.counts) // 2
    assert sum(histogram.counts[middle - 1 : middle + 1]) == weight.numel()


def test_report_as_plain_values(quantized: Any) -> None:
    report = quantized.woq_report
    values = report.to_dict()
    assert len(values["layers"]) == len(report.layers)
    assert "histogram" not in values["layers"][0]
    assert values["layers"][0]["sqnr_db"] == report.layers[0].sqnr_db
    assert values["bytes_after"] == report.bytes_after
    assert values["left"][0]["reason"] == report.left[0].reason
    assert dataclasses.asdict(report.left[0]) == values["left"][0]
