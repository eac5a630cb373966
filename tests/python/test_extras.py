# SPDX-License-Identifier: Apache-2.0
"""Where an optional package is absent or too old, one error says which extra of woq brings it."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from pathlib import Path
from typing import Any

import pytest
from model_support import last_json, run_python

import woq
from woq.core import extras

ROOT = Path(__file__).parents[2]

LOOK = """
import json, sys
for name in {absent!r}:
    sys.modules[name] = None
import woq
found = {{}}
for name in woq.__all__:
    try:
        getattr(woq, name)
    except ImportError as error:
        found[name] = str(error)
try:
    import woq.generation
except ImportError as error:
    found["generation"] = str(error)
try:
    woq.compat.itrex.install(pipelines=False)
    from intel_extension_for_transformers.transformers import AutoModelForCausalLM
except ImportError as error:
    found["itrex"] = str(error)
print(json.dumps(found))
"""


@pytest.mark.parametrize("absent", [["torch", "transformers"], ["transformers"]])
def test_every_public_name_says_what_it_needs(absent: list[str]) -> None:
    found = last_json(run_python(LOOK.format(absent=absent)))
    assert {"AutoModelForCausalLM", "pipeline", "generation", "itrex"} <= set(found)
    assert ("WeightOnlyLinear" in found) == ("torch" in absent)
    assert "Linear" not in found  # of the core, as are the configs
    assert "WeightOnlyQuantConfig" not in found
    for name, message in found.items():
        assert f"needs {absent[0]}" in message or f"needs {absent[-1]}" in message, (name, message)
        assert message.endswith("is not installed: pip install 'woq[transformers]'")


@pytest.mark.parametrize(
    ("arguments", "absent", "extra"),
    [
        (["quantize", "tiny", "out"], "torch", "transformers"),
        (["generate", "tiny", "a"], "transformers", "transformers"),
        (["chat", "tiny"], "torch", "transformers"),
        (["eval", "tiny", "--text", "tiny/config.json"], "transformers", "transformers"),
        (["inspect", "tiny"], "transformers", "transformers"),
        (["bench"], "torch", "transformers"),
    ],
)
def test_every_command_says_what_it_needs(
    arguments: list[str], absent: str, extra: str, tmp_path: Path
) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.gguf").touch()
    process = run_python(
        f"""
        import os, sys
        os.chdir({str(tmp_path)!r})
        sys.modules[{absent!r}] = None
        sys.argv = ["woq", *{arguments!r}]
        from woq.cli import main
        main()
        """,
        check=False,
    )
    assert process.returncode == 1, process.stderr
    (line,) = process.stderr.strip().splitlines()[-1:]
    assert line.startswith("woq: ")
    assert line.endswith(f"needs {absent}, which is not installed: pip install 'woq[{extra}]'")
    assert not (tmp_path / "out").exists()


def test_gguf_is_needed_to_quantize_a_gguf_file_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.gguf").touch()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModuleNotFoundError, match=r"a GGUF file needs gguf.*'woq\[gguf\]'"):
        woq.AutoModelForCausalLM.from_pretrained(
            tmp_path, gguf_file="model.gguf", load_in_4bit=True
        )


def test_an_old_transformers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from woq.hf import quantizer

    real = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata,
        "version",
        lambda package: "4.57.6" if package == "transformers" else real(package),
    )
    with pytest.raises(woq.Unsupported, match=r"transformers 4\.57\.6 .* needs transformers>=5"):
        quantizer.register()


def test_the_extras_are_those_of_the_package() -> None:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = project["optional-dependencies"]
    assert set(extras.EXTRAS.values()) <= set(known)
    assert any(each.startswith("woq[") and "gguf" in each for each in known["cli"])


def test_other_errors_are_left_alone() -> None:
    match = r"^No module named 'woq\.nowhere'"
    with pytest.raises(ModuleNotFoundError, match=match), extras.needed_by("woq.x"):
        importlib.import_module("woq.nowhere")
