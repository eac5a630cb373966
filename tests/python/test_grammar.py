# SPDX-License-Identifier: Apache-2.0
"""Grammars: whatever a random model draws, the answer is what the grammar allows."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from tiny_models import build_causal
from transformers import PreTrainedTokenizerFast

from woq import InvalidArgument
from woq.generation import Grammar, TextGenerator

pytest.importorskip("llguidance")
pytest_plugins = ["tiny_models"]

SCHEMA = {
    "type": "object",
    "properties": {
        "fox": {"type": "boolean"},
        "dogs": {
            "type": "array",
            "items": {"enum": ["lazy", "quick", "Z\u00fcrich"]},
            "minItems": 1,
            "maxItems": 3,
        },
        "name": {"type": "string", "maxLength": 6},
        "count": {"type": "integer", "minimum": 3, "maximum": 12},
    },
    "required": ["fox", "dogs", "name", "count"],
    "additionalProperties": False,
}
HOT = {"do_sample": True, "temperature": 50.0, "top_k": 0}


@pytest.fixture
def generator(model: Any, tokenizer: PreTrainedTokenizerFast) -> TextGenerator:
    return TextGenerator(model, tokenizer, {"max_new_tokens": 200})


def check(text: str) -> None:
    value = json.loads(text)
    assert list(value) == ["fox", "dogs", "name", "count"]
    assert isinstance(value["fox"], bool)
    assert 1 <= len(value["dogs"]) <= 3
    assert set(value["dogs"]) <= set(SCHEMA["properties"]["dogs"]["items"]["enum"])
    assert len(value["name"]) <= 6
    assert 3 <= value["count"] <= 12


def test_json_follows_its_schema(generator: TextGenerator) -> None:
    grammar = Grammar.json_schema(SCHEMA)
    texts = set()
    for seed in range(8):
        answer = generator.generate(["the fox"], grammar=grammar, seed=seed, **HOT)[0][0]
        assert answer.finish_reason == "stop"
        check(answer.text)
        texts.add(answer.text)
    assert len(texts) > 5
    free = generator.generate(["the fox"], seed=0, **HOT)[0][0].text
    with pytest.raises(json.JSONDecodeError):
        json.loads(free)


def test_batches_streams_and_beams(generator: TextGenerator) -> None:
    grammar, warm = Grammar.json_schema(SCHEMA), {**HOT, "temperature": 2.0, "seed": 1}
    prompts = ["the fox", "a", "need several bytes each"]
    single = [generator.generate([p], grammar=grammar, **warm)[0][0] for p in prompts]
    lengths = {answer.completion_tokens for answer in single}
    assert len(lengths) > 1, "rows must end at different steps"
    together = generator.generate(prompts, grammar=grammar, **warm)
    assert [group[0] for group in together] == single
    *pieces, last = generator.stream(prompts[0], grammar=grammar, **warm)
    assert last == single[0]
    assert "".join(pieces) == last.text
    beam = generator.generate(prompts[:1], grammar=grammar, num_beams=3)[0][0]
    check(beam.text)


def test_a_limit_on_length_still_cuts(generator: TextGenerator) -> None:
    answer = generator.generate(["a"], grammar=Grammar.json_schema(SCHEMA), max_new_tokens=5)[0][0]
    assert answer.finish_reason == "length"
    assert answer.completion_tokens == 5


def test_lark(generator: TextGenerator) -> None:
    grammar = Grammar.lark('start: "fox" | "dog" NUMBER\nNUMBER: /[1-3]{2}/')
    texts = {
        generator.generate(["a"], grammar=grammar, seed=seed, **{**HOT, "temperature": 1e4})[0][
            0
        ].text
        for seed in range(12)
    }
    allowed = {"fox", *(f"dog{i}{j}" for i in "123" for j in "123")}
    assert texts <= allowed
    assert len(texts) > 2


def test_other_processors_still_work(causal: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    dog = tokenizer.convert_tokens_to_ids("d")

    def no_dog(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.index_fill(1, torch.tensor([dog]), -torch.inf)

    generator = TextGenerator(causal, tokenizer, {"logits_processor": [no_dog]})
    grammar = Grammar.lark('start: "d" | "f"')
    for seed in range(4):
        assert generator.generate(["a"], grammar=grammar, seed=seed, **HOT)[0][0].text == "f"
    # Where they leave nothing, the grammar wins.
    only = Grammar.lark('start: "d"')
    assert generator.generate(["a"], grammar=only)[0][0].text == "d"


def test_what_cannot_be_enforced_is_named(causal: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InvalidArgument, match=r"the JSON schema cannot be enforced.*uniqueItems"):
        Grammar.json_schema({"type": "array", "uniqueItems": True})
    assert Grammar.json_schema({"type": "array", "uniqueItems": True}, lenient=True)
    with pytest.raises(InvalidArgument, match="the grammar cannot be enforced"):
        Grammar.lark("start: nowhere")
    with pytest.raises(InvalidArgument, match=r"grammar must be a woq\.generation\.Grammar"):
        TextGenerator(causal, tokenizer).generate(["a"], grammar={"type": "object"})
    endless = build_causal(tokenizer)
    endless.generation_config.eos_token_id = None
    with pytest.raises(InvalidArgument, match="needs a token that ends the answer"):
        TextGenerator(endless, tokenizer).generate(["a"], grammar=Grammar.lark('start: "d"'))
