# SPDX-License-Identifier: Apache-2.0
"""The benchmarks run, on tiny models, and their figures mean what they say."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from model_support import benchmark_modules, letters_checkpoint  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

OWN_MODULES = (
    "common",
    "bench_peers",
    "busy",
    "generate",
    "gptq_layer",
    "load_gguf",
    "overhead",
    "peers",
    "permutation",
    "perplexity",
    "quality",
)


@pytest.fixture(scope="module")
def benchmarks() -> Iterator[dict[str, ModuleType]]:
    with benchmark_modules(*OWN_MODULES) as modules:
        yield modules


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return letters_checkpoint(tmp_path_factory.mktemp("tiny"))


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


@pytest.mark.parametrize("kind", ["untied", "tied", "four norms"])
def test_permutation_changes_weights_and_no_output(
    benchmarks: dict[str, ModuleType], checkpoint: Path, kind: str
) -> None:
    config = LlamaConfig.from_pretrained(checkpoint, tie_word_embeddings=kind != "untied")
    if kind == "four norms":
        sizes = ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
        small = {"num_hidden_layers": 2, "num_key_value_heads": 1, "head_dim": 16}
        config = Gemma3TextConfig(**{name: getattr(config, name) for name in sizes}, **small)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(torch.rand_like(parameter) + 0.5)
    ids = torch.arange(2, 26)[None]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.inference_mode():
        expected = model(ids).logits
        benchmarks["permutation"].permute_channels(model, 3)
        got = model(ids).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    for name, parameter in model.named_parameters():
        within_heads = name.endswith(("q_norm.weight", "k_norm.weight"))
        assert torch.equal(parameter, before[name]) == within_heads, name


def test_quality(
    benchmarks: dict[str, ModuleType],
    checkpoint: Path,
    text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    learnt = tmp_path / "learnt.txt"
    learnt.write_text("a lazy dog jumps over a quick brown fox. " * 40, encoding="utf-8")
    common = f"--text {text} --calibration {learnt} --model {checkpoint} --windows 3 --length 32"
    arguments = [*common.split(), *"--group-size 32 -1 --format int4_clip nf4".split()]
    arguments += "--algorithm RTN AUTOROUND --seed 1 2 --option iters=80 seqlen=32".split()
    rows = benchmarks["quality"].main([*arguments, "--json"])
    assert results(capsys)["results"] == rows
    assert len(rows) == 1 + 4 + 8
    assert rows[0]["kl"] == 0
    kl: dict[tuple[Any, ...], list[float]] = {}
    for row in rows[1:]:
        assert row["seconds"] > 0
        kl.setdefault((row["format"], row["group"], row["algorithm"]), []).append(row["kl"])
        bits = 4 + 16 / (32 if row["group"] == 32 else 64)
        assert row["bits/weight"] == pytest.approx(bits, abs=0.25 if row["group"] < 0 else 1e-6)
    mean = {
        name: sum(sum(each) / len(each) for key, each in kl.items() if key[2] == name)
        for name in ("RTN", "AUTOROUND")
    }
    assert mean["AUTOROUND"] < mean["RTN"]
    other = "--algorithm RTN+imatrix HQQ --group-size 32 --format nf4 int4_asym --option nsamples=4"
    rows = benchmarks["quality"].main([*common.split(), *other.split(), "--seed", "1", "--json"])
    named = [(row["algorithm"], row["format"], row["seed"], row["bits/weight"]) for row in rows[1:]]
    assert named == [
        ("RTN+imatrix", "nf4", 1, 4.5),
        ("RTN+imatrix", "int4_asym", 1, 4.625),
        ("HQQ", "int4_asym", None, 5.5),
    ]
    capsys.readouterr()
    benchmarks["quality"].main([*common.split(), *"--algorithm RTN --format nf4".split()])
    table = capsys.readouterr().out.split("\n\n", 1)[1].splitlines()
    assert table[0].startswith("| algorithm | format | group | seed | bits/weight | perplexity |")
    assert all(line.count("|") == table[0].count("|") for line in table)


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


def test_load_gguf(
    benchmarks: dict[str, ModuleType], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    gguf_support = pytest.importorskip("gguf_support")
    model = gguf_support.build("llama_256_tied")
    gguf_support.write(model, tmp_path / "x.gguf", "llama", "Q4_K")
    (row,) = benchmarks["load_gguf"].main([str(tmp_path / "x.gguf"), "--repeats", "1", "--json"])
    assert results(capsys)["results"] == [row]
    assert row["file_MB"] == (tmp_path / "x.gguf").stat().st_size / 1e6
    assert row["limit_MB"] > 1.15 * row["file_MB"]
    assert row["end_MB"] <= row["peak_MB"]
    assert row["seconds"] > 0


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


def test_gptq_layer_compares_the_same_algorithm(
    benchmarks: dict[str, ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = "--shape 48 256 --group-size 64 --repeats 1 --json".split()
    rows = benchmarks["gptq_layer"].main(arguments)
    assert results(capsys)["results"] == rows
    assert [row["case"] for row in rows] == ["torch", "woq"]
    theirs, ours = (row["error_of_rtn"] for row in rows)
    assert ours < 0.8
    # Both round in float32, so that a few codes may differ.
    assert ours == pytest.approx(theirs, rel=0.01)
    with pytest.raises(SystemExit):
        benchmarks["gptq_layer"].main(["--group-size", "96"])


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


# Peers


PEERS = "--shape 64 128 --group-size 32 --repeats 1 --seconds 0 --cache-mib 1".split()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """What the benchmark sets for the process, as it was."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(threads)


