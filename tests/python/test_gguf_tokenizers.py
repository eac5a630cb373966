# SPDX-License-Identifier: Apache-2.0
"""Tokenizers that are built from a GGUF file's metadata: the ids of those that the models were
trained with, of transformers' own reader of such files, and of llama.cpp."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path

import numpy as np
import pytest
from gguf_support import gemma_file, gguf, smollm2_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, Qwen2Tokenizer

import woq
from woq import InvalidArgument, Unsupported
from woq.core import native
from woq.formats.gguf_tokenizers import tokenizer_of

WORDS = """the  cat 's 'S 2024 1,234.5 <|im_start|> <bos> <table> <start_of_turn> é e\u0301 漢字
    한국어 🙂 👩‍👩‍👧 Ünïcode def f(x): return ... !? x=1 a▁b \u017fs Ⅷ ٣ it's I'LL""".split(" ")
# As /tokenize of llama.cpp's server (b11549) answers, special tokens parsed.
LLAMA_CPP = {
    "The year 2024, 1,234.5!": [
        504,
        713,
        216,
        34,
        32,
        34,
        36,
        28,
        216,
        33,
        28,
        34,
        35,
        36,
        30,
        37,
        17,
    ],
    "  it's  I'LL\n\n\tx=1 \u2167": [
        216,
        357,
        506,
        216,
        339,
        23,
        16421,
        1116,
        197,
        104,
        45,
        33,
        216,
        173,
        223,
        117,
    ],
    "<|im_start|>user\n\xe9 e\u0301 \u6f22\u5b57\U0001f642<|im_end|>": [
        1,
        4093,
        198,
        2756,
        297,
        151,
        219,
        17097,
        137,
        112,
        36518,
        10813,
        38887,
        2,
    ],
}
BLANKS = ["", " ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", "\u00a0"]


def random_texts(count: int, *, numbers: bool = True) -> list[str]:
    rng = random.Random(0)
    ranges = [(32, 127), (160, 0x3000), (0x4E00, 0x9FFF), (0x1F300, 0x1F700)]

    def text() -> str:
        if rng.random() < 0.3:
            return "".join(
                chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randrange(40))
            )
        parts = rng.choices(WORDS, k=rng.randrange(12))
        return "".join(part + rng.choice(BLANKS) for part in parts)

    texts = (text() for _ in range(3 * count))
    kept = [each for each in texts if numbers or not any(c.isnumeric() for c in each)]
    return kept[:count]


def assert_same(found, expected, texts: list[str], **options: object) -> None:
    for text in texts:
        ids = found(text, **options)["input_ids"]
        assert ids == expected(text, **options)["input_ids"], repr(text)
        assert found.decode(ids) == expected.decode(ids), repr(text)


@pytest.fixture(scope="module")
def smollm2() -> Path:
    return smollm2_file()


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path):
    return woq.AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)


def test_smollm2_has_the_ids_of_its_own_tokenizer(smollm2: Path, tokenizer) -> None:
    """Its repository's tokenizer.json: digits one by one, then bytes by GPT-2's pattern, which the
    package has built in."""
    metadata = native.GgufModel(str(smollm2)).metadata
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split()) for merge in metadata["tokenizer.ggml.merges"]]
    own = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    own.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    own.decoder = decoders.ByteLevel()
    own.add_special_tokens([AddedToken(token, special=True) for token in tokens[:17]])
    for text in random_texts(2000):
        ids = own.encode(text).ids
        assert tokenizer(text)["input_ids"] == ids, repr(text)
        assert tokenizer.decode(ids) == own.decode(ids, skip_special_tokens=False), repr(text)


def test_smollm2_has_the_ids_of_llama_cpp(tokenizer) -> None:
    for text, ids in LLAMA_CPP.items():
        assert tokenizer(text)["input_ids"] == ids


def test_smollm2_has_the_ids_of_transformers_reader(smollm2: Path, tokenizer) -> None:
    # That reader does not know that this vocabulary has digits one by one.
    other = AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    assert_same(tokenizer, other, random_texts(2000, numbers=False))
    assert tokenizer.special_tokens_map == other.special_tokens_map
    chat = [{"role": "user", "content": "Hello"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == other.apply_chat_template(
        chat, tokenize=False
    )


def test_saved_and_loaded(tokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert_same(again, tokenizer, random_texts(200))
    assert again.chat_template == tokenizer.chat_template


@pytest.mark.slow
def test_gemma_has_the_ids_of_transformers_reader(tmp_path: Path) -> None:
    gemma = gemma_file(tmp_path)
    ours = woq.AutoTokenizer.from_pretrained(gemma.parent, model_file=gemma.name)
    other = AutoTokenizer.from_pretrained(gemma.parent, gguf_file=gemma.name)
    assert_same(ours, other, random_texts(2000))
    assert ours("Hello 1234")["input_ids"][0] == ours.bos_token_id
    assert_same(ours, other, random_texts(200), add_special_tokens=False)


def byte_level(pre: str, **more: object) -> dict[str, object]:
    """Metadata of a small vocabulary that has words with blanks and digits in them."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    trained.train_from_iterator(
        [f"the cat's 123 1234 {i} It's\n\n  e\u0301é x" for i in range(50)], trainer
    )
    vocabulary = trained.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    merges = json.loads(trained.to_str())["model"]["merges"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [*tokens, "<|end|>", "<think>"],
        "tokenizer.ggml.token_type": np.array([1] * len(tokens) + [3, 4], np.int32),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        "tokenizer.ggml.bos_token_id": len(tokens),
        **{f"tokenizer.ggml.{key}": value for key, value in more.items()},
    }


