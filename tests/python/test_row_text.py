# SPDX-License-Identifier: Apache-2.0
"""RowText: pieces join to the decoded text, and stop texts cut it, whatever the token borders."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tiny_models import CORPUS, build_metaspace_tokenizer
from transformers import PreTrainedTokenizerFast

from woq.generation import RowText, normalize_stops

pytest_plugins = ["tiny_models"]


class Letters:
    """A tokenizer whose tokens are given strings: the borders are where a test puts them."""

    def __init__(self, *tokens: str) -> None:
        self.tokens = tokens

    def decode(self, token_ids: Any, /, **kwargs: Any) -> str:
        return "".join(self.tokens[i] for i in token_ids)


def pieces_of(tokens: list[str], stops: list[str]) -> tuple[list[str], RowText]:
    row = RowText(Letters(*tokens), stops, frozenset())
    pieces = [row.push(i) for i in range(len(tokens))]
    return [*pieces, row.flush()], row


@pytest.mark.parametrize(
    ("tokens", "stops", "expected"),
    [
        (["a", "b", "c"], [], "abc"),
        (["st", "op", "x"], ["stop"], ""),
        (["a st", "opera", "x"], ["stop"], "a "),
        (["s", "to", "p", "ped"], ["stop"], ""),
        (["a", "ab", "c"], ["aab"], ""),
        (["xaa", "ab"], ["aab"], "xa"),  # a false start that overlaps the true one
        (["f([", "x"], ["(["], "f"),  # literal: "([" is no regular expression
        (["a.b", "abb"], ["a.b"], ""),
        (["acb", "!"], ["a.b"], "acb!"),
        (["one\n", "\ntwo"], ["\n\n"], "one"),
        (["one\n", "two"], ["\n\n"], "one\ntwo"),
        (["ends in st"], ["stop"], "ends in st"),
        (["xbcd", "e"], ["abcd", "bcd"], "x"),
        (["ab", "cd"], ["cd", "bc"], "a"),  # both complete in one token: the leftmost
    ],
)
def test_stop_texts_cut_across_token_borders(
    tokens: list[str], stops: list[str], expected: str
) -> None:
    pieces, row = pieces_of(tokens, stops)
    assert "".join(pieces) == expected
    assert row.text == expected
    assert row.finished == any(stop in "".join(tokens) for stop in stops)


def test_only_a_possible_stop_is_held_back() -> None:
    pieces, _ = pieces_of(["Hello", " wor", "ld s", "to", "ne"], ["stop"])
    assert pieces == ["Hello", " wor", "ld ", "", "stone", ""]


def test_nothing_comes_after_the_stop() -> None:
    row = RowText(Letters("a", "STOP", "b"), ["STOP"], frozenset())
    assert [row.push(i) for i in (0, 1, 2)] == ["a", "", ""]
    assert row.ids == [0, 1]
    assert row.flush() == ""


def test_an_end_token_releases_what_was_held_and_has_no_text() -> None:
    row = RowText(Letters("a s", "END"), ["stop"], frozenset({1}))
    assert [row.push(0), row.push(1)] == ["a ", "s"]
    assert (row.text, row.finished, row.ids) == ("a s", True, [0, 1])


def test_swapped_history_starts_anew() -> None:
    row = RowText(Letters("a", "b", "stop"), ["stop"], frozenset())
    row.advance([0, 2])
    assert row.finished
    row.advance([1, 0, 1])  # another beam took the slot
    assert (row.text, row.finished) == ("bab", False)


@pytest.mark.parametrize(
    "text", [*CORPUS, "\u3042\u3042 \U0001f600\U0001f600 \u00e9", " leading and trailing "]
)
def test_pieces_join_to_the_text(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    for each in (tokenizer, build_metaspace_tokenizer()):
        ids = each(text, add_special_tokens=False)["input_ids"]
        row = RowText(each, [], frozenset())
        pieces = [row.push(i) for i in ids] + [row.flush()]
        assert "".join(pieces) == text.removeprefix(" " if each is not tokenizer else "")
        # No piece before the last may end within a character.
        assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("cut", [1, 2, 3, 5])
def test_a_text_goes_on_behind_its_prompt(cut: int) -> None:
    """Decoded alone, the answer would lose the blank before its first word."""
    tokenizer = build_metaspace_tokenizer()
    ids = tokenizer("the ox a the", add_special_tokens=False)["input_ids"]
    prompt, answer = ids[:cut], ids[cut:]
    row = RowText(tokenizer, [], frozenset(), prompt)
    row.advance(answer)
    row.flush()
    assert tokenizer.decode(prompt) + row.text == "the ox a the"
    assert row.ids == answer


def test_a_prompt_within_a_character_or_of_special_tokens_alone() -> None:
    tokenizer = build_metaspace_tokenizer()
    ids = tokenizer("\u3042 the", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids[1:4]) == "\u3042"  # three bytes
    half = RowText(tokenizer, [], frozenset(), ids[:3])
    half.advance(ids[3:])
    assert half.text == "\ufffd the"
    assert tokenizer.eos_token_id is not None
    first = RowText(tokenizer, [], frozenset(), [tokenizer.eos_token_id])
    first.advance(ids)
    assert first.text == "\u3042 the"


def test_pieces_of_random_tokens_join_to_the_text(tokenizer: PreTrainedTokenizerFast) -> None:
    """Random tokens are full of broken characters and special tokens."""
    rng = random.Random("test_pieces_of_random_tokens_join_to_the_text")
    for trial in range(200):
        ids = [rng.randrange(len(tokenizer)) for _ in range(rng.randrange(1, 30))]
        row = RowText(tokenizer, [], frozenset())
        joined = "".join([row.push(i) for i in ids]) + row.flush()
        expected = tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert joined == expected, f"trial {trial}, ids {ids}"


def test_stops_are_normalized() -> None:
    assert normalize_stops(None) == ()
    assert normalize_stops("ab") == ("ab",)
    assert normalize_stops(["a", "b", "a"]) == ("a", "b")
    for bad in ("", [""], ["a", 3]):
        with pytest.raises(ValueError, match="non-empty strings"):
            normalize_stops(bad)