def test_bench_peers(
    benchmarks: dict[str, ModuleType],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    one_thread: None,
) -> None:
    threads = str(torch.get_num_threads())
    path = tmp_path / "figures.json"
    arguments = [*PEERS, "--m", "1", "8", "--dtype", "int4_clip", "int8", "--threads", threads]
    arguments += ["--scheme", "sym", "asym", "--peers", "woq", "torch", "--json", str(path)]
    rows, left_out = benchmarks["bench_peers"].main(arguments)
    written = json.loads(path.read_text())
    assert written["results"] == rows
    assert written["not_timed"] == left_out
    assert written["machine"]["threads"] == int(threads)
    assert "x_woq" in capsys.readouterr().out

    timed = {(row["dtype"], row["scheme"], row["M"], row["candidate"]) for row in rows}
    ours = {"woq fp32", "woq bf16", "woq int8"}
    theirs = {"torch int4pack bf16"}
    for scheme in ("sym", "asym"):
        for m in (1, 8):
            assert {each[3] for each in timed if each[:3] == ("int8", scheme, m)} == ours
            assert {each[3] for each in timed if each[:3] == ("int4_clip", scheme, m)} == (
                ours | theirs
            )
    reasons = {row["candidate"]: row["reason"] for row in left_out}
    assert set(reasons) == {*theirs, "torch int8pack bf16"}, "nothing is dropped without a word"
    assert "one scale a row" in reasons["torch int8pack bf16"]

    # 64 x 128 codes and 64 x 4 scales; 2 operations for each of 8 x 64 x 128.
    row = next(row for row in rows if row["candidate"] == "woq int8" and row["M"] == 8)
    assert row["GB/s"] == pytest.approx((64 * 128 / 2 + 64 * 4 * 2) / row["us"] / 1e3)
    assert row["GFLOP/s"] == pytest.approx(2 * 8 * 64 * 128 / row["us"] / 1e3)
    assert row["x_woq"] == 1.0
    assert row["x_peer"] is None, "torch has no int8 products"


def test_bench_peers_reports_a_wrong_peer(
    benchmarks: dict[str, ModuleType], capsys: pytest.CaptureFixture[str], one_thread: None
) -> None:
    """One that swaps two nibbles of a row in eight, one that raises, one that isn't installed."""
    peers = benchmarks["peers"]

    class Swapped(peers.Peer):  # type: ignore[misc, name-defined]
        library = "woq"
        packages = ()
        name = "swapped"
        activations = "int8"

        def unsupported(self, work: Any) -> None:
            return None

        def build_one(self, weight: Any, threads: int) -> Any:
            wrong = weight.dequantized.copy()
            wrong[::8] = wrong[::8].reshape(-1, 64, 2)[..., ::-1].reshape(-1, 128)
            return lambda x: x @ wrong.T

    class Failing(Swapped):
        name = "failing"

        def build_one(self, weight: Any, threads: int) -> Any:
            raise RuntimeError("no kernel\nand a long story")

    class Absent(Swapped):
        name = "absent"
        packages = ("woq-no-such-package",)

    candidates = [Swapped(), Failing(), Absent(), *peers.CANDIDATES[:1]]
    rows, left_out = benchmarks["bench_peers"].main(
        [*PEERS, "--m", "4", "--dtype", "nf4", "--threads", "1"], candidates
    )
    assert [row["candidate"] for row in rows] == ["woq fp32"]
    reasons = {row["candidate"]: row["reason"] for row in left_out}
    assert reasons["swapped"].startswith("wrong: relative error 0.")
    assert reasons["failing"] == "failed: RuntimeError: no kernel"
    assert reasons["absent"] == "woq-no-such-package is not installed"
    assert "Not timed:" in capsys.readouterr().out


