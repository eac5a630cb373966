# SPDX-License-Identifier: Apache-2.0
"""Regular expressions that mean modules of a model.

They come from strangers, too: a checkpoint's config.json has the ones that it was quantized with.
Python tries the ways in which an expression can match one after the other, and `(\\w+\\.?)+!` has
2^n of them in a name of n characters. So the ways are counted beforehand, and an expression that
has too many is refused, whoever gives it: one that can be used can be saved and read back.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterable
from typing import Any

from ..core import native

if sys.version_info >= (3, 11):
    from re import _parser  # type: ignore[attr-defined]
else:  # the same module under its old name
    import sre_parse as _parser

__all__ = ["check_patterns", "pattern_of_names"]

# Names of modules have about 64 characters, numbers in them 4 digits: how far a repetition can go.
_NAME = 64
_NUMBER = 4

# Ways of all expressions of a config together. A way costs about 10 ns, and as most of them are
# longer than a name a twentieth is tried: 5 ms for each module.
_MOST_WAYS = 10_000_000
_MOST_CHARACTERS = 10_000
_MOST_REPETITIONS = 1_000

_DIGITS = ("[(CATEGORY, CATEGORY_DIGIT)]", "[(RANGE, (48, 57))]")


class _Refused(Exception):
    """Says what is wrong with a pattern."""


@functools.lru_cache(maxsize=1 << 15)
def pattern_of_names(pattern: str) -> re.Pattern[str]:
    """The pattern as it is matched to a module's name from its start: up to the end of a component
    of the path, as transformers matches `modules_to_not_convert`. Raises re.error."""
    return re.compile(rf"(?:{pattern})(?:(?<=\.)|(?=\.|$))")


def check_patterns(owner: str, patterns: Iterable[tuple[str, str]]) -> None:
    """Raise InvalidArgument for a pattern that is no regular expression, or could take for ever.
    `patterns` are pairs: where it stands, and the pattern."""
    total = 0
    for where, pattern in patterns:
        try:
            total += _ways_of(pattern)
        except _Refused as error:
            raise native.InvalidArgument(f"{where} {error}") from error
    if total > _MOST_WAYS:
        raise native.InvalidArgument(
            f"{owner}: the regular expressions for names of modules can match in {total} ways, "
            f"which takes too long (at most {_MOST_WAYS}): use fewer repetitions such as '.*'"
        )


@functools.lru_cache(maxsize=1 << 15)
def _ways_of(pattern: str) -> int:
    if len(pattern) > _MOST_CHARACTERS:
        raise _Refused(f"has {len(pattern)} characters, at most {_MOST_CHARACTERS} are allowed")
    try:
        pattern_of_names(pattern)
        return _ways(_parser.parse(pattern), repeated=False)
    except (re.error, OverflowError, RecursionError) as error:
        raise _Refused(f"is no regular expression: {error}; escape it with re.escape") from error


def _ways(items: Any, *, repeated: bool) -> int:
    """In how many ways a parsed expression can match at one place of a name, at most. `repeated`:
    it is inside of a repetition, where it must have one way only."""
    product = 1
    for operation, value in items:
        product *= _ways_of_item(str(operation), value, repeated)
    return product


def _ways_of_item(operation: str, value: Any, repeated: bool) -> int:
    if operation in ("LITERAL", "NOT_LITERAL", "ANY", "IN", "AT", "FAILURE"):
        return 1
    if operation == "SUBPATTERN":
        return _ways(value[-1], repeated=repeated)
    if operation == "ATOMIC_GROUP":
        return _ways(value, repeated=repeated)
    if operation in ("ASSERT", "ASSERT_NOT"):
        return _ways(value[1], repeated=repeated)
    if operation not in ("BRANCH", "MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
        raise _Refused("refers to an earlier group, which names of modules have no use for")
    if repeated:
        raise _Refused(
            "has a repetition or a choice inside of a repetition, which can take for ever: write "
            "[a.]+ for (a|\\.)+ and .* for (.+)*"
        )
    if operation == "BRANCH":
        return sum(_ways(branch, repeated=False) for branch in value[1])
    least, most, body = value
    if most <= 1:
        return 1 + _ways(body, repeated=False)
    if least > _MOST_REPETITIONS:
        raise _Refused(f"repeats something {least} times, at most {_MOST_REPETITIONS} are allowed")
    _ways(body, repeated=True)
    reach = _NUMBER if _matches_digits_only(body) else _NAME
    return max(1, least, min(most - least + 1, reach))


def _matches_digits_only(body: Any) -> bool:
    items = list(body)
    return len(items) == 1 and str(items[0][0]) == "IN" and str(items[0][1]) in _DIGITS
