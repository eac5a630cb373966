# SPDX-License-Identifier: Apache-2.0
"""Calibration data: from whatever the user has to batches of token ids for a model's forward pass.

Everything becomes one stream of tokens, without special tokens, which is cut into samples of
`seqlen`; of these `nsamples` are drawn by `seed`. `Examples` are samples as they are instead.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..core.native import InvalidArgument
from ..modules.targets import input_embedding
from .corpus import describe, load_tokenizer, read_tokens, token_pieces

__all__ = [
    "Examples",
    "calibration_batches",
    "check_counts",
    "read_ahead",
    "sample_from_model",
    "token_samples",
]

logger = logging.getLogger("woq")

# Samples that are generated at a time, and tokens of each that are not left to chance.
_GENERATED_TOGETHER = 16
_GREEDY = 3
# Tokens that go through a block at a time, unless a batch size is given: enough to fill the
# products; with four times as many, hidden layers leave the caches and a pass takes twice as long.
BATCH_TOKENS = 2048


@dataclasses.dataclass(frozen=True)
class Examples:
    """Calibration data of which each piece is a sample, and all are used: AutoGPTQ's `examples`.
    A piece with more tokens than the model has positions becomes several.

    Args:
        pieces: what `token_pieces` takes.
    """

    pieces: Any


def read_ahead(dataset: Any, tokenizer: Any, beside: Any, options: Mapping[str, Any]) -> Any:
    """`dataset` as token ids, as far as `calibration_batches` will read them, from which it makes
    the same batches; so that mistakes in the data show before a model is loaded. None and "self"
    stay what they are.

    Args:
        beside: where the tokenizer is saved if `tokenizer` is None: the model's path.
    """
    if _is_model_itself(dataset):
        return dataset
    if isinstance(dataset, Examples):
        return Examples(_read_examples(dataset, lambda: load_tokenizer(tokenizer, beside)))
    nsamples, seqlen = int(options["nsamples"]), int(options["seqlen"])
    return read_tokens(dataset, lambda: load_tokenizer(tokenizer, beside), nsamples, seqlen)


def _is_model_itself(dataset: Any) -> bool:
    return dataset is None or (isinstance(dataset, str) and dataset == "self")


def calibration_batches(
    model: nn.Module, dataset: Any, tokenizer: Any, options: Mapping[str, Any]
) -> list[dict[str, torch.Tensor]]:
    """Batches of keyword arguments for `model`: input_ids [batch_size, seqlen], and for encoder-
    decoder models decoder_input_ids.

    An encoder-decoder model gets the first half of each sample as the encoder's input, the second
    as the decoder's.

    Args:
        options: nsamples, seqlen, batch_size (None: as many samples as have `BATCH_TOKENS`
            together), seed.

    Raises:
        InvalidArgument: no tokens, or tokens outside the vocabulary.
        Unsupported: the data set's library is not installed, or no tokenizer can be found.
    """
    beside = getattr(getattr(model, "config", None), "name_or_path", "")
    if isinstance(dataset, Examples):
        pieces = _read_examples(dataset, lambda: load_tokenizer(tokenizer, beside))
        return [_arguments(model, ids) for ids in _of_one_length(model, pieces)]
    nsamples, seqlen = int(options["nsamples"]), _longest(model, int(options["seqlen"]))
    seed = int(options["seed"])
    if _is_model_itself(dataset):
        if dataset is None:
            logger.warning(
                "no calibration data was given: text sampled from the model itself is used "
                "(dataset='self'). Text like what the model will see gives better results."
            )
        ids = sample_from_model(model, nsamples, seqlen, seed)
    else:
        ids = token_samples(
            dataset, lambda: load_tokenizer(tokenizer, beside), nsamples, seqlen, seed
        )
    _check_vocabulary(model, ids)
    size = options["batch_size"]
    if size is None:
        size = max(1, BATCH_TOKENS // ids.shape[1])
    return [_arguments(model, ids[i : i + size]) for i in range(0, len(ids), size)]


def _read_examples(examples: Examples, tokenizer: Callable[[], Any]) -> list[torch.Tensor]:
    pieces = list(token_pieces(examples.pieces, tokenizer))
    if sum(map(len, pieces)) < 2:
        raise InvalidArgument(
            f"the calibration examples hold fewer than two tokens ({describe(examples.pieces)})"
        )
    return pieces


def _of_one_length(model: nn.Module, pieces: list[torch.Tensor]) -> list[torch.Tensor]:
    """Samples of one length together, at most `BATCH_TOKENS` tokens: there is no padding, which
    would be calibrated on like any other token."""
    for piece in pieces:
        _check_vocabulary(model, piece)
    # An encoder-decoder model halves each sample.
    least = 2 if _is_encoder_decoder(model) else 1
    limit = _longest(model, max(map(len, pieces)))
    by_length: dict[int, list[torch.Tensor]] = defaultdict(list)
    for piece in pieces:
        for part in piece.split(limit):
            if len(part) >= least:
                by_length[len(part)].append(part)
    return [
        ids
        for length, parts in by_length.items()
        for ids in torch.stack(parts).split(max(1, BATCH_TOKENS // length))
    ]


def check_counts(owner: str, options: Mapping[str, Any]) -> None:
    """Raise InvalidArgument, in the name of `owner`, for options that `calibration_batches` cannot
    use."""
    for name, value in options.items():
        if value is None and name == "batch_size":
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < int(name != "seed"):
            raise InvalidArgument(f"{owner}: {name} must be a count, got {value!r}")


def token_samples(
    dataset: Any, tokenizer: Callable[[], Any], nsamples: int, seqlen: int, seed: int
) -> torch.Tensor:
    """Token ids [at most nsamples, seqlen]; data that is shorter than `seqlen` is one sample.

    `dataset` and `tokenizer` are as in `token_pieces`.
    """
    pieces = read_tokens(dataset, tokenizer, nsamples, seqlen)
    count = sum(map(len, pieces))
    length = min(seqlen, count)
    rows = torch.cat(pieces)[: count // length * length].view(-1, length)
    if len(rows) < nsamples:
        logger.warning(
            "the calibration data has %d tokens: %d %s of %d instead of %d of %d",
            count,
            len(rows),
            "sample" if len(rows) == 1 else "samples",
            length,
            nsamples,
            seqlen,
        )
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return rows[order[:nsamples]]


def _longest(model: nn.Module, seqlen: int) -> int:
    """`seqlen`, at most what the model's positions allow."""
    limit = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if isinstance(limit, int) and 0 < limit < seqlen:
        logger.info("seqlen %d is cut to the model's %d positions", seqlen, limit)
        return limit
    return seqlen


