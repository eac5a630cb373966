# SPDX-License-Identifier: Apache-2.0
"""Tiny random models and a tokenizer, built in code: no downloads, deterministic.

The fixtures are for `pytest_plugins = ["tiny_models"]`; langchain-woq's tests use them, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

CORPUS = [
    "the quick brown fox jumps over the lazy dog and runs away from it",
    "a stop text (like this one) ends the answer; nothing else does.",
    "Z\u00fcrich: na\u00efve caf\u00e9, \u6771\u4eac and \U0001f600 need several bytes each",
    "0 1 2 3 4 5 6 7 8 9 + - * / = ? ! .\n\n",
]


def build_tokenizer(*, bos: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE, so that characters and stop texts cross token borders."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<pad>", "<s>", "</s>", "<|end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>" if bos else None,
        eos_token="</s>",
        additional_special_tokens=["<|end|>"],
    )


def build_metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """SentencePiece-like: a leading space belongs to the token, unknown characters become bytes."""
    merges = [("\u2581", "t"), ("\u2581t", "h"), ("\u2581th", "e"), ("o", "x"), ("\u2581", "a")]
    tokens = ["<unk>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    tokens += ["\u2581", *"abcdefghijklmnopqrstuvwxyz", *(left + right for left, right in merges)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    )


def build_causal(tokenizer: Any, seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,  # wide, so that greedy answers vary and don't repeat one token
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


def build_t5(tokenizer: Any, seed: int = 1) -> T5ForConditionalGeneration:
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=64,
        d_kv=16,
        d_ff=96,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        initializer_factor=4.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    return T5ForConditionalGeneration(config).eval()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture(scope="session")
def causal(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return build_causal(tokenizer)


@pytest.fixture(scope="session")
def t5(tokenizer: PreTrainedTokenizerFast) -> T5ForConditionalGeneration:
    return build_t5(tokenizer)


@pytest.fixture(params=["causal", "t5"])
def model(request: pytest.FixtureRequest) -> Any:
    """Every test that takes it runs on a decoder-only and on an encoder-decoder model."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def widths(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[tuple[int, ...]]]:
    """Watch the shapes of the input_ids that a model's generate() gets."""

    def watch(model: Any) -> list[tuple[int, ...]]:
        shapes: list[tuple[int, ...]] = []
        original = model.generate

        def generate(**kwargs: Any) -> Any:
            shapes.append(tuple(kwargs["input_ids"].shape))
            return original(**kwargs)

        monkeypatch.setattr(model, "generate", generate)
        return shapes

    return watch
