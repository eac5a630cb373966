# SPDX-License-Identifier: Apache-2.0
"""What HuggingFacePipeline, ChatHuggingFace and HuggingFaceEmbeddings call their fields."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from langchain_core.load import dumps
from transformers import BertConfig, BertModel

from langchain_woq import ChatWoq, WeightOnlyQuantPipeline, WoqEmbeddings


@pytest.fixture
def folder(causal: Any, chat_tokenizer: Any, tmp_path: Path) -> str:
    causal.save_pretrained(tmp_path / "model")
    chat_tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def encoder(chat_tokenizer: Any, tmp_path: Path) -> str:
    config = BertConfig(
        vocab_size=len(chat_tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    BertModel(config).save_pretrained(tmp_path / "encoder")
    chat_tokenizer.save_pretrained(tmp_path / "encoder")
    return str(tmp_path / "encoder")


@pytest.mark.parametrize("name", ["model", "model_id", "model_name"])
def test_of_the_model(folder: str, encoder: str, name: str) -> None:
    assert ChatWoq(**{name: folder}).model == folder
    assert WeightOnlyQuantPipeline(**{name: folder}).model_id == folder
    assert WoqEmbeddings(**{name: encoder}).model == encoder


@pytest.mark.parametrize("name", ["max_tokens", "max_new_tokens"])
def test_of_the_length(folder: str, name: str) -> None:
    chat = ChatWoq(model=folder, **{name: 3})
    assert chat.max_tokens == 3
    assert chat.invoke("a").usage_metadata["output_tokens"] == 3
    assert chat.invoke("a", **{name: 2}).usage_metadata["output_tokens"] == 2
    llm = WeightOnlyQuantPipeline(model_id=folder, **{name: 3})
    counts = [
        llm.generate(["a"], **options).generations[0][0].generation_info["completion_tokens"]
        for options in ({}, {name: 2})
    ]
    assert counts == [3, 2]
    assert list(llm.stream("a", **{name: 1}))


def test_two_names_of_one_field(folder: str) -> None:
    with pytest.raises(ValueError, match="max_new_tokens=3 and max_tokens=4 mean the same"):
        ChatWoq(model=folder, max_tokens=4, max_new_tokens=3)
    assert ChatWoq(model=folder, max_tokens=3, max_new_tokens=3).max_tokens == 3


def test_of_the_backend_and_the_device(folder: str, encoder: str) -> None:
    for backend in ("default", "pt"):
        ChatWoq(model=folder, backend=backend, device="cpu")
        WeightOnlyQuantPipeline.from_model_id(folder, backend=backend)
        WoqEmbeddings(model=encoder, backend=backend, model_kwargs={"device": "cpu"})
    with pytest.raises(ValueError, match="backend='openvino': woq runs on transformers and torch"):
        ChatWoq(model=folder, backend="openvino")
    with pytest.raises(ValueError, match="woq computes on the CPU"):
        WoqEmbeddings(model=encoder, model_kwargs={"device": "cuda"})


def test_of_embedding(encoder: str) -> None:
    plain = WoqEmbeddings(model=encoder, normalize=False)
    other = WoqEmbeddings(
        model_name=encoder,
        encode_kwargs={"normalize_embeddings": False, "batch_size": 2},
        multi_process=False,
        show_progress=False,
    )
    assert (other.normalize, other.batch_size) == (False, 2)
    assert other.embed_query("the fox") == plain.embed_query("the fox")
    with pytest.raises(ValueError, match="encode_kwargs: prompt_name has no meaning here; known"):
        WoqEmbeddings(model=encoder, encode_kwargs={"prompt_name": "query"})
    with pytest.raises(ValueError, match="multi_process has no meaning here"):
        WoqEmbeddings(model=encoder, multi_process=True)


def test_what_is_accepted_without_meaning(folder: str) -> None:
    chat = ChatWoq(model=folder, max_retries=2, api_key="secret", max_tokens=2)
    assert chat.invoke("a").content == ChatWoq(model=folder, max_tokens=2).invoke("a").content
    assert "secret" not in dumps(chat)
    assert "max_retries" not in dumps(chat)
    assert "secret" not in repr(chat)


def test_unknown_names_are_refused(folder: str) -> None:
    for kind in (ChatWoq, WeightOnlyQuantPipeline):
        with pytest.raises(ValueError, match="Extra inputs are not permitted"):
            kind(modle=folder)
    with pytest.raises(ValueError, match="llm has no meaning here"):
        ChatWoq(model=folder, llm=object())
