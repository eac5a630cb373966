# SPDX-License-Identifier: Apache-2.0
"""`tokenizer.ggml.*` of a GGUF file from a tokenizer of transformers, that is, tokenizer.json.

llama.cpp has two kinds of BPE that matter here. "gpt2" works on bytes, with merges, and splits
texts by a pattern that has a name. "llama" is SentencePiece's: pieces with scores, the best of
which is merged first, and bytes for what is no piece. What they would do otherwise than the
tokenizer is refused: the text would become other tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ...core.native import Unsupported
from ..gguf_tokenizers import GPT2, SPLITS

__all__ = ["tokenizer_metadata"]

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6

_SPACE = "\u2581"  # SentencePiece's

_MEND = "write it with a GGUF file of the same model as the template (template, --template)"


def tokenizer_metadata(tokenizer: Any, rows: int) -> dict[str, Any]:
    """The keys for a model whose embedding has `rows` rows.

    Raises:
        Unsupported: llama.cpp has no such tokenizer, or it has more tokens than there are rows.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise Unsupported(f"{type(tokenizer).__name__} has no tokenizer.json: {_MEND}")
    described = json.loads(backend.to_str())
    model = described["model"]
    if model.get("type") != "BPE":
        raise Unsupported(f"its tokenizer is of the kind {model.get('type')!r}, not BPE: {_MEND}")
    for setting in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(setting):
            raise Unsupported(f"its tokenizer has a {setting}, which llama.cpp's has not: {_MEND}")
    by_bytes = any(step["type"] == "ByteLevel" for step in _steps(described["pre_tokenizer"]))
    values = _byte_bpe(described) if by_bytes else _sentence_pieces(described)
    tokens, kinds = _tokens(described, rows, None if by_bytes else model.get("unk_token"))
    values |= {"tokens": tokens, "token_type": kinds}
    if not by_bytes:
        values["scores"] = [values["scores"].get(token, 0.0) for token in tokens]
    values |= _special(tokenizer)
    found = {f"tokenizer.ggml.{key}": value for key, value in values.items()}
    return found | _chat_templates(tokenizer)


def _tokens(
    described: Mapping[str, Any], rows: int, unknown: str | None
) -> tuple[list[str], list[int]]:
    """Each row's text and kind. An embedding may have more rows than there are tokens."""
    tokens = [f"[PAD{row}]" for row in range(rows)]
    kinds = [_UNUSED] * rows
    added = described["added_tokens"]
    largest = max([*described["model"]["vocab"].values(), *(token["id"] for token in added)])
    if largest >= rows:
        raise Unsupported(
            f"its tokenizer has a token {largest}, and the embedding {rows} rows: it is not the "
            "model's"
        )
    for token, row in described["model"]["vocab"].items():
        is_byte = unknown is not None and re.fullmatch("<0x[0-9A-F]{2}>", token)
        tokens[row], kinds[row] = token, _BYTE if is_byte else _NORMAL
    for token in added:
        row, text = token["id"], token["content"]
        if text == unknown:
            kinds[row] = _UNKNOWN
        else:
            kinds[row] = _CONTROL if token["special"] else _USER_DEFINED
        # They are looked for in the text as it is, before spaces become pieces.
        tokens[row] = text if token["special"] else text.replace(_SPACE, " ")
    return tokens, kinds


def _byte_bpe(described: Mapping[str, Any]) -> dict[str, Any]:
    model = described["model"]
    patterns = tuple(filter(None, map(_pattern, _steps(described["pre_tokenizer"]))))
    name = next((name for name, split in SPLITS.items() if split.patterns == patterns), None)
    if name is None:
        raise Unsupported(
            f"its tokenizer splits texts by {list(patterns)}, for which llama.cpp's name is not "
            f"known here; known are {', '.join(SPLITS)}: {_MEND}"
        )
    if bool(model.get("ignore_merges")) != SPLITS[name].whole_first:
        raise Unsupported(f"its tokenizer is like {name}, but for ignore_merges: {_MEND}")
    # llama.cpp leaves out that Qwen composes characters (NFC): decomposed text differs there.
    normalizers = [step["type"] for step in _steps(described["normalizer"])]
    if normalizers and not (SPLITS[name].nfc and normalizers == ["NFC"]):
        raise Unsupported(f"its tokenizer normalizes texts ({', '.join(normalizers)}): {_MEND}")
    merges = [" ".join(_pair(merge)) for merge in model["merges"]]
    return {"model": "gpt2", "pre": name, "merges": merges}


