# SPDX-License-Identifier: Apache-2.0
"""The commands of `woq` in this process: results, exit codes, messages. (Signals, full disks and
completion need processes of their own: test_cli_process.py.)"""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("click")

from click.testing import CliRunner, Result  # noqa: E402
from model_support import benchmark_modules, letters_checkpoint, llama, t5  # noqa: E402

import woq  # noqa: E402
from woq.cli import _text  # noqa: E402
from woq.cli._app import COMMANDS, app  # noqa: E402
from woq.cli._text import Wrapped, pairs, table  # noqa: E402
from woq.generation import TextGenerator, encode_chat  # noqa: E402

TEXT = "the quick brown fox jumps over the lazy dog. " * 8
TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content }}. {% endfor %}"


def run(*arguments: object, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(app, [str(a) for a in arguments], input=stdin, prog_name="woq")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


def succeed(*arguments: object, stdin: str | None = None) -> Result:
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == 0, result.stderr
    return result


def refuse(code: int, *arguments: object) -> str:
    """The one line of an error."""
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("woq")
    return line


def values_of(*arguments: object, stdin: str | None = None) -> Any:
    return json.loads(succeed(*arguments, "--json", stdin=stdin).stdout)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = letters_checkpoint(tmp_path_factory.mktemp("letters"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def quantized(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "nf4"
    succeed("quantize", checkpoint, folder, "--dtype", "nf4")
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


# Help, errors


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_examples_that_parse(name: str) -> None:
    shown = succeed(name, "--help").stdout
    assert "Examples:" in shown
    command = importlib.import_module(f"woq.cli.{name}").command
    options = {option for parameter in command.params for option in parameter.opts}
    for example in command.examples:
        assert "woq" in example
        if example.startswith("woq "):
            words = example.partition(" #")[0].split()
            assert words[1] == name
            assert {word for word in words if word.startswith("--")} <= options
    assert name in succeed("--help").stdout


def test_help_is_whole_at_80_columns() -> None:
    shown = succeed("--help").stdout
    assert "..." not in shown.partition("Commands:")[2]
    assert max(map(len, shown.splitlines())) <= 80


def test_options_are_grouped_and_defaults_plain() -> None:
    shown = succeed("quantize", "--help").stdout
    titles = [line[:-1] for line in shown.splitlines() if line[:1].strip() and line.endswith(":")]
    assert titles == [
        "Options",
        "Format of the weights",
        "Rounding, and the data for it",
        "Scoring",
        "Loading and running the model",
        "What is shown",
        "Examples",
    ]
    assert "[default: int4_fullrange]" in " ".join(shown.split())
    command = importlib.import_module("woq.cli.quantize").command
    for parameter in command.params:
        for option in parameter.opts if parameter.param_type_name == "option" else []:
            assert f" {option}" in shown, option


def test_version() -> None:
    assert succeed("--version").stdout == f"woq {woq.__version__}\n"


def test_wrong_command_lines_end_with_2(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "no command quantise; did you mean quantize? (see" in refuse(2, "quantise")
    assert "no command xyz (see" in refuse(2, "xyz")
    line = refuse(2, "quantize", checkpoint, out, "--dtype", "nf5")
    assert "--dtype" in line
    assert "nf5 is unknown; did you mean nf4? Known: int8, " in line
    line = refuse(2, "quantize", checkpoint, out, "--algorithm", "gtpq")
    assert "gtpq is unknown; did you mean GPTQ?" in line
    assert "did you mean fp32?" in refuse(2, "inspect", checkpoint, "--float-dtype", "f32")
    line = refuse(2, "quantize", checkpoint, out, "--algorithm", "gptq", "--dataset", "no.txt")
    assert "--dataset: no file no.txt" in line
    assert "group_size 7" in refuse(2, "quantize", checkpoint, out, "--group-size", "7")
    assert "asym" in refuse(2, "quantize", checkpoint, out, "--dtype", "nf4", "--scheme", "asym")
    line = refuse(2, "quantize", checkpoint, out, "--algorithm", "gptq", "--option", "percdmp=1")
    assert "did you mean 'damp_percent'?" in line
    assert "NAME=VALUE" in refuse(2, "quantize", checkpoint, out, "--option", "percdamp")
    assert "looks at no data" in refuse(2, "quantize", checkpoint, out, "--dataset", "self")
    assert "no file" in refuse(2, "quantize", checkpoint, out, "--imatrix", "nowhere.gguf")
    line = refuse(2, "quantize", checkpoint, out, "--layer", "down_proj", "bits=9")
    assert "down_proj" in line
    assert "Missing argument 'FOLDER'" in refuse(2, "quantize", checkpoint)
    assert "--text" in refuse(2, "eval", checkpoint)
    empty = tmp_path / "empty.txt"
    empty.touch()
    assert "empty.txt: the file has no text" in refuse(1, "eval", checkpoint, "--text", empty)
    assert "like 4096x4096" in refuse(2, "bench", "--shape", "64")
    line = refuse(2, "generate", checkpoint, "a", "--generation", "max_tokens=3")
    assert "max_tokens" in line
    for option in ("num_beams=many", "cache_implementation=none_such"):
        assert option.partition("=")[2] in refuse(
            2, "generate", checkpoint, "a", "--generation", option
        )
    assert "temperature" in refuse(2, "generate", checkpoint, "a", "--temperature", "nan")
    assert not out.exists()


def test_bad_paths_end_with_1(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    nowhere = tmp_path / "nowhere"
    assert refuse(1, "quantize", nowhere, out) == f"woq: no such folder or file: {nowhere}"
    assert "no such folder or file: no/model" in refuse(1, "quantize", "no/model", out)
    assert "no such folder or file: ./no.gguf" in refuse(1, "generate", "./no.gguf", "a")
    assert "it has no config.json" in refuse(1, "inspect", tmp_path)
    file = tmp_path / "a.bin"
    file.write_bytes(b"")
    assert "neither a checkpoint folder nor a GGUF file" in refuse(1, "inspect", file)
    line = refuse(1, "eval", checkpoint, "--text", nowhere)
    assert line == f"woq: --text {nowhere}: No such file or directory"
    assert "cannot write" in refuse(1, "quantize", checkpoint, out, "--report", nowhere / "a.html")
    data = ("--algorithm", "gptq", "--dataset", "nofile.txt")
    assert "--dataset: no file nofile.txt" in refuse(2, "quantize", checkpoint, out, *data)
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_a_mistyped_name_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's own loaders try for most of a minute where there is no network."""
    import huggingface_hub

    asked: list[str] = []

    def no_network(url: str, **keywords: Any) -> Any:
        asked.append(url)
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", no_network)
    for command in (("chat", "mistyped"), ("quantize", "mistyped", "out"), ("inspect", "mistyped")):
        asked.clear()
        line = refuse(1, *command)
        assert "no such folder or file: mistyped; nor could the hub's model be had" in line
        assert line.endswith("no network")
        assert len(asked) == 1


def test_a_damaged_checkpoint_is_one_line(checkpoint: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for path in checkpoint.iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    assert "model.safetensors is damaged" in refuse(1, "quantize", model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (model / "config.json").write_text("{")
    assert "cannot load the model of" in refuse(1, "inspect", model)


def test_a_folder_without_a_tokenizer(checkpoint: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors"):
        (model / name).write_bytes((checkpoint / name).read_bytes())
    line = refuse(1, "chat", model)
    assert f"{model} holds no tokenizer" in line
    assert f"tokenizer.save_pretrained('{model}')" in line


def test_debug_shows_the_traceback(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Any:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("woq.core.environment.environment", fail)
    assert refuse(1, "info") == "woq: RuntimeError: two lines (--debug shows where)"
    result = run("info", "--debug")
    assert result.exit_code == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.endswith("woq: RuntimeError: two lines (--debug shows where)\n")


def test_interrupted_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("woq.core.environment.environment", interrupt)
    result = run("info")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "woq: interrupted"


def test_loggers_and_settings_are_as_before(
    quantized: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import logging
    import os

    monkeypatch.setenv("TQDM_DISABLE", "0")
    logger = logging.getLogger("woq")
    before = dict(os.environ), logger.handlers[:], logger.level, logger.propagate
    succeed("quantize", checkpoint, tmp_path / "a")
    assert (dict(os.environ), logger.handlers[:], logger.level, logger.propagate) == before
    result = succeed("inspect", quantized, "--verbose")
    assert "woq: " in result.stderr
    assert succeed("inspect", quantized).stderr == ""


# quantize


def test_quantize_saves_what_the_library_makes(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    report = tmp_path / "out.html"
    values = values_of(
        *("quantize", checkpoint, out, "--dtype", "int4", "--group-size", "16"),
        *("--compute-dtype", "int8", "--lm-head", "int8", "--report", report),
        *("--layer", "down_proj", "int8", "--layer", "q_proj", "group_size=64,scheme=asym"),
        *("--layer", r"model\.layers\.0\.mlp", "none", "--skip", "o_proj"),
    )
    config = woq.WeightOnlyQuantConfig(
        weight_dtype="int4",
        group_size=16,
        compute_dtype="int8",
        quantize_lm_head="int8",
        modules_to_not_convert=["o_proj"],
        layer_config={
            "down_proj": {"weight_dtype": "int8"},
            "q_proj": {"group_size": 64, "scheme": "asym"},
            r"model\.layers\.0\.mlp": None,
        },
    )
    expected = woq.AutoModelForCausalLM.from_pretrained(checkpoint, quantization_config=config)
    # The file leaves out what is not asked for; the command says what became of it.
    assert values["config"] == {**config.to_dict(), "quantize_embedding": False}
    assert values["complete"]
    assert values["bytes_after"] == expected.woq_report.bytes_after
    assert [e["name"] for e in values["layers"]] == [e.name for e in expected.woq_report.layers]
    saved = woq.AutoModelForCausalLM.from_pretrained(out)
    ids = torch.arange(2, 18)[None]
    assert torch.equal(saved(ids).logits, expected(ids).logits)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert tokenizer("the fox")["input_ids"]
    assert {path.name for path in tmp_path.iterdir()} == {"new", "out.html"}
    assert out.stat().st_mode & 0o777 == (tmp_path / "new").stat().st_mode & 0o777
    page = report.read_text(encoding="utf-8")
    assert "model.layers.1.mlp.down_proj" in page
    assert "lm_head" in page


def test_calibrated_with_a_work_dir(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    command = (
        *("quantize", checkpoint, tmp_path / "out", "--algorithm", "gptq", "--dataset", text),
        *("--nsamples", "4", "--seqlen", "32", "--seed", "1", "--option", "damp_percent=0.05"),
        *("--work-dir", tmp_path / "work", "--report", tmp_path / "out.html"),
    )
    values = values_of(*command)
    arguments = values["config"]["algorithm_args"]
    assert (arguments["nsamples"], arguments["seqlen"], arguments["seed"]) == (4, 32, 1)
    assert arguments["damp_percent"] == 0.05
    assert all(layer["loss"] is not None for layer in values["layers"])
    files = list((tmp_path / "work").glob("*.safetensors"))
    assert len(files) == len(values["layers"])
    times = {file: file.stat().st_mtime_ns for file in files}
    succeed(*command, "--overwrite")
    assert {file: file.stat().st_mtime_ns for file in files} == times, "nothing was done again"
    assert str(text) in (tmp_path / "out.html").read_text(encoding="utf-8")


def test_summary_for_people(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    shown = succeed(
        *("quantize", checkpoint, tmp_path / "a", "--text", text),
        *("--windows", "2", "--length", "32"),
    ).stdout
    assert "14 layers quantized (14 x int4_fullrange)" in shown
    assert "KL divergence" in shown
    assert "62 tokens: 2 windows of 32" in shown
    assert shown.endswith(f"saved in {tmp_path / 'a'}\n")


def test_what_is_there_is_kept(checkpoint: Path, quantized: Path, tmp_path: Path) -> None:
    line = refuse(1, "quantize", checkpoint, quantized)
    assert line == f"woq: {quantized} exists: name another folder, or add --overwrite"
    line = refuse(1, "quantize", checkpoint, checkpoint, "--overwrite")
    assert line.endswith("is where MODEL is, and would be replaced: name another folder")
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("the only copy")
    assert "holds no model" in refuse(1, "quantize", checkpoint, other, "--overwrite")
    assert (other / "thesis.txt").read_text() == "the only copy"
    assert "is no folder" in refuse(1, "quantize", checkpoint, other / "thesis.txt")
    empty = tmp_path / "empty"
    empty.mkdir()
    succeed("quantize", checkpoint, empty)
    before = (empty / "model.safetensors").read_bytes()
    succeed("quantize", checkpoint, empty, "--dtype", "int8", "--overwrite")
    assert (empty / "model.safetensors").read_bytes() != before
    assert {path.name for path in tmp_path.iterdir()} == {"other", "empty"}


def test_quantized_models_are_not_quantized_again(
    quantized: Path, text: Path, tmp_path: Path
) -> None:
    line = refuse(1, "eval", quantized, "--reference", quantized, "--text", text)
    assert "is quantized already" in line
    line = refuse(1, "quantize", quantized, tmp_path / "out")
    assert "is quantized already (woq): start from the model in floating point" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("existing", [False, True])
def test_nothing_half_written_is_left(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    existing: bool,
) -> None:
    """Neither after a full disk nor after Ctrl-C, when half of it is written."""
    out = tmp_path / "a" / "out"
    if existing:
        succeed("quantize", checkpoint, out)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    save = woq.save_pretrained

    def half(model: Any, folder: Any, **keywords: Any) -> None:
        save(model, folder, **keywords)
        raise error

    monkeypatch.setattr(woq, "save_pretrained", half)
    result = run("quantize", checkpoint, out, "--dtype", "nf4", "--overwrite")
    assert result.exit_code == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert f"{out} {'is as it was' if existing else 'was not made'}" in result.stderr
    if isinstance(error, OSError):
        assert "No space left on device" in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert existing or list(tmp_path.iterdir()) == []


def test_a_model_without_tokenizer_is_saved_without(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "model")
    result = succeed("quantize", tmp_path / "model", tmp_path / "out")
    assert "no tokenizer is saved" in result.stderr
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert "tokenizer" in refuse(1, "generate", tmp_path / "out", "a")


def test_encoder_decoder_models(tmp_path: Path) -> None:
    t5().save_pretrained(tmp_path / "model")
    values = values_of("quantize", tmp_path / "model", tmp_path / "out", "--dtype", "nf4", "-q")
    assert values["layers"]
    assert values_of("inspect", tmp_path / "out")["architecture"] == "T5ForConditionalGeneration"


def test_report_without_matplotlib_is_refused_at_once(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    line = refuse(1, "quantize", checkpoint, tmp_path / "out", "--report", tmp_path / "a.html")
    assert "pip install 'woq[report]'" in line
    assert list(tmp_path.iterdir()) == []


# eval, inspect, bench, info


def test_eval_gives_the_benchmarks_figures(
    checkpoint: Path, quantized: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    protocol = ("--text", str(text), "--windows", "3", "--length", "32")
    saved = values_of("eval", quantized, "--reference", checkpoint, *protocol)
    in_memory = values_of("eval", checkpoint, "--dtype", "nf4", *protocol)
    with benchmark_modules("perplexity") as modules:
        base, row = modules["perplexity"].main(
            [*protocol, "--model", str(checkpoint), "--dtype", "nf4", "--compute", "fp32"]
        )
    capsys.readouterr()
    for values in (saved, in_memory):
        assert values["perplexity"] == pytest.approx(row["perplexity"], rel=1e-9)
        assert values["kl"] == pytest.approx(row["kl"], rel=1e-9)
        assert values["top1"] == row["top1"]
        assert values["reference_perplexity"] == pytest.approx(base["perplexity"], rel=1e-9)
    alone = values_of("eval", checkpoint, *protocol)
    assert alone["perplexity"] == pytest.approx(base["perplexity"], rel=1e-9)
    assert alone["kl"] is None
    shown = succeed("eval", checkpoint, "--dtype", "nf4", *protocol).stdout
    assert f"KL divergence    {row['kl']:.5f} nats a token" in shown
    assert "the text has" in refuse(1, "eval", checkpoint, *protocol, "--windows", "999")


def test_inspect_shows_every_layer(quantized: Path, checkpoint: Path) -> None:
    values = values_of("inspect", quantized)
    layers = {layer["name"]: layer for layer in values["layers"]}
    model = woq.AutoModelForCausalLM.from_pretrained(quantized)
    modules = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, woq.WeightOnlyLinear)
    }
    assert modules.keys() == {name for name, layer in layers.items() if layer["quantized"]}
    assert modules
    for name, module in modules.items():
        found = layers[name]
        assert found["kernel"] == module.explain()["kernel"]
        assert (found["weight_dtype"], found["group_size"]) == ("nf4", 32)
        assert found["nbytes"] == module.nbytes
    assert not layers["lm_head"]["quantized"]
    assert layers["lm_head"]["nbytes"] == 30 * 64 * 4
    assert sum(layer["nbytes"] for layer in values["layers"]) < values["bytes"]
    lines = succeed("inspect", quantized).stdout.splitlines()
    (line,) = (line for line in lines if "down_proj" in line)
    assert line.split()[:5] == ["model.layers.*.mlp.down_proj", "2", "64x128", "nf4", "32"]
    every = succeed("inspect", quantized, "--all").stdout
    assert "model.layers.1.mlp.down_proj" in every
    assert "nothing is quantized" in succeed("inspect", checkpoint).stdout


def test_parameters_are_counted_alike(checkpoint: Path, tmp_path: Path) -> None:
    float_model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    whole = sum(parameter.numel() for parameter in float_model.parameters())
    made = values_of("quantize", checkpoint, tmp_path / "out", "--dtype", "nf4")
    assert made["total_parameters"] == whole
    for model in (checkpoint, tmp_path / "out"):
        assert values_of("inspect", model)["parameters"] == whole
        assert f"{whole:,} parameters" in succeed("inspect", model).stdout
    norms = whole - made["quantized_parameters"] - sum(e["parameters"] for e in made["left"])
    assert norms > 0
    summary = succeed("quantize", checkpoint, tmp_path / "again", "--dtype", "nf4").stdout
    assert f"norms, biases and the like: {norms:,}" in summary
    assert f"left in floating point: {whole - made['quantized_parameters']:,}" in summary


def test_bench_counts_what_it_measures(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from woq.cli import bench

    monkeypatch.setattr(bench, "_cache_bytes", lambda: 1 << 20)  # less to read
    command = ("bench", "--seconds", "0.01", "--rows", "1", "--rows", "3", "--dtype", "nf4")
    values = values_of(*command, "--shape", "64x128", "--compute-dtype", "int8", "--threads", "1")
    assert values["read_bytes_per_second"] > 1e8
    one, three = values["results"]
    assert (one["rows"], three["rows"]) == (1, 3)
    assert three["operations"] == 3 * one["operations"] == 3 * 2 * 64 * 128
    for each in (one, three):
        assert each["kernel"].startswith("gemm_s8_t4_")
        assert each["bytes"] > 64 * 128 / 2
        share = each["bytes"] / values["read_bytes_per_second"] / each["seconds"]
        assert each["of_read"] == pytest.approx(share)
    monkeypatch.setattr(bench, "_MOST_BYTES", 1)  # one copy: read from a cache
    cached = values_of(*command, "--shape", "64x128", "--compute-dtype", "int8")["results"]
    assert [each["of_read"] for each in cached] == [None, None]
    shown = succeed(*command, "--shape", "64x128", "--compute-dtype", "fp32").stdout
    assert "of read -: the weights are read from a cache" in shown
    assert "read bandwidth" in shown
    assert "64x128" in shown
    shapes = {
        each["shape"]
        for each in values_of(*command, "--model", checkpoint, "--compute-dtype", "int8")["results"]
    }
    assert shapes == {"64x64", "32x64", "128x64", "64x128", "30x64"}


def test_info_has_what_a_bug_report_needs() -> None:
    values = values_of("info")
    assert values["woq"] == woq.__version__
    assert values["versions"]["torch"] == torch.__version__
    assert values["threads"] == torch.get_num_threads()
    available = [target["name"] for target in woq.targets() if target["available"]]
    assert values["targets"] == available
    assert {row["weights"] for row in values["kernels"]} == set(woq.core.native.dtype_names())
    shown = succeed("info").stdout
    assert "needs not" not in shown
    for expected in (woq.cpu_info()["brand"], torch.__version__, values["kernels"][0]["int8"]):
        assert expected in shown


# generate, chat


@pytest.fixture(scope="module")
def generator(quantized: Path) -> TextGenerator:
    model = woq.AutoModelForCausalLM.from_pretrained(quantized).eval()
    return TextGenerator(model, transformers.AutoTokenizer.from_pretrained(quantized))


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({"do_sample": False}, ("--generation", "do_sample=false")),
        ({"temperature": 0}, ("--temperature", "0")),
        (
            {"temperature": 0.8, "top_p": 0.9, "top_k": 5, "seed": 3},
            ("--temperature", "0.8", "--top-p", "0.9", "--top-k", "5", "--seed", "3"),
        ),
    ],
)
def test_generate_yields_the_tokens_of_the_library(
    quantized: Path, generator: TextGenerator, options: dict[str, Any], arguments: tuple[str, ...]
) -> None:
    command = ("generate", quantized, "the quick", "--max-new-tokens", "12", *arguments)
    ((expected,),) = generator.generate(["the quick"], max_new_tokens=12, **options)
    values = values_of(*command)
    assert tuple(values["token_ids"]) == expected.token_ids
    assert values["text"] == expected.text
    result = succeed(*command)
    assert result.stdout == expected.text + "\n"
    assert f"9 tokens in, {expected.completion_tokens} out" in result.stderr
    # The same from the pipeline, and from model.generate itself.
    pipeline = woq.pipeline("text-generation", model=generator.model, tokenizer=generator.tokenizer)
    (answer,) = pipeline("the quick", return_full_text=False, max_new_tokens=12, **options)
    assert answer["generated_text"] == expected.text
    ids = torch.tensor([generator.encode("the quick")])
    torch.manual_seed(options.get("seed", 0))
    keywords = {k: v for k, v in options.items() if k not in ("seed",)}
    keywords.setdefault("do_sample", bool(options.get("temperature")))
    if not keywords["do_sample"]:
        keywords = {"do_sample": False}
    plain = generator.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, **keywords
    )
    assert plain[0, ids.shape[1] :].tolist() == list(expected.token_ids)


def test_generate_has_beams_and_several_answers(quantized: Path, generator: TextGenerator) -> None:
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 8, "do_sample": False}
    (expected,) = generator.generate(["the quick"], **options)
    command = ["generate", quantized, "the quick"]
    for name, value in options.items():
        command += ["--generation", f"{name}={json.dumps(value)}"]
    values = values_of(*command)
    assert [tuple(each["token_ids"]) for each in values["answers"]] == [
        each.token_ids for each in expected
    ]
    result = succeed(*command)
    assert result.stdout == "\n\n".join(each.text for each in expected) + "\n"
    assert result.stderr.count("9 tokens in") == 2


def test_generate_quantizes_on_the_way(checkpoint: Path, quantized: Path) -> None:
    command = ("the quick", "--max-new-tokens", "8", "--temperature", "0")
    saved = values_of("generate", quantized, *command)
    loaded = values_of("generate", checkpoint, *command, "--dtype", "nf4")
    assert loaded["token_ids"] == saved["token_ids"]
    line = refuse(1, "generate", quantized, *command, "--dtype", "nf4")
    assert "is quantized already" in line


def test_generate_reads_standard_input_and_stops(quantized: Path) -> None:
    command = ("generate", quantized, "--max-new-tokens", "16", "--temperature", "0")
    given = values_of(*command, "the quick")
    assert values_of(*command, stdin="the quick")["text"] == given["text"]
    assert values_of(*command, "-", stdin="the quick")["text"] == given["text"]
    letter = given["text"][5]
    stopped = values_of(*command, "the quick", "--stop", letter)
    assert stopped["text"] == given["text"].partition(letter)[0]
    assert stopped["finish_reason"] == "stop"


def test_generate_by_the_chat_template(quantized: Path, generator: TextGenerator) -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    ids = encode_chat(generator.tokenizer, messages)
    ((expected,),) = generator.generate([ids], max_new_tokens=6, do_sample=False)
    values = values_of(
        *("generate", quantized, "hello", "--system", "be brief"),
        *("--max-new-tokens", "6", "--temperature", "0"),
    )
    assert tuple(values["token_ids"]) == expected.token_ids
    assert values["prompt_tokens"] == len(ids)


def chat(model: Path, *lines: str, options: tuple[str, ...] = ()) -> Result:
    command = ("chat", model, "--max-new-tokens", "6", "--temperature", "0", *options)
    return succeed(*command, stdin="".join(f"{line}\n" for line in lines))


def answers_to(generator: TextGenerator, *lines: str, system: str = "") -> list[str]:
    messages = [{"role": "system", "content": system}] if system else []
    answers = []
    for line in lines:
        messages.append({"role": "user", "content": line})
        ids = encode_chat(generator.tokenizer, messages)
        ((completion,),) = generator.generate([ids], max_new_tokens=6, do_sample=False)
        messages.append({"role": "assistant", "content": completion.text})
        answers.append(completion.text)
    return answers


def test_chat_remembers_and_forgets(quantized: Path, generator: TextGenerator) -> None:
    first, second = answers_to(generator, "hello", "who are you")
    (alone,) = answers_to(generator, "who are you")
    assert alone != second, "or this test shows nothing"
    assert chat(quantized, "hello", "", "who are you").stdout.splitlines() == [first, second]
    result = chat(quantized, "hello", "/reset", "who are you", "/exit", "hello")
    assert result.stdout.splitlines() == [first, alone]
    assert "begins anew" in result.stderr


def test_chat_has_a_system_message(quantized: Path, generator: TextGenerator) -> None:
    (brief,) = answers_to(generator, "hello", system="be brief")
    (plain,) = answers_to(generator, "hello")
    assert brief != plain, "or this test shows nothing"
    shown = chat(quantized, "hello", options=("--system", "be brief")).stdout
    assert shown.splitlines() == [brief]
    shown = chat(quantized, "hello", "/system be brief", "hello", "/system", "hello").stdout
    assert shown.splitlines() == [plain, brief, plain]


def test_chat_goes_on_after_a_mistake(quantized: Path, generator: TextGenerator) -> None:
    (answer,) = answers_to(generator, "hello")
    result = chat(quantized, "/quti", "/help", "a" * 300, "hello")
    assert result.stdout.splitlines() == [answer]
    assert "/quti is no command" in result.stderr
    assert "tokens, the model 256 positions: /reset begins anew" in result.stderr


def test_chat_says_what_runs_and_how_fast(quantized: Path, checkpoint: Path) -> None:
    first, rates = chat(quantized, "hello").stderr.splitlines()
    kernel = values_of("inspect", quantized)["layers"][1]["kernel"]
    assert first.startswith(f"{quantized}: nf4 weights in ")
    assert f"fp32 products by {kernel}, on " in first
    assert rates.startswith("[")
    assert rates.endswith(" tokens/s]")
    assert "not quantized" in chat(checkpoint, "hello").stderr
    assert chat(quantized, "hello", options=("--quiet",)).stderr == ""


def test_words_are_not_broken() -> None:
    text = "a European sea is deep,\n    and blue \u6d77\u6c34\u5f88\u6df1 extraordinarily so"
    for width in (7, 12, 20, 1000):
        for step in (1, 3, len(text)):
            wrapped = Wrapped(width)
            pieces = [text[at : at + step] for at in range(0, len(text), step)]
            shown = "".join(map(wrapped.push, pieces)) + wrapped.flush()
            for line in shown.split("\n"):
                columns = sum(2 if ord(c) > 0x2E80 else 1 for c in line)
                assert columns <= width or " " not in line.strip()
            # Broken are a script without blanks, and words that no line holds.
            words = {word for word in re.findall("[a-zA-Z]+", text) if len(word) < width}
            assert words <= set(re.findall("[a-zA-Z]+", shown))
            assert "".join(shown.split()) == "".join(text.split())
    assert shown == text


def test_tables_fit_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"layer": "model.layers.0.mlp.up_proj", "shape": "64x128", "kernel": "gemm_f32_t4"}] * 2
    wide = table(rows)
    assert len(wide.splitlines()) == 4
    monkeypatch.setattr(_text, "_terminal_width", lambda stream=None: 40)
    assert table(rows).splitlines() == [
        "layer                       shape",
        "--------------------------  ------",
        *["model.layers.0.mlp.up_proj  64x128", "    kernel gemm_f32_t4"] * 2,
    ]
    assert _text.fitted("one\n" + "word " * 9 + "end", sys.stdout) == (
        "one\n" + " ".join(["word"] * 8) + "\n  word end"
    )
    assert pairs({"features": ["avx2", "avx512f", "avx512_vnni", "amx_tile", "f16c"]}) == (
        "features  avx2, avx512f, avx512_vnni,\n          amx_tile, f16c"
    )


def test_chat_needs_a_template(tmp_path: Path) -> None:
    model = letters_checkpoint(tmp_path / "model")
    assert "no chat template" in refuse(1, "chat", model)
