# SPDX-License-Identifier: Apache-2.0
"""Models whose positions are rows of a table: how many they are, and prompts near and beyond."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from tiny_models import build_tokenizer

import woq
from woq import InvalidArgument
from woq.generation import TextGenerator, position_limit

pytest_plugins = ["tiny_models"]

LIMIT = 32
_SIZES = {
    "vocab_size": 320,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": LIMIT,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ENCODER_DECODER = {
    **_SIZES,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}

# The name of a config class without "Config", its own arguments, and the tokens that it reads.
TABLES: list[tuple[str, dict[str, Any], int | None]] = [
    ("GPT2", {}, LIMIT),
    ("OPT", {"ffn_dim": 32, "word_embed_proj_dim": 32}, LIMIT),
    ("GPTNeo", {"num_layers": 1, "attention_types": [[["global"], 1]]}, LIMIT),
    ("GPTBigCode", {}, LIMIT),
    ("GPTJ", {"rotary_dim": 4}, LIMIT),
    ("CodeGen", {"rotary_dim": 4, "num_attention_heads": 4}, LIMIT),
    ("BioGpt", {"intermediate_size": 32}, LIMIT),
    ("CTRL", {"dff": 32}, LIMIT),
    (
        "Mpt",
        {"d_model": 32, "n_heads": 2, "n_layers": 1, "max_seq_len": LIMIT},
        LIMIT,
    ),
    ("Bart", _ENCODER_DECODER, LIMIT),
    ("Marian", _ENCODER_DECODER, LIMIT),
    ("Llama", {"intermediate_size": 32}, None),
    ("Bloom", {}, None),
    ("T5", {"d_model": 32, "d_kv": 16, "num_layers": 1, "d_ff": 32}, None),
]


def build(name: str, arguments: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**_SIZES, **arguments})
    kind = "Seq2SeqLM" if config.is_encoder_decoder else "CausalLM"
    auto = getattr(transformers, f"AutoModelFor{kind}")
    return auto.from_config(config).eval()


@pytest.mark.parametrize(("name", "arguments", "limit"), TABLES, ids=[row[0] for row in TABLES])
def test_the_limit_is_where_the_model_fails(
    name: str, arguments: dict[str, Any], limit: int | None
) -> None:
    model = build(name, arguments)

    def run(tokens: int) -> None:
        ids = torch.ones(1, tokens, dtype=torch.long)
        more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids), **more)

    assert position_limit(model) == limit
    run(LIMIT)
    if limit is None:
        run(LIMIT + 1)
        return
    with pytest.raises((IndexError, RuntimeError)):
        run(limit + 1)


def test_rows_of_padding_are_no_positions() -> None:
    """RoBERTa's table has a row for the padding and those before it."""
    config = transformers.RobertaConfig(
        **{**_SIZES, "pad_token_id": 1, "max_position_embeddings": LIMIT + 2}, intermediate_size=32
    )
    assert position_limit(transformers.RobertaModel(config)) == LIMIT


@pytest.fixture(scope="module", params=["GPT2", "OPT"])
def pipe(request: pytest.FixtureRequest) -> Any:
    tokenizer = build_tokenizer(bos=True)
    arguments = next(row[1] for row in TABLES if row[0] == request.param)
    model = build(request.param, {**arguments, "vocab_size": len(tokenizer)})
    model.generation_config.eos_token_id = None  # so that answers have the length asked for
    return woq.pipeline("text-generation", model, tokenizer)


def details(pipe: Any, prompt: str, **options: Any) -> Any:
    return pipe(prompt, return_details=True, **options)[0]["details"]


LONG = "the quick brown fox jumps over the lazy dog and runs away from it " * 4


def test_truncation_leaves_room_for_the_answer(pipe: Any) -> None:
    found = details(pipe, LONG, truncation=True, max_new_tokens=8)
    assert (found["prompt_tokens"], found["completion_tokens"]) == (LIMIT - 8, 8)
    # The end of the prompt is what the answer goes on from.
    whole = pipe.generator.encode(LONG)
    assert pipe.generator.encode(LONG, truncation=True, max_new_tokens=8) == whole[-(LIMIT - 8) :]
    assert (
        "".join(pipe.stream(LONG, truncation=True, max_new_tokens=8))
        == (
            pipe(LONG, truncation=True, max_new_tokens=8, return_full_text=False)[0][
                "generated_text"
            ]
        )
    )


def test_truncation_keeps_the_token_that_texts_begin_with(pipe: Any) -> None:
    bos = pipe.tokenizer.bos_token
    ids = pipe.generator.encode(bos + LONG, truncation=True, max_new_tokens=8)
    assert len(ids) == LIMIT - 8
    assert ids[0] == pipe.tokenizer.bos_token_id
    assert ids[1:] == pipe.generator.encode(LONG)[-(LIMIT - 9) :]


def test_without_a_wish_the_answer_ends_with_the_positions(pipe: Any) -> None:
    prompt = pipe.tokenizer.decode(pipe.generator.encode(LONG)[: LIMIT - 4])
    found = details(pipe, prompt)
    # The last token of an answer is not read any more.
    assert (found["completion_tokens"], found["finish_reason"]) == (5, "length")
    assert details(pipe, LONG, truncation=True)["prompt_tokens"] == LIMIT // 2


@pytest.mark.parametrize(("tokens", "new"), [(LIMIT + 1, 1), (LIMIT - 2, 8), (2, LIMIT)])
def test_what_goes_beyond_is_refused_before_the_model_runs(
    pipe: Any, tokens: int, new: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **keywords: Any) -> Any:
        raise AssertionError("the model ran")

    monkeypatch.setattr(pipe.model, "forward", fail)
    ids = pipe.generator.encode(LONG)[:tokens]
    with pytest.raises(InvalidArgument, match=rf"\b{LIMIT}\b"):
        pipe.generator.generate([ids], max_new_tokens=new)


def test_truncation_without_room_for_a_prompt(pipe: Any) -> None:
    with pytest.raises(InvalidArgument, match=f"max_new_tokens={LIMIT} leaves none"):
        pipe(LONG, truncation=True, max_new_tokens=LIMIT)


def test_encoder_and_decoder_have_limits_of_their_own() -> None:
    tokenizer = build_tokenizer()
    model = build("Bart", {**_ENCODER_DECODER, "vocab_size": len(tokenizer)})
    model.generation_config.eos_token_id = None
    generator = TextGenerator(model, tokenizer)
    (answers,) = generator.generate([[5] * LIMIT])
    assert answers[0].completion_tokens == LIMIT
    with pytest.raises(InvalidArgument, match=f"prompt 0 has {LIMIT + 1} tokens"):
        generator.generate([[5] * (LIMIT + 1)])
    with pytest.raises(InvalidArgument, match=f"max_new_tokens={LIMIT} at most"):
        generator.generate([[5]], max_new_tokens=LIMIT + 1)


def test_rotary_models_go_on(causal: Any, tokenizer: Any) -> None:
    """Beyond the length they were trained for their answers may be bad, but they have positions."""
    generator = TextGenerator(causal, tokenizer)
    trained = causal.config.max_position_embeddings
    (answers,) = generator.generate([[5] * (trained + 2)], max_new_tokens=2)
    assert answers[0].completion_tokens <= 2
