# SPDX-License-Identifier: Apache-2.0
"""`WoqEmbeddings`: text embeddings by a weight-only quantized encoder."""

from __future__ import annotations

import threading
from typing import Any

import torch
from langchain_core.embeddings import Embeddings
from pydantic import Field, PrivateAttr, model_validator
from typing_extensions import Self
from woq.generation import Flag, load_model, position_limit, run_in_thread

from langchain_woq.loaded_model import ModelFields
from langchain_woq.other_names import take, take_cache_folder
from langchain_woq.sentence_files import SentenceSettings, longest_text, read_settings

# Names of HuggingFaceEmbeddings, and of what its encode_kwargs hold.
_SYNONYMS = {"model_name": "model", "model_id": "model"}
_ANSWERS = {
    "query_encode_kwargs": "pass query_prefix=, and encode_kwargs= for all texts",
    "multi_process": "texts go through the model in batches, on all threads",
    "show_progress": "no progress is shown; embed lists of texts in pieces",
}
_ENCODING = {"normalize_embeddings": "normalize", "batch_size": "batch_size"}


class WoqEmbeddings(ModelFields, Embeddings):
    """Embeddings of texts by an encoder (MiniLM, BGE, E5, ...) with quantized weights on a CPU::

        from langchain_woq import WoqEmbeddings
        from woq import WeightOnlyQuantConfig

        embeddings = WoqEmbeddings(
            model="sentence-transformers/all-MiniLM-L6-v2",
            quantization_config=WeightOnlyQuantConfig(weight_dtype="int8"),
        )
        embeddings.embed_query("What is a byte?")

    How tokens become one vector is read from the model's sentence-transformers files; without them
    the mean of the tokens' vectors is normalised. Texts longer than the model reads are cut.
    """

    pooling: str | None = None
    """"mean", "cls", "max" or "last". None: as the model's files say, or the mean."""
    normalize: bool | None = None
    """Vectors of length 1. None: as the model's files say, or True."""
    max_length: int | None = Field(default=None, ge=1)
    """Tokens of a text that are read. None: as the model's files, its tokenizer and its number of
    positions say."""
    query_prefix: str | None = None
    """Put before queries. None: the model's prompt "query", if its files have one."""
    document_prefix: str | None = None
    """Put before documents. None: the model's prompt "document" or "passage"."""
    batch_size: int = Field(default=32, ge=1)
    """How many texts, of similar length, go through the model together."""

    _model: Any = PrivateAttr()
    _tokenizer: Any = PrivateAttr()
    _settings: SentenceSettings = PrivateAttr()

    @model_validator(mode="before")
    @classmethod
    def _take_other_names(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        taken = take(values, _SYNONYMS, _ANSWERS)
        take_cache_folder(taken)
        encoding = dict(taken.pop("encode_kwargs", None) or {})
        for name, field in _ENCODING.items():
            if name in encoding:
                taken.setdefault(field, encoding.pop(name))
        if encoding:
            raise ValueError(
                f"encode_kwargs: {', '.join(encoding)} has no meaning here; known are "
                f"{', '.join(_ENCODING)}"
            )
        return taken

    @model_validator(mode="after")
    def _load(self) -> Self:
        self._model, self._tokenizer = load_model(
            "AutoModel", self._model_or_name(), self.tokenizer, **self._loading()
        )
        files = SentenceSettings()
        if self.model:
            files = read_settings(self.model, self.model_kwargs, pooling=self.pooling)
        longest = longest_text(files, self._model, self._tokenizer)
        if self.max_length is not None:
            positions = position_limit(self._model)
            if positions is not None and self.max_length > positions:
                raise ValueError(
                    f"max_length={self.max_length}: {type(self._model).__name__} has positions for "
                    f"{positions} tokens; leave max_length out, or pass {positions} at most"
                )
            longest = self.max_length
        self._settings = files.with_overrides(
            pooling=self.pooling,
            normalize=self.normalize,
            max_length=longest,
            query_prefix=self.query_prefix,
            document_prefix=self.document_prefix,
        )
        if getattr(self._model.config, "is_encoder_decoder", False):
            raise ValueError(
                f"{type(self._model).__name__} is an encoder-decoder model: WoqEmbeddings needs an "
                "encoder (or a decoder with pooling='last')"
            )
        return self

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector per text."""
        return self._embed(texts, self._settings.document_prefix, threading.Event())

    def embed_query(self, text: str) -> list[float]:
        """The vector of one query."""
        return self._embed([text], self._settings.query_prefix, threading.Event())[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """In a thread of its own, which cancelling the task ends after its batch."""
        prefix = self._settings.document_prefix
        return await run_in_thread(lambda cancelled: self._embed(texts, prefix, cancelled))

    async def aembed_query(self, text: str) -> list[float]:
        """In a thread of its own."""
        prefix = self._settings.query_prefix
        return (await run_in_thread(lambda cancelled: self._embed([text], prefix, cancelled)))[0]

    def _embed(self, texts: list[str], prefix: str, cancelled: Flag) -> list[list[float]]:
        if isinstance(texts, str):
            raise TypeError("texts is a string, a list of them is needed: embed_documents([text])")
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"text {index} is a {type(text).__name__}, a string is needed")
        rows = [
            self._tokenizer(
                prefix + text,
                truncation=self._settings.max_length is not None,
                max_length=self._settings.max_length,
            )["input_ids"]
            for text in texts
        ]
        # Of similar length, so that little is padding.
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        vectors: list[list[float]] = [[] for _ in rows]
        for first in range(0, len(order), self.batch_size):
            if cancelled.is_set():
                break  # nobody waits for the result any more
            chunk = order[first : first + self.batch_size]
            for index, vector in zip(chunk, self._encode([rows[i] for i in chunk]), strict=True):
                vectors[index] = vector
        return vectors

    def _encode(self, rows: list[list[int]]) -> list[list[float]]:
        width = max(1, *(len(row) for row in rows))
        pad = self._tokenizer.pad_token_id or 0  # masked
        ids = torch.full((len(rows), width), pad, dtype=torch.long)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
            mask[i, : len(row)] = 1
        with torch.inference_mode():
            states = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
            pooled = pool(states.float(), mask, self._settings.pooling)
            if self._settings.normalize:
                pooled = torch.nn.functional.normalize(pooled, dim=-1)
        return [[float(value) for value in row] for row in pooled.tolist()]


def pool(states: torch.Tensor, mask: torch.Tensor, mode: str) -> torch.Tensor:
    """[batch, tokens, width] to [batch, width], by `mode` over the tokens that `mask` marks."""
    if mode == "cls":
        return states[:, 0]
    weights = mask[..., None].to(states.dtype)  # [batch, tokens, 1]
    if mode == "max":
        return states.masked_fill(weights == 0, -torch.inf).amax(dim=1)
    if mode == "last":
        last = (mask.sum(dim=1) - 1).clamp(min=0)
        return states[torch.arange(len(states)), last]
    return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)