def pieces(metadata: dict[str, object], text: str) -> list[str]:
    split = tokenizer_of(metadata).tokenizer.pre_tokenizer
    return [text[start:end] for _, (start, end) in split.pre_tokenize_str(text)]


def test_qwen2(tmp_path: Path) -> None:
    metadata = byte_level("qwen2")
    found = tokenizer_of(metadata)
    merges = [tuple(merge.split()) for merge in metadata["tokenizer.ggml.merges"]]
    tokens = metadata["tokenizer.ggml.tokens"]
    own = Qwen2Tokenizer({token: i for i, token in enumerate(tokens[:-2])}, merges)
    for text in random_texts(500):
        if "<|" not in text:
            ids = own(text)["input_ids"]
            assert found.tokenizer.encode(text).ids == ids, repr(text)
    assert found.adds == {"add_bos_token": False, "add_eos_token": False}


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("gpt-2", ["It", "'s", " 12345", "'", "S", "  ", " x", "\n\n"]),
        ("smollm", ["It", "'s", " ", *"12345", "'", "S", "  ", " x", "\n\n"]),
        ("llama-bpe", ["It", "'s", " ", "123", "45", "'S", "  ", " x", "\n\n"]),
        ("qwen2", ["It", "'s", " ", *"12345", "'S", "  ", " x", "\n\n"]),
        ("tekken", ["It", "'s", " ", *"12345", "'S", "  ", " x", "\n\n"]),
    ],
)
def test_how_text_is_cut(pre: str, expected: list[str]) -> None:
    assert pieces(byte_level(pre), "It's 12345'S   x\n\n") == expected


def test_tokens_around_a_text() -> None:
    metadata = byte_level("llama-bpe")
    first = metadata["tokenizer.ggml.bos_token_id"]
    found = tokenizer_of(metadata)
    assert found.special == {"bos_token": "<|end|>"}
    assert found.tokenizer.encode("the").ids[0] == first
    assert first not in found.tokenizer.encode("the", add_special_tokens=False).ids
    assert tokenizer_of(byte_level("gpt-2")).tokenizer.encode("the").ids[0] != first
    metadata = byte_level("gpt-2", add_bos_token=True, add_eos_token=True, eos_token_id=first)
    assert tokenizer_of(metadata).tokenizer.encode("the").ids[::2] == [first, first]
    # Control tokens are special, the user's are not; either is found within a text.
    ids = found.tokenizer.encode("<think>x<|end|>", add_special_tokens=False).ids
    assert (ids[0], ids[-1]) == (first + 1, first)
    assert found.tokenizer.decode(ids) == "<think>x"


