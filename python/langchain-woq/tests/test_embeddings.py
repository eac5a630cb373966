# SPDX-License-Identifier: Apache-2.0
"""WoqEmbeddings: vectors against transformers' own, pooling, batches, and what it refuses."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import woq
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

from langchain_woq import WoqEmbeddings
from langchain_woq.embeddings import pool

TEXTS = [
    "the quick brown fox",
    "a",
    "need several bytes each, and then some more of them",
    "the lazy dog; nothing else",
    "fox",
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT of random weights whose files ask for nothing."""
    from tiny_models import build_tokenizer

    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    BertModel(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def states(folder: Path, text: str) -> torch.Tensor:
    """[tokens, width] by transformers alone, one text at a time."""
    inputs = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    with torch.no_grad():
        model = AutoModel.from_pretrained(folder).eval()
        return model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
        ).last_hidden_state[0]


POOLS = {
    "mean": lambda tokens: tokens.mean(0),
    "cls": lambda tokens: tokens[0],
    "max": lambda tokens: tokens.amax(0),
    "last": lambda tokens: tokens[-1],
}


@pytest.mark.parametrize("pooling", list(POOLS))
@pytest.mark.parametrize("normalize", [True, False])
def test_vectors_are_those_of_the_model(encoder: Path, pooling: str, normalize: bool) -> None:
    embeddings = WoqEmbeddings(model=encoder, pooling=pooling, normalize=normalize, batch_size=2)
    vectors = torch.tensor(embeddings.embed_documents(TEXTS))
    for text, vector in zip(TEXTS, vectors, strict=True):
        expected = POOLS[pooling](states(encoder, text))
        if normalize:
            expected = expected / expected.norm()
        assert torch.allclose(vector, expected, atol=1e-4), text
    assert embeddings.embed_query(TEXTS[0]) == pytest.approx(vectors[0].tolist(), abs=1e-5)


def test_texts_longer_than_the_positions_are_cut(encoder: Path) -> None:
    """Also where no file and no tokenizer says how many tokens the model reads."""
    text = "the quick brown fox jumps over the lazy dog " * 20
    model, tokenizer = AutoModel.from_pretrained(encoder), AutoTokenizer.from_pretrained(encoder)
    positions = model.config.max_position_embeddings
    ids = tokenizer(text)["input_ids"]
    assert len(ids) > positions
    with torch.no_grad():
        expected = model.eval()(input_ids=torch.tensor([ids[:positions]])).last_hidden_state[0]
    for given in ({"model": encoder}, {"model": model, "tokenizer": tokenizer}):
        embeddings = WoqEmbeddings(**given, normalize=False)
        vector = torch.tensor(embeddings.embed_query(text))
        assert torch.allclose(vector, expected.mean(0), atol=1e-4)
    with pytest.raises(ValueError, match=f"max_length={positions + 1}: .* {positions} at most"):
        WoqEmbeddings(model=encoder, max_length=positions + 1)


