# SPDX-License-Identifier: Apache-2.0
"""Calibration data as token ids, from whatever the user has: texts, chats, tokens with or without
padding, files, data sets and the names of them."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ..core.native import InvalidArgument, Unsupported

__all__ = ["describe", "load_tokenizer", "read_tokens", "rows_of", "token_pieces"]

# Tokens read from a long source, as a multiple of what is needed: enough to draw from.
_READ_FACTOR = 8
# Characters given to the tokenizer at a time.
_PIECE = 1 << 16
# Short names that other libraries know: arguments of datasets.load_dataset. "pileval" is AutoAWQ's.
# Of C4 one file of 1,024
# is read, as AutoGPTQ and transformers do, which have two names for it. PTB's own loader is a
# script, which data sets may not have any more: the hub keeps what it gave on another branch.
_C4 = {"path": "allenai/c4", "data_files": {"train": "en/c4-train.00000-of-01024.json.gz"}}
_KNOWN_SETS: dict[str, dict[str, Any]] = {
    "wikitext2": {"path": "Salesforce/wikitext", "name": "wikitext-2-raw-v1"},
    "pile-10k": {"path": "NeelNanda/pile-10k"},
    "pileval": {"path": "mit-han-lab/pile-val-backup", "split": "validation"},
    "c4": _C4,
    "c4-new": _C4,
    "ptb": {
        "path": "ptb-text-only/ptb_text_only",
        "revision": "refs/convert/parquet",
        "data_files": {"train": "penn_treebank/train/*.parquet"},
    },
}
_CHAT_COLUMNS = ("messages", "conversations", "conversation", "chat")
_TEXT_COLUMNS = ("text", "content", "prompt", "instruction", "question")
# Roles as ShareGPT calls them.
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bard": "assistant"}


def read_tokens(
    dataset: Any, tokenizer: Callable[[], Any], nsamples: int, seqlen: int
) -> list[torch.Tensor]:
    """The pieces of `dataset` as token ids [any length], as far as samples are drawn from them.

    Raises:
        InvalidArgument: it is none of what `token_pieces` takes, or empty.
    """
    pieces: list[torch.Tensor] = []
    count = 0
    for piece in token_pieces(dataset, tokenizer):
        pieces.append(piece)
        count += len(piece)
        if count >= _READ_FACTOR * nsamples * seqlen:
            break
    if count < 2:
        what = "is empty" if count == 0 else "has one token"
        raise InvalidArgument(f"the calibration data {what} ({describe(dataset)})")
    return pieces


def token_pieces(dataset: Any, tokenizer: Callable[[], Any]) -> Iterator[torch.Tensor]:
    """`dataset` as token ids, a tensor [any length] for each piece of it, without padding.

    Args:
        dataset: an iterable of strings, tokens, chats, or dicts that have one of them; a path of a
            text file; a `datasets` data set or the name of one.
        tokenizer: a function that gives the tokenizer; called only for text.
    """
    if isinstance(dataset, (str, os.PathLike)):
        path = Path(dataset)
        if path.is_file():
            dataset = _file_pieces(path)
        elif isinstance(dataset, os.PathLike) or path.suffix == ".txt":
            raise InvalidArgument(f"calibration data: no file {path}")
        else:
            dataset = rows_of(dataset)
    elif isinstance(dataset, torch.Tensor):
        dataset = dataset.reshape(-1, dataset.shape[-1]) if dataset.dim() else [dataset]
    elif _is_chat(dataset) or (isinstance(dataset, Mapping) and not _has_rows(dataset)):
        dataset = [dataset]
    if not isinstance(dataset, Iterable):
        raise InvalidArgument(
            "dataset must be a list of strings or token tensors, a path, a data set, its name, or "
            f"'self', got {describe(dataset)}"
        )
    made = None
    for number, item in enumerate(dataset):
        value, mask = _content(item, number)
        if isinstance(value, str) or _is_chat(value):
            made = made or tokenizer()
            text = value if isinstance(value, str) else _chat_text(value, made, number)
            value = made(text, add_special_tokens=False, verbose=False)["input_ids"]
        tokens = _tokens(value, mask, number)
        if tokens.numel():
            yield tokens


def _has_rows(dataset: Any) -> bool:
    """Whether it is a `datasets` data set, not one row."""
    return hasattr(dataset, "column_names")


def _content(item: Any, number: int) -> tuple[Any, Any]:
    """The text, chat or token ids of one item; and the mask of the ids, None for none."""
    if _is_message(item):
        return [item], None
    if isinstance(item, Mapping) or hasattr(item, "input_ids"):
        keys = item.keys() if hasattr(item, "keys") else ("input_ids",)
        name = next((key for key in ("input_ids", *_TEXT_COLUMNS) if key in keys), None)
        if name != "input_ids":
            chat = next((key for key in _CHAT_COLUMNS if key in keys and _is_chat(item[key])), None)
            name = chat or name
        if name is None:
            name = next((key for key in keys if isinstance(item[key], str)), None)
        if name is None:
            raise InvalidArgument(
                f"calibration sample {number} has neither 'input_ids' nor text: {sorted(keys)}"
            )
        masked = name == "input_ids" and "attention_mask" in keys
        return item[name], item["attention_mask"] if masked else None
    # What a DataLoader over a TensorDataset gives: a list of tensors.
    if isinstance(item, (tuple, list)) and item and isinstance(item[0], torch.Tensor):
        masked = len(item) > 1 and _is_mask(item[1], item[0])
        return item[0], item[1] if masked else None
    if isinstance(item, (str, torch.Tensor)) or hasattr(item, "__array__") or _is_chat(item):
        return item, None
    if isinstance(item, (tuple, list)) and all(isinstance(token, int) for token in item):
        return item, None
    raise InvalidArgument(
        f"calibration sample {number} is {describe(item)}, expected a string, a chat or token ids"
    )


def _is_mask(tensor: Any, ids: torch.Tensor) -> bool:
    """Whether a tensor beside `ids`, without a name, is their attention mask: ones and zeros, which
    ids and labels of a language model are not."""
    return (
        isinstance(tensor, torch.Tensor)
        and tensor.shape == ids.shape
        and bool(((tensor == 0) | (tensor == 1)).all())
    )


def _tokens(ids: Any, mask: Any, number: int) -> torch.Tensor:
    """The ids that `mask` keeps, those of several rows one after the other: int64 [tokens]."""
    if isinstance(ids, (tuple, list)) and any(not isinstance(token, int) for token in ids):
        masks = [None] * len(ids) if mask is None else mask
        if len(masks) == len(ids):  # rows may have different lengths
            rows = [_tokens(*row, number) for row in zip(ids, masks, strict=True)]
            return torch.cat(rows)
    try:
        tensor = torch.as_tensor(ids)
        kept = None if mask is None else torch.as_tensor(mask)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidArgument(
            f"calibration sample {number} holds {describe(ids)}, expected token ids: {error}"
        ) from error
    if tensor.is_floating_point() and tensor.numel():
        nan = " with NaN" if bool(torch.isnan(tensor).any()) else ""
        raise InvalidArgument(
            f"calibration sample {number} holds real numbers{nan} ({tensor.dtype}), "
            "expected token ids"
        )
    if kept is not None:
        if kept.shape != tensor.shape:
            raise InvalidArgument(
                f"calibration sample {number} has an attention_mask of shape {list(kept.shape)} "
                f"and input_ids of shape {list(tensor.shape)}; they must be the same"
            )
        tensor = tensor[kept != 0]
    return tensor.reshape(-1).long()


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and (
        ("role" in value and ("content" in value or "tool_calls" in value))
        or ("from" in value and "value" in value)
    )


def _is_chat(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and bool(value) and all(map(_is_message, value))


def _chat_text(messages: Iterable[Mapping[str, Any]], tokenizer: Any, number: int) -> str:
    """The messages as the model is shown them: by the tokenizer's chat template."""
    if not getattr(tokenizer, "chat_template", None):
        raise InvalidArgument(
            f"calibration sample {number} is a chat, and the tokenizer has no chat template: give "
            "the texts that the model is to see, or set tokenizer.chat_template"
        )
    from jinja2 import TemplateError

    plain = [_plain_message(message, number) for message in messages]
    try:
        return str(tokenizer.apply_chat_template(plain, tokenize=False))
    except TemplateError as error:
        raise InvalidArgument(
            f"calibration sample {number}: the chat template refuses messages of the roles "
            f"{', '.join(str(message['role']) for message in plain)}: {error}"
        ) from error


