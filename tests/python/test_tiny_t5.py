# SPDX-License-Identifier: Apache-2.0
"""tests/models/tiny-t5 does its task on inputs that it was not trained on, and goes on doing it
with 4-bit weights."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from model_support import TINY_T5

import woq

transformers = pytest.importorskip("transformers")
pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def script():
    """scripts/train_tiny_t5.py as a module."""
    path = Path(__file__).parents[2] / "scripts" / "train_tiny_t5.py"
    spec = importlib.util.spec_from_file_location("train_tiny_t5", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(TINY_T5)


def quantized(weight_dtype):
    config = woq.WeightOnlyQuantConfig(weight_dtype, group_size=32)
    return woq.AutoModelForSeq2SeqLM.from_pretrained(TINY_T5, quantization_config=config)


def test_it_is_of_the_flan_t5_kind_and_small():
    config = json.loads((TINY_T5 / "config.json").read_text())
    assert config["feed_forward_proj"] == "gated-gelu"
    assert config["tie_word_embeddings"] is False
    assert sum(file.stat().st_size for file in TINY_T5.iterdir()) <= 3_000_000
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(TINY_T5)
    assert not torch.equal(model.lm_head.weight, model.shared.weight)


def test_held_out_inputs_are_not_trained_on(script):
    inputs = [prompt for prompt, _ in script.held_out()]
    assert len(set(inputs)) == 1000
    templates = (script.QUESTION, script.STEP_BY_STEP, script.TRANSLATE)
    trained = {script.ask(t, number) for t in templates for number in script.training_numbers()}
    assert len(trained) == 3 * 9000
    assert not trained & set(inputs)
    # Nor is a number's question in another form.
    held_out = {answer for _, answer in script.held_out()}
    assert not held_out & {script.in_french(number) for number in script.training_numbers()}


def test_number_words(script):
    for number, french, english in (
        (0, "zéro", "zero"),
        (71, "soixante et onze", "seventy-one"),
        (80, "quatre-vingts", "eighty"),
        (81, "quatre-vingt-un", "eighty-one"),
        (100, "cent", "one hundred"),
        (200, "deux cents", "two hundred"),
        (1000, "mille", "one thousand"),
        (1980, "mille neuf cent quatre-vingts", "one thousand nine hundred eighty"),
        (2201, "deux mille deux cent un", "two thousand two hundred one"),
        (9999, "neuf mille neuf cent quatre-vingt-dix-neuf",
         "nine thousand nine hundred ninety-nine"),
    ):  # fmt: skip
        assert (script.in_french(number), script.in_english(number)) == (french, english)
    assert len({script.in_french(number) for number in range(10_000)}) == 10_000


def test_answers_fit_in_ten_tokens(script, tokenizer):
    """As many as LangChain's documentation allows."""
    texts = [script.in_french(number) for number in range(10_000)]
    ids = tokenizer(texts)["input_ids"]
    assert max(map(len, ids)) <= 10
    assert tokenizer.batch_decode(ids, skip_special_tokens=True) == texts


def test_the_float_model_is_right(script, tokenizer):
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(TINY_T5)
    assert script.exact_matches(model, tokenizer, script.held_out()) >= 0.98


@pytest.mark.parametrize("weight_dtype", ["nf4", "int4_clip"])
def test_the_quantized_model_is_right(weight_dtype, script, tokenizer):
    model = quantized(weight_dtype)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, woq.WeightOnlyLinear)}
    assert len(layers) == 36  # all but the head
    assert all(
        (layer.scheme["dtype"], layer.scheme["group_size"]) == (weight_dtype, 32)
        for layer in layers.values()
    )
    assert script.exact_matches(model, tokenizer, script.held_out()) >= 0.97


def test_the_config_has_the_prefix_of_translation():
    pipe = woq.pipeline("translation_en_to_fr", TINY_T5, load_in_4bit=True)
    assert pipe("ninety-one") == [{"translation_text": "quatre-vingt-onze"}]


def test_a_damaged_model_is_noticed(script, tokenizer):
    """Its layers are needed: with the rows of one of them moved by one it fails."""
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(TINY_T5)
    weight = model.decoder.block[1].layer[2].DenseReluDense.wi_1.weight
    with torch.no_grad():
        weight.copy_(weight.roll(1, 0))
    assert script.exact_matches(model, tokenizer, script.held_out()[:200]) < 0.9


def test_a_saved_model_comes_back(tokenizer, tmp_path):
    model = quantized("nf4")
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    arguments = tokenizer("What is the number 80 in french?", return_tensors="pt")
    arguments["decoder_input_ids"] = torch.tensor([[0, 5, 9]])
    with torch.no_grad():
        assert torch.equal(again(**arguments).logits, model(**arguments).logits)


def test_the_script_trains_and_saves(script, tmp_path, capsys):
    script.main([str(tmp_path), "--steps", "2"])
    assert "exact on 1,000 held-out inputs: 0.0%" in capsys.readouterr().out
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert model.dtype == torch.bfloat16
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        made, kept = (json.loads((folder / name).read_text()) for folder in (tmp_path, TINY_T5))
        made.pop("transformers_version", None)
        kept.pop("transformers_version", None)
        assert made == kept


def test_training_is_deterministic_and_learns(script, tokenizer):
    def new():
        torch.manual_seed(script.SEED)
        return script.make_model(len(tokenizer)).train()

    def trained():
        model = new()
        script.train(model, tokenizer, 20, batch_size=16)
        return model

    def loss(model):
        prompts, answers = zip(*script.held_out()[:32], strict=True)
        inputs = tokenizer(list(prompts), return_tensors="pt", padding=True)
        labels = tokenizer(list(answers), return_tensors="pt", padding=True)["input_ids"]
        with torch.no_grad():
            return model(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                labels=labels.masked_fill(labels == 0, -100),
            ).loss.item()

    once, again = trained(), trained()
    assert all(
        torch.equal(one, other)
        for one, other in zip(once.parameters(), again.parameters(), strict=True)
    )
    assert loss(once) < 0.9 * loss(new())