def test_batches_are_of_similar_length(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings = WoqEmbeddings(model=encoder, batch_size=2)
    widths = []
    original = embeddings._encode
    monkeypatch.setattr(
        embeddings.__class__,
        "_encode",
        lambda self, rows: widths.append([len(row) for row in rows]) or original(rows),
    )
    embeddings.embed_documents(TEXTS)
    assert [len(batch) for batch in widths] == [2, 2, 1]
    lengths = [length for batch in widths for length in batch]
    assert lengths == sorted(lengths)
    assert embeddings.embed_documents([]) == []


def test_quantized_vectors_are_close(encoder: Path) -> None:
    exact = WoqEmbeddings(model=encoder)
    config = woq.WeightOnlyQuantConfig(weight_dtype="int8", compute_dtype="fp32")
    quantized = WoqEmbeddings(model=encoder, quantization_config=config)
    layers = [m for m in quantized._model.modules() if isinstance(m, woq.WeightOnlyLinear)]
    assert len(layers) >= 12
    ours = torch.tensor(quantized.embed_documents(TEXTS))
    theirs = torch.tensor(exact.embed_documents(TEXTS))
    cosine = (ours * theirs).sum(1)
    assert cosine.min() > 0.999
    assert not torch.equal(ours, theirs)
    assert WoqEmbeddings(model=encoder, load_in_4bit=True).embed_query("a") != exact.embed_query(
        "a"
    )


def with_files(encoder: Path, folder: Path, **files: Any) -> Path:
    for source in encoder.iterdir():
        (folder / source.name).write_bytes(source.read_bytes())
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path = path.with_suffix(".json")
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
    return folder


def modules(*kinds: str) -> list[dict[str, str]]:
    return [
        {"path": f"{index}_{kind}", "type": f"sentence_transformers.models.{kind}"}
        for index, kind in enumerate(kinds)
    ]


def test_the_models_files_are_followed(encoder: Path, tmp_path: Path) -> None:
    folder = with_files(
        encoder,
        tmp_path,
        modules=modules("Transformer", "Pooling"),
        **{
            "1_Pooling__config": {
                "pooling_mode_cls_token": True,
                "pooling_mode_mean_tokens": False,
                "include_prompt": True,
            },
            "sentence_bert_config": {"max_seq_length": 3},
            "config_sentence_transformers": {"prompts": {"query": "fox ", "passage": "dog "}},
        },
    )
    embeddings = WoqEmbeddings(model=folder)
    plain = WoqEmbeddings(
        model=encoder, pooling="cls", normalize=False, max_length=3, query_prefix=""
    )
    assert embeddings.embed_query(TEXTS[0]) == plain.embed_query("fox " + TEXTS[0])
    assert embeddings.embed_documents(TEXTS) == plain.embed_documents(["dog " + t for t in TEXTS])
    own = WoqEmbeddings(model=folder, query_prefix="", normalize=True, pooling="mean")
    assert own.embed_query("a") == WoqEmbeddings(model=encoder, max_length=3).embed_query("a")


def test_files_that_are_not_understood_are_refused(encoder: Path, tmp_path: Path) -> None:
    folder = with_files(encoder, tmp_path, modules=modules("Transformer", "Dense"))
    with pytest.raises(ValueError, match="steps that WoqEmbeddings does not know: Dense"):
        WoqEmbeddings(model=folder)
    both = {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}
    with_files(
        encoder,
        tmp_path,
        modules=modules("Transformer", "Pooling"),
        **{"1_Pooling__config": both},
    )
    with pytest.raises(ValueError, match=r"asks for pooling_mode_mean_tokens and .*pass pooling="):
        WoqEmbeddings(model=folder)
    assert WoqEmbeddings(model=folder, pooling="mean").embed_query("a")


def test_what_is_refused(
    encoder: Path, t5: Any, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="model is missing"):
        WoqEmbeddings()
    with pytest.raises(ValueError, match="unknown pooling 'sum'; known are 'mean', 'cls'"):
        WoqEmbeddings(model=encoder, pooling="sum")
    with pytest.raises(ValueError, match="tokenizer is missing"):
        WoqEmbeddings(model=AutoModel.from_pretrained(encoder))
    with pytest.raises(ValueError, match="no such folder or file"):
        WoqEmbeddings(model=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="T5ForConditionalGeneration is an encoder-decoder"):
        WoqEmbeddings(model=t5, tokenizer=tokenizer)
    with pytest.raises(TypeError, match=r"texts is a string.*embed_documents\(\[text\]\)"):
        WoqEmbeddings(model=encoder).embed_documents("abc")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="text 1 is a int"):
        WoqEmbeddings(model=encoder).embed_documents(["a", 3])


def test_a_loaded_model_and_the_async_forms(encoder: Path) -> None:
    by_name = WoqEmbeddings(model=encoder)
    loaded = WoqEmbeddings(
        model=AutoModel.from_pretrained(encoder).eval(),
        tokenizer=AutoTokenizer.from_pretrained(encoder),
    )
    assert loaded.model == str(encoder)
    expected = by_name.embed_documents(TEXTS)
    assert loaded.embed_documents(TEXTS) == expected

    async def run() -> Any:
        return await loaded.aembed_documents(TEXTS), await loaded.aembed_query(TEXTS[1])

    assert asyncio.run(run()) == (expected, by_name.embed_query(TEXTS[1]))


def test_pooling_ignores_padding() -> None:
    states = torch.tensor([[[1.0, 2.0], [3.0, -4.0], [100.0, 100.0]]])
    mask = torch.tensor([[1, 1, 0]])
    expected = {"mean": [2.0, -1.0], "cls": [1.0, 2.0], "max": [3.0, 2.0], "last": [3.0, -4.0]}
    for mode, vector in expected.items():
        assert pool(states, mask, mode).tolist() == [vector]


def test_minilm_knows_what_is_alike(minilm: Path) -> None:
    config = woq.WeightOnlyQuantConfig(weight_dtype="nf4")
    embeddings = WoqEmbeddings(model=minilm, quantization_config=config)
    cats, rug, stocks = torch.tensor(
        embeddings.embed_documents(
            [
                "The cat sits on the mat.",
                "A cat is sitting on a rug.",
                "The stock market fell today.",
            ]
        )
    )
    assert cats @ rug > 0.6
    assert cats @ stocks < 0.2
    assert embeddings._settings.max_length == 256