def _sentence_pieces(described: Mapping[str, Any]) -> dict[str, Any]:
    model = described["model"]
    if not model.get("byte_fallback"):
        raise Unsupported(f"its tokenizer has no bytes for unknown characters: {_MEND}")
    return {
        "model": "llama",
        "pre": "default",
        "scores": _scores(model),
        "add_space_prefix": _adds_space(described),
    }


def _scores(model: Mapping[str, Any]) -> dict[str, float]:
    """Scores that have llama.cpp merge in the order of the merges: it merges any two neighbours
    that make a piece, the best first, whichever way the piece is made."""
    vocab: Mapping[str, int] = model["vocab"]
    pairs: set[tuple[str, str]] = set()
    order: dict[str, float] = {}
    last = None
    for left, right in map(_pair, model["merges"]):
        pairs.add((left, right))
        if left + right != last:
            last = left + right
            if last in order:
                raise Unsupported(f"its tokenizer's merges to {last!r} are not together: {_MEND}")
            order[last] = -float(len(order))
    for piece in vocab:
        for end in range(1, len(piece)):
            left, right = piece[:end], piece[end:]
            if left in vocab and right in vocab and (left, right) not in pairs and piece in order:
                raise Unsupported(
                    f"its tokenizer does not merge {left!r} and {right!r}, which llama.cpp's "
                    f"does: {_MEND}"
                )
    # Below all pieces that are made.
    return order | {piece: -float(len(order)) for piece in vocab if piece not in order}


def _adds_space(described: Mapping[str, Any]) -> bool:
    """Whether a text begins with a space. Raises Unsupported for another treatment of texts."""
    prefix = False
    replaced = False
    for step in _steps(described["normalizer"]):
        if step["type"] == "Prepend" and step["prepend"] == _SPACE:
            prefix = True
        elif step["type"] == "Replace" and step["pattern"] == {"String": " "}:
            replaced = step["content"] == _SPACE
        else:
            raise Unsupported(f"its tokenizer normalizes texts by {step['type']}: {_MEND}")
    for step in _steps(described["pre_tokenizer"]):
        if step["type"] == "Metaspace" and step["replacement"] == _SPACE and not step.get("split"):
            replaced, prefix = True, prefix or step["prepend_scheme"] != "never"
        elif step["type"] != "Split" or step["pattern"] != {"String": " "} or not replaced:
            # Gemma's splits at spaces, of which none are left.
            raise Unsupported(f"its tokenizer splits texts by {step['type']}: {_MEND}")
    if not replaced:
        raise Unsupported(f"its tokenizer leaves spaces as they are: {_MEND}")
    return prefix


def _special(tokenizer: Any) -> dict[str, Any]:
    """The tokens with a meaning, and which of them a text gets."""
    values: dict[str, Any] = {}
    for key, name in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")):
        number = getattr(tokenizer, f"{name}_token_id", None)
        if number is not None:
            values[f"{key}_token_id"] = int(number)
    ids = tokenizer("a")["input_ids"]
    values["add_bos_token"] = "bos_token_id" in values and ids[0] == values["bos_token_id"]
    values["add_eos_token"] = "eos_token_id" in values and ids[-1] == values["eos_token_id"]
    return values


def _chat_templates(tokenizer: Any) -> dict[str, Any]:
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        return {}
    if isinstance(template, str):
        return {"tokenizer.chat_template": template}
    values = {f"tokenizer.chat_template.{name}": text for name, text in template.items()}
    if "default" in template:
        values["tokenizer.chat_template"] = values.pop("tokenizer.chat_template.default")
    return values | {"tokenizer.chat_templates": list(template)}


def _steps(described: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The steps of a normalizer or a pre-tokenizer."""
    if described is None:
        return []
    if described["type"] != "Sequence":
        return [described]
    inner = described.get("pretokenizers", described.get("normalizers", []))
    return [step for each in inner for step in _steps(each)]


def _pattern(step: Mapping[str, Any]) -> str:
    """What a step splits texts by; "": it does not. Names its kind where it is no pattern."""
    kind: str = step["type"]
    if kind == "ByteLevel" and not step["add_prefix_space"]:
        return GPT2 if step["use_regex"] else ""
    if kind == "Digits" and step["individual_digits"]:
        return r"\p{N}"
    # What a pattern finds becomes a word, or what lies between is removed, which is nothing.
    if kind == "Split" and (step["behavior"], step["invert"]) in _WAYS:
        return str(step["pattern"].get("Regex", ""))
    return kind


_WAYS = {("Isolated", False), ("Removed", True)}


def _pair(merge: Any) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right
