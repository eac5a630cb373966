# SPDX-License-Identifier: Apache-2.0
"""A GGUF file is used wherever one of woq's own models can be, by its path and without the package
gguf: the same answers everywhere, and a saved model's bit for bit."""

from __future__ import annotations

import copy
import json
import pickle
import sys
from pathlib import Path

import pytest
import torch
from gguf_support import build, write
from model_support import logits
from transformers import AutoModelForCausalLM, AutoTokenizer

import woq

PROMPT = "the quick brown fox"
TEXT = "the quick brown fox jumps over the lazy dog. " * 8
GREEDY = {"max_new_tokens": 12, "do_sample": False}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """K-quants and a tied embedding; tokens are letters."""
    path = tmp_path_factory.mktemp("gguf") / "letters.Q4_K.gguf"
    write(build("llama_256_tied"), path, "llama", "Q4_K")
    return path


@pytest.fixture(autouse=True)
def without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)


@pytest.fixture
def model(file: Path):
    return woq.AutoModelForCausalLM.from_pretrained(file.parent, model_file=file.name)


@pytest.fixture
def tokenizer(file: Path):
    return woq.AutoTokenizer.from_pretrained(file.parent, model_file=file.name)


def answer(model, tokenizer) -> str:
    """Greedy, by transformers' own generate()."""
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        out = model.generate(ids, **GREEDY)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def run(*arguments: object, **options: object) -> str:
    from click.testing import CliRunner

    from woq.cli._app import app

    result = CliRunner().invoke(app, [str(a) for a in arguments], prog_name="woq", **options)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_pipeline(file: Path, model, tokenizer) -> None:
    expected = answer(model, tokenizer)
    assert expected
    for source, named in (
        (file, {}),
        (str(file), {}),
        (file.parent, {"gguf_file": file.name}),
        (file.parent, {"model_file": file.name}),
        (file.parent, {"model_kwargs": {"model_file": file.name}}),
        (model, {"tokenizer": tokenizer}),
        (model, {"tokenizer": str(file)}),
    ):
        pipe = woq.pipeline("text-generation", source, **named)
        (got,) = pipe(PROMPT, return_full_text=False, **GREEDY)
        assert got["generated_text"] == expected, (source, named)
    with pytest.raises(woq.InvalidArgument, match=r"model_file='a\.gguf'.*contradict"):
        woq.pipeline("text-generation", file.parent, gguf_file="b.gguf", model_file="a.gguf")


def test_langchain(file: Path, model, tokenizer) -> None:
    pytest.importorskip("langchain_core")
    from langchain_woq import ChatWoq, WeightOnlyQuantPipeline

    expected = answer(model, tokenizer)
    for source, more in (
        (str(file), {}),
        (str(file.parent), {"gguf_file": file.name}),
        (str(file.parent), {"model_file": file.name}),
    ):
        llm = WeightOnlyQuantPipeline.from_model_id(
            model_id=source, task="text-generation", pipeline_kwargs=GREEDY, model_kwargs=more
        )
        assert llm.invoke(PROMPT) == expected
        chat = ChatWoq(model=source, max_tokens=12, temperature=0, model_kwargs=more)
        # Behind the prompt the chat's answer begins a text of its own.
        assert chat.invoke(PROMPT).content.strip() == expected.strip()


def test_commands(file: Path, model, tokenizer, tmp_path: Path) -> None:
    pytest.importorskip("click")
    expected = answer(model, tokenizer).strip()
    greedy = ("--temperature", 0, "--max-new-tokens", 12)
    said = json.loads(run("inspect", file, "--json"))
    # 2 blocks of 7, and the embedding that is the head as well
    assert sum(layer["quantized"] for layer in said["layers"]) == 2 * 7 + 1
    assert run("generate", file, PROMPT, *greedy).strip() == expected
    assert run("generate", file.parent, PROMPT, *greedy).strip() == expected
    assert run("chat", file, *greedy, "--quiet", input=PROMPT + "\n").strip() == expected
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    windows = ("--windows", 2, "--length", 32)
    got = json.loads(run("eval", file, "--text", text, *windows, "--json"))
    figures = woq.evaluate(model, tokenizer, TEXT, windows=2, length=32)
    assert got["perplexity"] == pytest.approx(figures.perplexity, rel=1e-6)


def test_saved_and_loaded(file: Path, model, tokenizer, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "a")
    woq.save_pretrained(model, tmp_path / "b")
    tokenizer.save_pretrained(tmp_path / "b")
    for saved in (tmp_path / "a", tmp_path / "b"):
        again = AutoModelForCausalLM.from_pretrained(saved)
        assert torch.equal(logits(again), logits(model))
    assert torch.equal(logits(copy.deepcopy(model)), logits(model))
    assert torch.equal(logits(pickle.loads(pickle.dumps(model))), logits(model))
    assert answer(again, AutoTokenizer.from_pretrained(tmp_path / "b")) == answer(model, tokenizer)


def test_a_page_is_about_a_quantization_of_this_process(model, tmp_path: Path) -> None:
    with pytest.raises(woq.InvalidArgument, match=r"no report of a quantization.*woq inspect"):
        woq.write_report(model, tmp_path / "report.html")


def test_adapters(file: Path, model, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    before = logits(model)
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules="all-linear"))
    assert torch.equal(logits(tuned), before)
    ids = torch.arange(3, 19).reshape(2, 8)
    optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=0.5)
    losses = []
    for _ in range(3):
        loss = tuned(ids, labels=ids).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    # "auto" looks for the size of the base model's vocabulary in a config.json beside it.
    tuned.save_pretrained(tmp_path, save_embedding_layers=False)
    fresh = woq.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    again = peft.PeftModel.from_pretrained(fresh, tmp_path)
    assert torch.equal(logits(again), logits(tuned.eval()))


def test_other_weights_need_the_package(file: Path) -> None:
    pytest.importorskip("click")
    with pytest.raises(ModuleNotFoundError, match=r"a GGUF file needs gguf.*'woq\[gguf\]'"):
        woq.pipeline("text-generation", file, load_in_4bit=True)
