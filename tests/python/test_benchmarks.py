# SPDX-License-Identifier: Apache-2.0
"""The benchmarks run, on tiny models, and their figures mean what they say."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# "common" is too common a name to stay importable for other tests.
OWN_MODULES = ("common", "generate", "overhead", "perplexity")


@pytest.fixture(scope="module")
def benchmarks() -> Iterator[dict[str, ModuleType]]:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield {name: importlib.import_module(name) for name in OWN_MODULES}
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in OWN_MODULES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers whose tokens are letters."""
    folder = tmp_path_factory.mktemp("tiny")
    letters = "abcdefghijklmnopqrstuvwxyz ."
    vocabulary = {letter: i for i, letter in enumerate(["<s>", "</s>", *letters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="."))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="."
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog. " * 8, encoding="utf-8")
    return path


def results(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    parsed = json.loads(capsys.readouterr().out)
    assert isinstance(parsed, dict)
    return parsed


def test_perplexity(
    benchmarks: dict[str, ModuleType],
    checkpoint: Path,
    text: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main = benchmarks["perplexity"].main
    arguments = [
        "--text",
        str(text),
        "--model",
        str(checkpoint),
        "--windows",
        "3",
        "--length",
        "32",
    ]
    rows = main([*arguments, "--dtype", "int8", "nf4", "--compute", "fp32", "int8", "--json"])
    printed = results(capsys)
    assert printed["results"] == rows
    assert printed["machine"]["threads"] >= 1
    assert [(row["weights"], row["compute"]) for row in rows] == [
        ("fp32", "fp32"),
        ("int8", "fp32"),
        ("int8", "int8"),
        ("nf4", "fp32"),
        ("nf4", "int8"),
    ]
    base, eight, _, four, _ = rows
    assert base["kl"] == pytest.approx(0.0, abs=1e-9)
    assert base["top1"] == 1.0
    assert 0 < eight["kl"] < four["kl"], "4 bits lose more than 8"
    assert eight["perplexity"] == pytest.approx(base["perplexity"], rel=0.02)

    # The same figure from transformers' own loss: windows on their own, no special tokens.
    model = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint)
    ids = tokenizer(text.read_text(), add_special_tokens=False)["input_ids"]
    windows = torch.tensor(ids[: 3 * 32]).view(3, 32)
    with torch.inference_mode():
        loss = sum(model(input_ids=w[None], labels=w[None]).loss.item() for w in windows) / 3
    assert base["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)


def test_perplexity_refuses_a_short_text(
    benchmarks: dict[str, ModuleType], checkpoint: Path, text: Path
) -> None:
    arguments = ["--text", str(text), "--model", str(checkpoint), "--windows", "99"]
    with pytest.raises(SystemExit, match=r"99 windows of 512 need 50688"):
        benchmarks["perplexity"].main(arguments)


def test_generate(
    benchmarks: dict[str, ModuleType], checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (
        "--prompt-tokens 4 --new-tokens 3 --repeats 2 --dtype nf4 --compute fp32 int8 --json"
    ).split()
    if importlib.util.find_spec("bitsandbytes") is None:
        arguments.append("--no-bitsandbytes")
    rows = benchmarks["generate"].main(["--model", str(checkpoint), *arguments])
    assert results(capsys)["results"] == rows
    names = [row["case"] for row in rows]
    assert names[:2] == ["torch fp32", "torch bf16"]
    assert names[-2:] == ["woq nf4 fp32", "woq nf4 int8"]
    assert all(row["decode_tok/s"] > 0 and row["prefill_tok/s"] > 0 for row in rows)
    assert rows[0]["vs_torch_fp32"] == 1.0


def test_overhead(benchmarks: dict[str, ModuleType], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (
        "--small 16 --large 64 --copies 2 --small-calls 3 --large-calls 2 --repeats 1 "
        "--dtype int4_clip --compute fp32"
    ).split()
    rows = benchmarks["overhead"].main(arguments)
    printed = capsys.readouterr().out
    assert printed.startswith("# date: ")
    assert [(row["layer"], row["case"]) for row in rows] == [
        ("16x16", "torch fp32"),
        ("16x16", "woq int4_clip fp32"),
        ("64x64", "torch fp32"),
        ("64x64", "torch bf16"),
        ("64x64", "dequantize int4_clip, matmul"),
        ("64x64", "woq int4_clip fp32"),
    ]
    assert rows[-1]["x_dequantize"] > 0
    assert rows[1]["x_dequantize"] is None


def test_overhead_compares_like_with_like(benchmarks: dict[str, ModuleType]) -> None:
    """The dequantize-then-matmul case and the layer compute the same product."""
    overhead = benchmarks["overhead"]
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 48)
    x = torch.randn(1, 64)
    with torch.inference_mode():
        ours = overhead.quantized_layer(layer, "nf4", "fp32", 32)(x)
        theirs = overhead.dequantize_then_matmul(layer, "nf4", 32)(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_interleave_takes_turns_and_drops_the_first(benchmarks: dict[str, ModuleType]) -> None:
    calls: list[str] = []

    def case(name: str, values: Iterator[float]) -> Any:
        def run() -> float:
            calls.append(name)
            return next(values)

        return run

    timings = benchmarks["common"].interleave(
        {"a": case("a", iter([9.0, 1.0, 2.0, 6.0])), "b": case("b", iter([9.0, 4.0, 4.0, 4.0]))}, 3
    )
    assert calls == ["a", "b"] * 4
    assert timings["a"].values == (1.0, 2.0, 6.0)
    assert timings["a"].median == 2.0
    assert timings["a"].spread == "-50..+200%"
    assert timings["b"].spread == "+0..+0%"


def test_missing_model_is_named(benchmarks: dict[str, ModuleType], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="nowhere: no such folder or file"):
        benchmarks["common"].load_fp32(str(tmp_path / "nowhere"))
