# SPDX-License-Identifier: Apache-2.0
"""Regular expressions for names of modules: those that could take for ever are refused."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator

import pytest

from woq import InvalidArgument, WeightOnlyQuantConfig
from woq.config.patterns import _ways_of, pattern_of_names

NAMES = [
    "model.layers.17.mlp.experts.103.down_proj",
    "model.language_model.layers.2.block_sparse_moe.experts.7.w1",
    "m" * 64,
    "model." * 12,
]


@pytest.fixture(autouse=True)
def _alarm() -> Iterator[None]:
    """A pattern that hangs holds the GIL: only a signal that kills ends it."""
    signal.alarm(60)
    yield
    signal.alarm(0)


def configs(pattern: str) -> list[dict[str, object]]:
    return [
        {"modules_to_not_convert": [pattern]},
        {"layer_config": {pattern: {"bits": 8}}},
        {"layer_config": [[pattern, None]]},
    ]


ENDLESS = [
    r"(\w+\.?)+!",
    r"(a*)*b",
    r"(?:.*)+x",
    r"(a|a)*b",
    r"(?:layers|layer[s])+!",
    r"(\w\w?)+!",
    r"(?=(\w+)+!)x",
    r"((a{1,9}){1,9}){1,9}!",
    r".*.*.*.*.*.*.*.*!",
    r"\w*\w*\w*\w*\w*\w*!",
    r"(?:){1000000}",
    r"(.)\1",
    r"(a)?(?(1)b|c)",
    "a" * 10_001,
    "(" * 5000,
    "a{99999999999999999999}",
    "[",
]


@pytest.mark.parametrize("pattern", ENDLESS, ids=lambda pattern: pattern[:24])
def test_endless_patterns_are_refused_everywhere(pattern: str) -> None:
    for fields in configs(pattern):
        with pytest.raises(InvalidArgument, match=r"modules_to_not_convert|layer_config|ways"):
            WeightOnlyQuantConfig(**fields)
        with pytest.raises(InvalidArgument, match=r"modules_to_not_convert|layer_config|ways"):
            WeightOnlyQuantConfig.from_dict(fields)


USUAL = [
    "lm_head",
    r"model\.layers\.\d+\.mlp\.down_proj",
    r".*layers\.\d+\..*_proj",
    r".*\.layers\.\d+\.mlp\.experts\.\d+\..*",
    r"model\.layers\.(0|1|2)\.(self_attn|mlp)\..*",
    r"(?i:MODEL)\.layers\.[0-9]{1,2}\.\w+$",
    r"(?:model\.)?layers\.(?!0\.).*",
    r"(?:\.\w)+x",
    re.escape("model.layers.0.self_attn.q_proj") + "$",
    "|".join(rf"layers\.{i}\." for i in range(200)),
]


@pytest.mark.parametrize("pattern", USUAL, ids=lambda pattern: pattern[:24])
def test_usual_patterns_are_taken(pattern: str) -> None:
    for fields in configs(pattern):
        config = WeightOnlyQuantConfig(**fields)
        assert WeightOnlyQuantConfig.from_dict(config.to_dict()) == config


def test_many_exact_rules_are_taken() -> None:
    rules = {
        rf"model\.layers\.{i}\.mlp\.experts\.{j}\.w1$": {"bits": 8}
        for i in range(20)
        for j in range(50)
    }
    assert len(WeightOnlyQuantConfig(layer_config=rules).layer_config) == 1000


def test_all_patterns_count_together() -> None:
    several = [rf"{letter}.*.*.*!" for letter in "abcdefghij"]
    WeightOnlyQuantConfig(modules_to_not_convert=several)
    with pytest.raises(InvalidArgument, match=r"can match in \d+ ways"):
        WeightOnlyQuantConfig(modules_to_not_convert=[f"{x}{y}" for x in "abcdef" for y in several])


@pytest.mark.parametrize("pattern", [r".*.*.*!", r"\w+.*[a-z.]*!", r"(.*|\w*|m.*).*.*!"])
def test_what_is_taken_is_fast(pattern: str) -> None:
    """The worst that is taken, for a thousand names: SIGALRM ends a test that takes a minute."""
    assert _ways_of(pattern) > 200_000
    for _ in range(250):
        assert not any(pattern_of_names(pattern).match(name) for name in NAMES)


def test_ways_are_counted() -> None:
    assert _ways_of("model.layers") == 1
    assert _ways_of("(a|bc|de)") == 3
    assert _ways_of("ab?") == 2
    assert _ways_of(r"\d+") == 4
    assert _ways_of(".*") == _ways_of("x{2,}") == 64
    assert _ways_of("x{2,5}") == 4
    assert _ways_of(r".*(\d+|a)") == 64 * 5