def sentencepiece(**more: object) -> dict[str, object]:
    normal = ["▁", "t", "h", "e", "▁t", "he", "▁the", "the", "et"]  # in the order of their merges
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *normal]
    types = [2, 3, 3, *[6] * 256, *[1] * len(normal)]
    scores = [0.0] * 259 + [-float(i) for i in range(len(normal))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.scores": np.array(scores, np.float32),
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        **{f"tokenizer.ggml.{key}": value for key, value in more.items()},
    }


def test_sentencepiece() -> None:
    found = tokenizer_of(sentencepiece()).tokenizer
    assert found.encode("the").tokens == ["<s>", "▁the"]
    assert found.encode("thé").tokens == ["<s>", "▁t", "h", "<0xC3>", "<0xA9>"]
    assert found.encode("the</s>the").tokens == ["<s>", "▁the", "</s>", "▁the"]
    assert found.decode(found.encode("the é").ids) == "the é"
    # The text of a byte's token is no byte.
    assert "<0x41>" not in found.encode("<0x41>").tokens
    found = tokenizer_of(sentencepiece(add_space_prefix=False, add_bos_token=False)).tokenizer
    assert found.encode("the the").tokens == ["the", "▁the"]
    assert found.decode(found.encode(" the").ids) == " the"
    # Scores decide, not the order of tokens.
    assert found.encode("het").tokens == ["he", "t"]
    scores = sentencepiece()["tokenizer.ggml.scores"].copy()
    scores[-1] = 1
    found = tokenizer_of(sentencepiece(scores=scores)).tokenizer
    assert found.encode("het").tokens == ["<s>", "▁", "h", "et"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": None}, "no list of tokens"),
        ({"merges": None}, "no list of merges"),
        ({"merges": ["t q"]}, "merge 't q'"),
        ({"token_type": [1]}, "1 values for"),
        ({"bos_token_id": 10**6}, "bos_token_id is 1000000"),
        ({"bos_token_id": None, "add_bos_token": True}, "which token"),
    ],
)
def test_damaged(change: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        tokenizer_of(byte_level("gpt-2", **change))


def test_tokens_twice() -> None:
    metadata = byte_level("gpt-2")
    metadata["tokenizer.ggml.tokens"][-1] = "<|end|>"
    with pytest.raises(InvalidArgument, match="occur twice"):
        tokenizer_of(metadata)


def test_what_is_not_known(tmp_path: Path, caplog, monkeypatch) -> None:
    with pytest.raises(Unsupported, match=r"'bert'.*woq knows 'gpt2' and 'llama'"):
        tokenizer_of(byte_level("gpt-2", model="bert"))
    with pytest.raises(Unsupported, match=r"rules 'poro-chat'.*smollm"):
        tokenizer_of(byte_level("poro-chat"))
    writer = gguf.GGUFWriter(str(tmp_path / "x.gguf"), "llama")
    metadata = byte_level("poro-chat")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("poro-chat")
    writer.add_token_list(metadata["tokenizer.ggml.tokens"])
    writer.add_token_merges(metadata["tokenizer.ggml.merges"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with caplog.at_level(logging.WARNING, "woq"):
        found = woq.AutoTokenizer.from_pretrained(tmp_path, gguf_file="x.gguf")
    assert "read by transformers: its tokenizer cuts text by the rules 'poro-chat'" in caplog.text
    assert found.decode(found("the cat")["input_ids"]) == "the cat"
