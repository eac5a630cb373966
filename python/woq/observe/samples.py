# SPDX-License-Identifier: Apache-2.0
"""Calibration data: from whatever the user has to batches of token ids for a model's forward pass.

Everything becomes one stream of tokens, without special tokens, which is cut into samples of
`seqlen`; of these `nsamples` are drawn by `seed`.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.native import InvalidArgument, Unsupported

__all__ = ["calibration_batches", "check_counts", "sample_from_model", "token_samples"]

logger = logging.getLogger("woq")

# Tokens read from a long source, as a multiple of what is needed: enough to draw from.
_READ_FACTOR = 8
# Characters given to the tokenizer at a time.
_PIECE = 1 << 16
# Samples that are generated at a time, and tokens of each that are not left to chance.
_GENERATED_TOGETHER = 16
_GREEDY = 3
# Short names that other libraries know: arguments of datasets.load_dataset.
_KNOWN_SETS: dict[str, tuple[str, ...]] = {
    "wikitext2": ("Salesforce/wikitext", "wikitext-2-raw-v1"),
    "pile-10k": ("NeelNanda/pile-10k",),
}
# Tokens that go through a block at a time, unless a batch size is given: enough to fill the
# products; with four times as many, hidden layers leave the caches and a pass takes twice as long.
BATCH_TOKENS = 2048
_TEXT_COLUMNS = ("text", "content", "prompt", "instruction", "question")


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
        InvalidArgument: no tokens, too few for one sample, or tokens outside the vocabulary.
        Unsupported: the data set's library is not installed, or no tokenizer can be found.
    """
    nsamples, seqlen = int(options["nsamples"]), _longest(model, int(options["seqlen"]))
    seed = int(options["seed"])
    if dataset is None or (isinstance(dataset, str) and dataset == "self"):
        if dataset is None:
            logger.warning(
                "no calibration data was given: text sampled from the model itself is used "
                "(dataset='self'). Text like what the model will see gives better results."
            )
        ids = sample_from_model(model, nsamples, seqlen, seed)
    else:
        ids = token_samples(dataset, lambda: _tokenizer(model, tokenizer), nsamples, seqlen, seed)
    _check_vocabulary(model, ids)
    size = options["batch_size"]
    if size is None:
        size = max(1, BATCH_TOKENS // ids.shape[1])
    return [_arguments(model, ids[i : i + size]) for i in range(0, len(ids), size)]


def check_counts(owner: str, options: Mapping[str, Any]) -> None:
    """Raise InvalidArgument, in the name of `owner`, for options that `calibration_batches` cannot
    use."""
    for name, value in options.items():
        if value is None and name == "batch_size":
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < int(name != "seed"):
            raise InvalidArgument(f"{owner}: {name} must be a count, got {value!r}")


def token_samples(
    dataset: Any, tokenizer: Any, nsamples: int, seqlen: int, seed: int
) -> torch.Tensor:
    """Token ids [at most nsamples, seqlen].

    Args:
        dataset: strings, token tensors, dicts with "input_ids" or "text" (an iterable of them); a
            path of a text file; a `datasets` data set or the name of one.
        tokenizer: a function that gives the tokenizer; called only for strings.
    """
    needed = nsamples * seqlen
    stream: list[torch.Tensor] = []
    count = 0
    for piece in _tokens(dataset, tokenizer):
        stream.append(piece)
        count += len(piece)
        if count >= _READ_FACTOR * needed:
            break
    if count == 0:
        raise InvalidArgument(f"the calibration data is empty ({_describe(dataset)})")
    if count < seqlen:
        raise InvalidArgument(
            f"the calibration data has {count} tokens, fewer than one sample of seqlen={seqlen}: "
            "give more text or a smaller seqlen"
        )
    rows = torch.cat(stream)[: count // seqlen * seqlen].view(-1, seqlen)
    if len(rows) < nsamples:
        logger.warning(
            "the calibration data has %d tokens: %d samples of %d instead of %d",
            count,
            len(rows),
            seqlen,
            nsamples,
        )
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return rows[order[:nsamples]]


def _tokens(dataset: Any, tokenizer: Any) -> Iterator[torch.Tensor]:
    """The pieces of the data set as token ids [any length]."""
    if isinstance(dataset, (str, os.PathLike)):
        path = Path(dataset)
        if path.is_file():
            dataset = _file_pieces(path)
        elif isinstance(dataset, os.PathLike) or path.suffix == ".txt":
            raise InvalidArgument(f"calibration data: no file {path}")
        else:
            dataset = _load_dataset(dataset)
    elif isinstance(dataset, torch.Tensor):
        dataset = dataset.reshape(-1, dataset.shape[-1]) if dataset.dim() else [dataset]
    elif isinstance(dataset, Mapping) and not hasattr(dataset, "column_names"):
        dataset = [dataset]
    if not isinstance(dataset, Iterable):
        raise InvalidArgument(
            "dataset must be a list of strings or token tensors, a path, a data set, its name, or "
            f"'self', got {_describe(dataset)}"
        )
    make = None
    for number, item in enumerate(dataset):
        value = _content(item, number)
        if isinstance(value, str):
            make = make or tokenizer()
            ids = make(value, add_special_tokens=False, verbose=False)["input_ids"]
        else:
            ids = value
        tensor = torch.as_tensor(ids)
        if tensor.numel() == 0:
            continue
        if tensor.is_floating_point():
            nan = " with NaN" if bool(torch.isnan(tensor).any()) else ""
            raise InvalidArgument(
                f"calibration sample {number} holds real numbers{nan} ({tensor.dtype}), "
                "expected token ids"
            )
        yield tensor.reshape(-1).long()


def _content(item: Any, number: int) -> Any:
    """The text or the token ids of one item."""
    if isinstance(item, Mapping) or hasattr(item, "input_ids"):
        keys = item.keys() if hasattr(item, "keys") else ("input_ids",)
        name = next((key for key in ("input_ids", *_TEXT_COLUMNS) if key in keys), None)
        if name is None:
            name = next((key for key in keys if isinstance(item[key], str)), None)
        if name is None:
            raise InvalidArgument(
                f"calibration sample {number} has neither 'input_ids' nor text: {sorted(keys)}"
            )
        return item[name]
    # What a DataLoader over a TensorDataset gives: a list of tensors.
    if isinstance(item, (tuple, list)) and item and isinstance(item[0], torch.Tensor):
        return item[0]
    integers = isinstance(item, (tuple, list)) and all(isinstance(token, int) for token in item)
    if isinstance(item, (str, torch.Tensor)) or integers or hasattr(item, "__array__"):
        return item
    raise InvalidArgument(
        f"calibration sample {number} is {_describe(item)}, expected a string or token ids"
    )


def _file_pieces(path: Path) -> Iterator[str]:
    """The file's text in pieces of whole lines."""
    with open(path, encoding="utf-8") as file:
        try:
            while lines := file.readlines(_PIECE):
                yield "".join(lines)
        except UnicodeDecodeError as error:
            raise InvalidArgument(f"{path} is not a UTF-8 text file: {error}") from error


def _load_dataset(name: str) -> Any:
    if importlib.util.find_spec("datasets") is None:
        raise Unsupported(
            f"dataset {name!r} is no file, and loading a data set by name needs the package "
            "'datasets': install it, or give a path, a list of strings, or 'self'"
        )
    import datasets

    arguments = _KNOWN_SETS.get(name, (name,))
    return datasets.load_dataset(*arguments, split="train", streaming=True)


def _tokenizer(model: nn.Module, given: Any) -> Any:
    if given is not None and not isinstance(given, (str, os.PathLike)):
        return given
    from transformers import AutoTokenizer

    name = given or getattr(getattr(model, "config", None), "name_or_path", "")
    if not name:
        raise InvalidArgument("calibration text needs a tokenizer: pass tokenizer=")
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise InvalidArgument(
            f"calibration text needs a tokenizer, and none was found at {str(name)!r} ({error}): "
            "pass tokenizer="
        ) from error


def _longest(model: nn.Module, seqlen: int) -> int:
    """`seqlen`, at most what the model's positions allow."""
    limit = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if isinstance(limit, int) and 0 < limit < seqlen:
        logger.info("seqlen %d is cut to the model's %d positions", seqlen, limit)
        return limit
    return seqlen


def _check_vocabulary(model: nn.Module, ids: torch.Tensor) -> None:
    getter = getattr(model, "get_input_embeddings", None)
    embedding = getter() if callable(getter) else None
    size = getattr(embedding, "num_embeddings", None)
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
    if not hasattr(model, "generate"):
        raise InvalidArgument(
            f"{type(model).__name__} cannot generate text to calibrate with: pass dataset="
        )
    logger.info("sampling %d x %d tokens from the model for calibration", nsamples, seqlen)
    size = model.get_input_embeddings().num_embeddings
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


def _describe(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{type(value).__name__} {text[:50]}..."
