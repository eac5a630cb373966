# SPDX-License-Identifier: Apache-2.0
"""A model that another library quantized is used wherever one of woq's own can be, with the same
logits bit for bit."""

from __future__ import annotations

import copy
import json
import pickle
from functools import partial

import pytest
import torch
from foreign_support import AWQ, GPTQ, NVFP4, awq_layer, fp4_layer, gptq_layer, write_checkpoint
from model_support import letters_checkpoint, llama
from transformers import AutoModelForCausalLM, AutoTokenizer

import woq

PROMPT = "the quick brown fox"
TEXT = "the quick brown fox jumps over the lazy dog. " * 8
FORMATS = {
    "gptq": (partial(gptq_layer, bits=3, zero=3), GPTQ | {"bits": 3}),
    "awq": (awq_layer, AWQ),
    "nvfp4": (partial(fp4_layer, kind="nvfp4"), NVFP4),
}


@pytest.fixture(scope="module", params=FORMATS)
def folder(request, tmp_path_factory):
    """Tokens are letters; the tokenizer lies beside the model."""
    folder = letters_checkpoint(tmp_path_factory.mktemp(request.param))
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    return write_checkpoint(folder, model, *FORMATS[request.param])


@pytest.fixture(scope="module")
def model(folder):
    return woq.AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


def logits(model):
    with torch.no_grad():
        return model(torch.arange(3, 19).reshape(2, 8)).logits


def answer(model, tokenizer, count=12):
    """Greedy, by transformers' own generate()."""
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        out = model.generate(ids, max_new_tokens=count, do_sample=False)
    return tokenizer.decode(out[0], skip_special_tokens=True).removeprefix(
        tokenizer.decode(ids[0], skip_special_tokens=True)
    )


def test_saved_and_loaded(folder, model, tmp_path):
    model.save_pretrained(tmp_path / "a")
    woq.save_pretrained(model, tmp_path / "b")
    for saved in (tmp_path / "a", tmp_path / "b"):
        again = AutoModelForCausalLM.from_pretrained(saved)
        assert torch.equal(logits(again), logits(model))
    assert torch.equal(logits(copy.deepcopy(model)), logits(model))
    assert torch.equal(logits(pickle.loads(pickle.dumps(model))), logits(model))


def test_pipeline(folder, model, tokenizer):
    expected = answer(model, tokenizer)
    pipe = woq.pipeline("text-generation", model=str(folder), max_new_tokens=12)
    (got,) = pipe(PROMPT, do_sample=False, return_full_text=False)
    assert got["generated_text"] == expected
    pipe = woq.pipeline("text-generation", model=model, tokenizer=tokenizer)
    (got,) = pipe(PROMPT, max_new_tokens=12, do_sample=False, return_full_text=False)
    assert got["generated_text"] == expected


def test_langchain(folder, model, tokenizer):
    pytest.importorskip("langchain_core")
    from langchain_woq import ChatWoq, WeightOnlyQuantPipeline

    options = {"max_new_tokens": 12, "do_sample": False}
    llm = WeightOnlyQuantPipeline.from_model_id(
        model_id=str(folder), task="text-generation", pipeline_kwargs=options
    )
    assert llm.invoke(PROMPT) == answer(model, tokenizer)
    chat = ChatWoq(model=str(folder), max_tokens=12, temperature=0)
    # Behind the prompt the chat's answer begins a text of its own.
    assert chat.invoke(PROMPT).content.strip() == answer(model, tokenizer).strip()


def test_evaluation(model, tokenizer, tmp_path):
    got = woq.evaluate(model, tokenizer, TEXT, windows=2, length=32)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert got == woq.evaluate(again, tokenizer, TEXT, windows=2, length=32)


def run(*arguments):
    from click.testing import CliRunner

    from woq.cli._app import app

    result = CliRunner().invoke(app, [str(a) for a in arguments], prog_name="woq")
    assert result.exit_code == 0, result.output
    return result.stdout


def test_commands(folder, model, tokenizer, tmp_path):
    pytest.importorskip("click")
    said = json.loads(run("inspect", folder, "--json"))
    quantized = [layer for layer in said["layers"] if layer["quantized"]]
    assert len(quantized) == 14
    layer = model.model.layers[0].mlp.up_proj
    assert {(q["weight_dtype"], q["group_size"]) for q in quantized} == {
        (layer.scheme.dtype, layer.scheme.group_size)
    }
    assert all(q["kernel"] for q in quantized)
    greedy = ("--temperature", 0, "--max-new-tokens", 12)
    assert run("generate", folder, PROMPT, *greedy).strip() == answer(model, tokenizer).strip()
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    windows = ("--windows", 2, "--length", 32)
    got = json.loads(run("eval", folder, "--text", text, *windows, "--json"))
    expected = woq.evaluate(model, tokenizer, TEXT, windows=2, length=32)
    assert got["perplexity"] == pytest.approx(expected.perplexity, rel=1e-6)


def test_more_commands(tmp_path, monkeypatch):
    pytest.importorskip("click")
    from click.testing import CliRunner

    from woq.cli import bench
    from woq.cli._app import app

    folder = write_checkpoint(tmp_path / "gptq", llama(), *FORMATS["gptq"])
    monkeypatch.setattr(bench, "_cache_bytes", lambda: 1 << 20)  # less to read
    results = json.loads(
        run("bench", "--model", folder, "--seconds", "0.01", "--rows", "1", "--json")
    )
    assert results["results"]
    result = CliRunner().invoke(app, ["quantize", str(folder), str(tmp_path / "out")])
    assert result.exit_code != 0
    assert "is quantized already" in result.stderr


def test_a_page_is_about_a_quantization_of_this_process(model, tmp_path):
    with pytest.raises(woq.InvalidArgument, match="no report of a quantization"):
        woq.write_report(model, tmp_path / "report.html")


def test_adapters(folder, tmp_path):
    peft = pytest.importorskip("peft")
    model = woq.AutoModelForCausalLM.from_pretrained(folder)
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
    tuned.save_pretrained(tmp_path)
    fresh = woq.AutoModelForCausalLM.from_pretrained(folder)
    again = peft.PeftModel.from_pretrained(fresh, tmp_path)
    assert torch.equal(logits(again), logits(tuned.eval()))


def test_dequantized(folder):
    model = woq.AutoModelForCausalLM.from_pretrained(folder)
    before = logits(model)
    float_model = model.dequantize()
    assert not any(isinstance(m, woq.WeightOnlyLinear) for m in float_model.modules())
    torch.testing.assert_close(logits(float_model), before, rtol=1e-4, atol=1e-4)