def test_every_installed_peer_computes_the_product(
    benchmarks: dict[str, ModuleType], subtests: Any, one_thread: None
) -> None:
    """Nothing is called wrong; what is absent is skipped by name."""
    peers, bench = benchmarks["peers"], benchmarks["bench_peers"]
    weights = [
        peers.Weight(peers.Work(2, 64, 128, dtype, group, asym))
        for dtype, group, asym in [
            ("int4_clip", 32, False),
            ("int4_clip", 32, True),
            ("int8", -1, False),
            ("int8", 32, True),
            ("nf4", 64, False),
            ("fp4_e2m1", 32, False),
            ("fp4_e2m1_bnb", 64, False),
        ]
    ]
    x = torch.randn(2, 128, generator=torch.Generator().manual_seed(0)).numpy()
    for peer in peers.CANDIDATES:
        with subtests.test(peer.name), torch.inference_mode():
            if peer.missing():
                pytest.skip(peer.missing())
            for weight in weights:
                run, reason, _ = bench.build(peer, weight, 2, torch.get_num_threads(), x)
                assert run is not None or not reason.startswith("wrong"), weight.work.name


def test_roofline_plot(benchmarks: dict[str, ModuleType], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot_roofline = importlib.import_module("plot_roofline")
    row = {"dtype": "nf4", "group": 32, "scheme": "sym", "N": 64, "K": 128}
    results = [
        {**row, "candidate": name, "products": "fp32", "M": m, "FLOP/byte": 3.6 * m, "GFLOP/s": y}
        for name, m, y in [("woq fp32", 1, 9), ("woq fp32", 16, 90), ("openvino fp32", 1, 5)]
    ]
    figures = {
        "machine": {"cpu": "a CPU", "threads": 2},
        "limits": {"read": 3e9, "fp32": 1e11},
        "results": results,
    }
    source = tmp_path / "figures.json"
    source.write_text(json.dumps(figures))
    pictures = []
    for name in ("a.svg", "b.svg"):
        plot_roofline.main([str(source), str(tmp_path / name)])
        pictures.append((tmp_path / name).read_bytes())
    assert pictures[0] == pictures[1], "the same figures give the same bytes"
    text = pictures[0].decode()
    for expected in ("woq fp32", "openvino fp32", "fp32 peak", "M=16", "nf4 g32 sym, 64 x 128"):
        assert expected in text
    figures["results"] = []
    source.write_text(json.dumps(figures))
    with pytest.raises(SystemExit, match="no timed results"):
        plot_roofline.main([str(source), str(tmp_path / "c.svg")])


def test_busy(
    benchmarks: dict[str, ModuleType], checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(checkpoint), "--tokens", "2", "--repeats", "1", "--json"]
    rows = benchmarks["busy"].main(arguments)
    assert results(capsys)["results"] == rows
    assert [row["case"] for row in rows] == ["woq", "woq, the command", "torch fp32"]
    assert all(row["idle_ms"] > 0 and row["busy_ms"] > 0 for row in rows)


def test_policies_of_busy(benchmarks: dict[str, ModuleType]) -> None:
    settings = "OMP_WAIT_POLICY=passive OMP_NUM_THREADS=1"
    found = benchmarks["busy"].policies([settings])
    assert found["woq"] == {}
    assert found["woq, the command"] == {"GOMP_SPINCOUNT": "20000"}
    assert found[f"woq, {settings}"] == {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1"}