def _plain_message(message: Mapping[str, Any], number: int) -> dict[str, Any]:
    """With the keys that templates know, and the content as one text."""
    if "role" not in message:
        role = str(message["from"])
        return {"role": _ROLES.get(role, role), "content": str(message["value"])}
    content = message.get("content")
    if isinstance(content, (tuple, list)):
        other = [
            part
            for part in content
            if not isinstance(part, Mapping) or not isinstance(part.get("text"), str)
        ]
        if other:
            raise InvalidArgument(
                f"calibration sample {number} has a part of a message that is no text: "
                f"{describe(other[0])}; calibration data is text only"
            )
        content = "".join(part["text"] for part in content)
    return {**message, "content": "" if content is None else content}


def _file_pieces(path: Path) -> Iterator[str]:
    """The file's text in pieces of whole lines."""
    with open(path, encoding="utf-8") as file:
        try:
            while lines := file.readlines(_PIECE):
                yield "".join(lines)
        except UnicodeDecodeError as error:
            raise InvalidArgument(f"{path} is not a UTF-8 text file: {error}") from error


def rows_of(name: str, split: str = "train") -> Iterator[Any]:
    """The rows of the data set that `name` means to the package datasets."""
    other = "give the path of a text file, a list of strings, or 'self'"
    if importlib.util.find_spec("datasets") is None:
        raise Unsupported(
            f"dataset {name!r} is no file, and loading a data set by name needs the package "
            f"'datasets': install it, or {other}"
        )
    import datasets

    arguments = {"split": split, **_KNOWN_SETS.get(name, {"path": name})}
    try:
        yield from datasets.load_dataset(**arguments, streaming=True)
    except Exception as error:  # the package, the hub or the network
        first = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise InvalidArgument(
            f"dataset {name!r} is no file, and as a data set of the hub ({arguments['path']}) it "
            f"cannot be read: {first}; {other}"
        ) from error


def load_tokenizer(given: Any, beside: str) -> Any:
    """`given`, or what it is the name of, or the tokenizer that is saved in `beside`.

    Raises:
        InvalidArgument: there is none.
    """
    if given is not None and not isinstance(given, (str, os.PathLike)):
        return given
    from transformers import AutoTokenizer

    name = given or beside
    if not name:
        raise InvalidArgument("calibration text needs a tokenizer: pass tokenizer=")
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise InvalidArgument(
            f"calibration text needs a tokenizer, and none was found at {str(name)!r} ({error}): "
            "pass tokenizer="
        ) from error


def describe(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{type(value).__name__} {text[:50]}..."
