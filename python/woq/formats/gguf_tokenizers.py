# SPDX-License-Identifier: Apache-2.0
"""The tokenizer that a GGUF file describes, built from its metadata.

A file has the vocabulary and says what kind it is of; what belongs to the kind (how text is cut
into pieces, what becomes of blanks) is in the tables here. A kind that they do not know is
`Unsupported`: a guess would give other tokens than those that the model was trained on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from ..core.native import InvalidArgument, Unsupported

__all__ = ["GPT2", "SPLITS", "GgufTokenizer", "Split", "tokenizer_of"]

# tokenizer.ggml.token_type; the others are normal (1), unused (5), and a byte (6).
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
_NORMAL = 1

_BLANK = "\u2581"  # SentencePiece's


@dataclasses.dataclass(frozen=True)
class GgufTokenizer:
    """A tokenizer, and what programs have to know of it."""

    tokenizer: Tokenizer
    special: dict[str, str]  # bos_token, eos_token, ...
    adds: dict[str, bool]  # add_bos_token, add_eos_token
    chat_template: str | None


@dataclasses.dataclass(frozen=True)
class Split:
    """How a byte-level vocabulary cuts text before it merges."""

    patterns: tuple[str, ...]  # one after the other
    nfc: bool = False
    whole_first: bool = False  # a piece that is a token is not put together by merges
    adds_bos: bool = False  # where the file does not say


_CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
GPT2 = rf"{_CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"
# Llama 3 has up to three digits in a piece, Qwen one.
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = rf"(?i:{_CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+"
_LLAMA3 = Split((rf"{_WORDS}|\p{{N}}{{1,3}}{_REST}",), whole_first=True, adds_bos=True)
_QWEN2 = Split((rf"{_WORDS}|\p{{N}}{_REST}",), nfc=True)
# By the case of letters: at most one change to small ones, in a word.
_TEKKEN = Split(
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    whole_first=True,
)
# By tokenizer.ggml.pre.
SPLITS = {
    "gpt-2": Split((GPT2,)),
    "smollm": Split((r"\p{N}", GPT2)),
    "llama-bpe": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "tekken": _TEKKEN,
}


def tokenizer_of(metadata: Mapping[str, Any]) -> GgufTokenizer:
    """The tokenizer that the metadata of a GGUF file describe.

    Raises:
        Unsupported: it is of a kind that the tables do not know.
        InvalidArgument: what the file says of it contradicts itself.
    """
    vocabulary = _Vocabulary(metadata)
    kind = vocabulary.get("model")
    if kind == "gpt2":
        tokenizer, adds_bos = _byte_level(vocabulary)
    elif kind == "llama":
        tokenizer, adds_bos = _sentencepiece(vocabulary), True
    else:
        raise Unsupported(f"its tokenizer is of the kind {kind!r}; woq knows 'gpt2' and 'llama'")
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in vocabulary.of_type(_CONTROL)]
    )
    tokenizer.add_tokens(
        [AddedToken(t, special=False, normalized=False) for t in vocabulary.of_type(_USER_DEFINED)]
    )
    if tokenizer.get_vocab_size() != len(vocabulary.tokens):
        raise InvalidArgument(f"some of its {len(vocabulary.tokens)} tokens occur twice")
    # llama.cpp spells "seperator" so.
    ids = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator"}
    special = {f"{name}_token": vocabulary.token(key) for name, key in ids.items()}
    adds = {
        "add_bos_token": bool(vocabulary.get("add_bos_token", adds_bos)),
        "add_eos_token": bool(vocabulary.get("add_eos_token", False)),
    }
    for name, adds_it in adds.items():
        if adds_it and special[name.removeprefix("add_")] is None:
            raise InvalidArgument(f"it says {name}, and not which token that is")
    tokenizer.post_processor = _template(tokenizer, special, adds)
    return GgufTokenizer(
        tokenizer,
        {name: token for name, token in special.items() if token is not None},
        adds,
        metadata.get("tokenizer.chat_template"),
    )


def _template(
    tokenizer: Tokenizer, special: Mapping[str, str | None], adds: Mapping[str, bool]
) -> processors.PostProcessor:
    """Puts the tokens around a text that the file says."""
    first, last = (
        [token] if token is not None and adds[f"add_{name}"] else []
        for name, token in ((n, special[n]) for n in ("bos_token", "eos_token"))
    )
    return processors.TemplateProcessing(
        single=[*first, "$A", *last],
        pair=[*first, "$A", *last, *(f"{t}:1" for t in first), "$B:1", *(f"{t}:1" for t in last)],
        special_tokens=[(t, tokenizer.token_to_id(t)) for t in {*first, *last}],
    )


class _Vocabulary:
    """tokenizer.ggml.*, its lists compared with each other."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        tokens = self.get("tokens")
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise InvalidArgument("it has no list of tokens, tokenizer.ggml.tokens")
        if self.get("model") == "llama":
            # Gemma's files have runs of blanks as such, and its merges SentencePiece's character.
            tokens = [_BLANK * len(t) if not t.strip(" ") else t for t in tokens]
        self.tokens: list[str] = tokens
        self.types = self._numbers("token_type", _NORMAL)
        self.scores = self._numbers("scores", 0)

    def get(self, key: str, default: Any = None) -> Any:
        return self._metadata.get(f"tokenizer.ggml.{key}", default)

    def _numbers(self, key: str, default: int) -> list[Any]:
        """A number for each token."""
        values = self.get(key)
        if values is None:
            return [default] * len(self.tokens)
        values = list(values.tolist() if hasattr(values, "tolist") else values)
        if len(values) != len(self.tokens):
            raise InvalidArgument(
                f"tokenizer.ggml.{key} has {len(values)} values for {len(self.tokens)} tokens"
            )
        return values

    def of_type(self, kind: int) -> list[str]:
        return [token for token, each in zip(self.tokens, self.types, strict=True) if each == kind]

    def token(self, name: str) -> str | None:
        number = self.get(f"{name}_token_id")
        if number is None:
            return None
        if not isinstance(number, int) or not 0 <= number < len(self.tokens):
            raise InvalidArgument(
                f"tokenizer.ggml.{name}_token_id is {number!r}, of {len(self.tokens)} tokens"
            )
        return self.tokens[number]

    def numbers(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self.tokens)}


