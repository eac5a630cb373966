# SPDX-License-Identifier: Apache-2.0
"""`woq export`, `woq convert`, and `woq inspect` of what they write."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("click")

from click.testing import CliRunner, Result  # noqa: E402
from model_support import letters_checkpoint, llama, logits  # noqa: E402

import woq  # noqa: E402
from woq import WeightOnlyQuantConfig  # noqa: E402
from woq.cli._app import app  # noqa: E402
from woq.formats.export.names import ALL_FORMATS  # noqa: E402


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(a) for a in arguments], prog_name="woq")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


def succeed(*arguments: object) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    source = letters_checkpoint(folder / "float")
    out = folder / "int4"
    words = ["--float-dtype", "fp16", "--scale-dtype", "fp16"]
    succeed("quantize", source, out, "--dtype", "int4", *words)
    return out


def model_of(folder: Path) -> Any:
    return woq.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")


def test_export_writes_for_vllm_by_default(quantized: Path, tmp_path: Path) -> None:
    shown = succeed("export", quantized, tmp_path / "out").stdout
    assert "14 layers as compressed-tensors" in shown
    assert "loads in: vLLM, on CPUs and GPUs; transformers" in shown
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert (tmp_path / "out" / "generation_config.json").is_file()
    assert torch.equal(logits(model_of(tmp_path / "out")), logits(model_of(quantized)))


def test_convert_and_inspect_what_others_wrote(quantized: Path, tmp_path: Path) -> None:
    succeed("export", quantized, tmp_path / "gptq", "--format", "gptq")
    succeed("convert", tmp_path / "gptq", tmp_path / "awq", "--format", "awq")
    assert torch.equal(logits(model_of(tmp_path / "awq")), logits(model_of(quantized)))
    for name in ("gptq", "awq"):
        values = json.loads(succeed("inspect", tmp_path / name, "--json").stdout)
        layers = {layer["name"]: layer for layer in values["layers"]}
        up = layers["model.layers.0.mlp.up_proj"]
        assert (up["weight_dtype"], up["group_size"]) == ("int4_clip", 32)
        assert not layers["lm_head"]["quantized"]


def test_a_dry_run_names_every_tensor(quantized: Path, tmp_path: Path) -> None:
    words = ("convert", quantized, tmp_path / "out", "--format", "gptq", "--dry-run")
    shown = succeed(*words).stdout
    assert shown.count("qweight") == 14
    assert "would be written" in shown
    values = json.loads(succeed(*words, "--json").stdout)
    assert values["possible"]
    assert values["folder"] is None
    assert values["layers"][0]["tensors"]["g_idx"] == "int32 [64]"
    assert not any(tmp_path.iterdir())


def test_what_cannot_be_written_is_listed_and_fails(quantized: Path, tmp_path: Path) -> None:
    words = ("export", quantized, tmp_path / "out", "--format", "bitsandbytes")
    result = run(*words, "--dry-run")
    assert result.exit_code == 1
    assert result.stdout.count("groups of 32, and bitsandbytes blocks of") > 14
    assert "cannot be written as bitsandbytes" in result.stderr
    result = run(*words)
    assert result.exit_code == 1
    assert "14 layers cannot be written as bitsandbytes" in result.stderr
    assert not any(tmp_path.iterdir())


def test_gguf_files(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from tokenizer_support import byte_tokenizer

    folder = tmp_path / "model"
    model = woq.quantize(llama(vocab_size=384), WeightOnlyQuantConfig("int4", scale_dtype="fp16"))
    woq.save_pretrained(model, folder)
    words = ("export", folder, tmp_path / "x.gguf", "--format", "gguf")
    result = run(*words)
    assert result.exit_code == 1
    assert "give it (tokenizer), or a GGUF file of the same model (template)" in result.stderr
    byte_tokenizer(use_regex=True).save_pretrained(folder)
    assert "Q4_0 [96, 64]" in succeed(*words, "--dry-run").stdout
    shown = succeed(*words).stdout
    assert "14 layers as gguf, 1 in floating point" in shown
    assert "loads in: llama.cpp" in shown
    succeed("convert", tmp_path / "x.gguf", tmp_path / "y.gguf", "--format", "gguf")
    assert (tmp_path / "y.gguf").read_bytes() == (tmp_path / "x.gguf").read_bytes()
    words = ("--format", "gguf", "--template", tmp_path / "x.gguf", "--overwrite")
    succeed("export", folder, tmp_path / "y.gguf", *words)
    assert (tmp_path / "y.gguf").read_bytes() == (tmp_path / "x.gguf").read_bytes()


def test_mistakes(quantized: Path, tmp_path: Path) -> None:
    result = run("export", quantized, tmp_path / "out", "--format", "gtpq")
    assert result.exit_code == 2
    assert "did you mean gptq?" in result.stderr
    result = run("convert", quantized, tmp_path / "out")
    assert result.exit_code == 2
    assert "--format" in result.stderr
    result = run("export", quantized, quantized)
    assert result.exit_code == 1
    assert "exists: name another folder" in result.stderr
    result = run("export", quantized.parent / "float", tmp_path / "out")
    assert result.exit_code == 1
    assert "nothing in the model is quantized" in result.stderr


def test_the_page_is_run(quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of docs/formats.md that write."""
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    section = page.partition("## Write and convert")[2].partition("\n## ")[0]
    (shell,) = re.findall(r"^```bash\n(.*?)^```$", section, flags=re.DOTALL | re.MULTILINE)
    (python,) = re.findall(r"^```python\n(.*?)^```$", section, flags=re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    succeed("export", quantized, "somebodys-gptq", "--format", "gptq")
    for line in shell.splitlines():
        words = shlex.split(line, comments=True)
        assert words.pop(0) == "woq"
        hub_id = "HuggingFaceTB/SmolLM2-135M-Instruct"
        succeed(*(str(quantized.parent / "float") if word == hub_id else word for word in words))
    names: dict[str, Any] = {}
    exec(python, names)
    assert names["report"].possible
    assert (tmp_path / "smollm2-vllm" / "config.json").is_file()


@pytest.mark.parametrize("command", ["export", "convert"])
def test_help_knows_every_format(command: str) -> None:
    shown = succeed(command, "--help").stdout
    assert all(name in shown for name in ALL_FORMATS)
