# SPDX-License-Identifier: Apache-2.0
"""The algorithms, by name: each is one file of `woq/algorithms/`, found when it is asked for.

Such a file has `ALGORITHM`, a record of what its algorithm is called, which options it has, what
it needs, what it stores, and the function that does it. Nothing else in woq knows an algorithm by
its name. The records are light: reading a config imports no torch.

A name with a plus is two algorithms, one after the other: AWQ+GPTQ scales the input channels as
AWQ does and rounds what that gives as GPTQ does, with the options of both.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

from ..core import native
from . import options as options_module
from .options import Option

__all__ = ["Algorithm", "algorithm_names", "find_algorithm", "known_algorithms"]

# The room above this one that holds the files. It is imported by name, file by file, so that this
# room does not depend on it.
_PACKAGE = "woq.algorithms"

Options = Mapping[str, Any]


def _never(options: Options) -> bool:
    return False


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Algorithm:
    """What woq has to know of an algorithm. One of `quantize_weight` and `quantize_block` is given:
    the first needs nothing but the weight, the second also what the model does with data.

    `woq.algorithms` says what the functions are given and what they return.
    """

    name: str  # as `WeightOnlyQuantConfig.algorithm` has it
    summary: str  # a clause for the command line's help
    options: Mapping[str, Option] = dataclasses.field(default_factory=dict)
    # Checks and completes options that depend on each other; the first argument is for messages.
    complete_options: Callable[[str, dict[str, Any]], None] | None = None

    quantize_weight: Callable[..., Any] | None = None
    quantize_block: Callable[..., Any] | None = None
    # The second half of a pair: rounds a weight whose input channels the first half has scaled.
    round_scaled: Callable[..., Any] | None = None
    then: Algorithm | None = None  # the second half, if this is a pair

    # Whether ranges are searched unless the config says; None: it has a search of its own.
    mse_range: bool | None = False
    takes_imatrix: bool = False
    # Stores zero points that are real numbers, and therefore needs an asymmetric scheme.
    finds_zero_points: bool = False
    # Stores multipliers of the layers' inputs (act_scales), and so can be the first of a pair.
    scales_inputs: bool = False
    # Stores the group of each column (g_idx).
    stores_g_idx: Callable[[Options], bool] = _never

    # What it looks at besides the quantized blocks before the one at hand: the float model's
    # outputs of each block, and its inputs of each layer.
    float_outputs: bool = False
    float_inputs: Callable[[Options], bool] = _never
    # A block is given what the float blocks before it produce, not the quantized ones.
    follows_float: Callable[[Options], bool] = _never

    @property
    def needs_calibration(self) -> bool:
        return self.quantize_block is not None

    def complete(self, owner: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """All options by name: those given, checked, and the defaults of the others. Raises
        InvalidArgument in the name of `owner`."""
        values = options_module.complete(owner, self.name, self.options, given)
        for part in (self, self.then):
            if part is not None and part.complete_options is not None:
                part.complete_options(owner, values)
        return values

    def core_options(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What the core's function is given of `values`, by the core's names. None leaves the
        core's default."""
        return {
            option.core: values[name]
            for name, option in self.options.items()
            if option.core and values[name] is not None
        }


def find_algorithm(name: str, field: str = "algorithm") -> Algorithm:
    """The algorithm of that name, in capitals or not. Raises InvalidArgument in the name of
    `field`, with the known names."""
    first, plus, second = name.upper().partition("+")
    found = _record(first)
    if found is not None and plus:
        then = _record(second)
        paired = found.scales_inputs and then is not None and then.round_scaled is not None
        found = _pair(found, then) if paired and then is not None else None
    if found is None:
        raise native.InvalidArgument(
            f"{field} {name!r} is unknown; known: {', '.join(algorithm_names())}"
        )
    return found


def algorithm_names() -> list[str]:
    """The names of all algorithms and pairs of them, in alphabetical order."""
    singles = [record for record in map(_record, _modules()) if record is not None]
    pairs = [
        f"{first.name}+{second.name}"
        for first in singles
        for second in singles
        if first.scales_inputs and second.round_scaled is not None
    ]
    return sorted([*(record.name for record in singles), *pairs])


def known_algorithms() -> list[Algorithm]:
    """The records of `algorithm_names()`."""
    return [find_algorithm(name) for name in algorithm_names()]


@functools.cache
def _modules() -> frozenset[str]:
    package = importlib.import_module(_PACKAGE)
    found = pkgutil.iter_modules(package.__path__)
    return frozenset(module.name.upper() for module in found if not module.ispkg)


@functools.cache
def _record(name: str) -> Algorithm | None:
    if name not in _modules():
        return None
    record: Algorithm = importlib.import_module(f"{_PACKAGE}.{name.lower()}").ALGORITHM
    return record


@functools.cache
def _pair(first: Algorithm, second: Algorithm) -> Algorithm:
    return dataclasses.replace(
        first,
        name=f"{first.name}+{second.name}",
        summary=f"{first.summary}; then {second.summary}",
        # Where both have an option, such as how much data is used, it is the first one's.
        options={**second.options, **first.options},
        then=second,
        stores_g_idx=second.stores_g_idx,
        float_inputs=second.float_inputs,
    )