def _byte_level(vocabulary: _Vocabulary) -> tuple[Tokenizer, bool]:
    """A byte-level BPE, and whether it begins a text with a token of its own."""
    name = vocabulary.get("pre")
    split = SPLITS.get(name)
    if split is None:
        raise Unsupported(
            f"its tokenizer cuts text by the rules {name!r}; woq knows {', '.join(SPLITS)}"
        )
    numbers = vocabulary.numbers()
    pairs = _pairs(vocabulary.get("merges"), numbers)
    tokenizer = Tokenizer(models.BPE(numbers, pairs, ignore_merges=split.whole_first))
    if split.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(each), "isolated") for each in split.patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, split.adds_bos


def _sentencepiece(vocabulary: _Vocabulary) -> Tokenizer:
    """SentencePiece's BPE, as Llama 2, Mistral and Gemma have it."""
    numbers = vocabulary.numbers()
    merges = vocabulary.get("merges")
    pairs = list(_merges_of(vocabulary, numbers)) if merges is None else _pairs(merges, numbers)
    unknown = vocabulary.token("unknown") or next(iter(vocabulary.of_type(_UNKNOWN)), None)
    tokenizer = Tokenizer(
        models.BPE(numbers, pairs, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    blanks = normalizers.Replace(" ", _BLANK)
    prefixed = bool(vocabulary.get("add_space_prefix", True))
    tokenizer.normalizer = (
        normalizers.Sequence([normalizers.Prepend(_BLANK), blanks]) if prefixed else blanks
    )
    steps = [decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] * prefixed)])
    return tokenizer


def _pairs(merges: Any, numbers: Mapping[str, int]) -> list[tuple[str, str]]:
    """The merges of a file, each of which makes one token of two."""
    if not isinstance(merges, list):
        raise InvalidArgument("it has no list of merges, tokenizer.ggml.merges")
    pairs = []
    for merge in merges:
        first, _, second = str(merge).partition(" ")
        if not {first, second, first + second} <= numbers.keys():
            raise InvalidArgument(f"its merge {merge!r} does not make one token of two")
        pairs.append((first, second))
    return pairs


def _merges_of(vocabulary: _Vocabulary, numbers: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """The pairs of tokens that make a token, the best first. SentencePiece has no list of them: it
    joins the two neighbours whose union has the highest score."""
    tokens = vocabulary.tokens
    # Those of the user's are found in the text before anything is joined.
    mergeable = [
        number
        for kind in (_USER_DEFINED, _NORMAL)
        for number in sorted(
            (n for n, each in enumerate(vocabulary.types) if each == kind and len(tokens[n]) > 1),
            key=lambda n: -vocabulary.scores[n],
        )
    ]
    for number in mergeable:
        token = tokens[number]
        pairs = ((token[:i], token[i:]) for i in range(1, len(token)))
        known = [pair for pair in pairs if pair[0] in numbers and pair[1] in numbers]
        yield from sorted(known, key=lambda pair: (numbers[pair[0]], numbers[pair[1]]))