def _check_vocabulary(model: nn.Module, ids: torch.Tensor) -> None:
    size = getattr(input_embedding(model), "num_embeddings", None)
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or (size is not None and high >= size):
        raise InvalidArgument(
            f"the calibration data has token ids from {low} to {high}, the model knows 0 to "
            f"{size - 1 if size is not None else '...'}: is it the right tokenizer?"
        )


def _is_encoder_decoder(model: nn.Module) -> bool:
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def _arguments(model: nn.Module, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    if not _is_encoder_decoder(model):
        return {"input_ids": ids}
    half = ids.shape[1] // 2
    decoder = ids[:, half:].clone()
    # Shifted right by one, as for training: the decoder starts with its start token.
    decoder[:, 1:] = ids[:, half:-1]
    decoder[:, 0] = _start_token(model)
    return {"input_ids": ids[:, :half], "decoder_input_ids": decoder}


def _start_token(model: nn.Module) -> int:
    config = getattr(model, "config", None)
    for name in ("decoder_start_token_id", "bos_token_id", "pad_token_id"):
        token = getattr(config, name, None)
        if isinstance(token, int):
            return token
    return 0


@torch.no_grad()
def sample_from_model(model: nn.Module, nsamples: int, seqlen: int, seed: int) -> torch.Tensor:
    """Token ids [nsamples, seqlen] that the model makes up, each sample from another first token
    (LLM-QAT, arXiv:2305.17888, section 3.1: the first tokens greedily, the rest at random).

    An encoder-decoder model is given one random token to read.
    """
    size = getattr(input_embedding(model), "num_embeddings", None)
    if not hasattr(model, "generate") or size is None:
        raise InvalidArgument(
            f"{type(model).__name__} cannot generate text to calibrate with: pass dataset="
        )
    logger.info("sampling %d x %d tokens from the model for calibration", nsamples, seqlen)
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(size, (nsamples, 1), generator=generator)
    state = torch.get_rng_state()
    samples = []
    try:
        torch.manual_seed(seed)
        for prompt in first.split(_GENERATED_TOGETHER):
            samples.append(_continue(model, prompt, seqlen))
    finally:
        torch.set_rng_state(state)
    return torch.cat(samples)


def _continue(model: Any, first: torch.Tensor, seqlen: int) -> torch.Tensor:
    """Samples [rows, seqlen] that start with the tokens `first` [rows, 1]."""
    common = {"num_beams": 1, "pad_token_id": 0, "use_cache": True}
    if _is_encoder_decoder(model):
        # What the decoder says of one token, without its start token.
        made = _generate(model, first, seqlen, do_sample=True, temperature=1.0, top_k=0, **common)
        return made[:, 1:]
    greedy = min(_GREEDY, seqlen - 1)
    ids = _generate(model, first, greedy, do_sample=False, **common)
    if ids.shape[1] == seqlen:
        return ids
    count = seqlen - ids.shape[1]
    return _generate(model, ids, count, do_sample=True, temperature=1.0, top_k=0, **common)


def _generate(model: Any, ids: torch.Tensor, count: int, **keywords: Any) -> torch.Tensor:
    made: torch.Tensor = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        min_new_tokens=count,
        **keywords,
    )
    return made
