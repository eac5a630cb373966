# SPDX-License-Identifier: Apache-2.0
"""The options of an algorithm: what one is called, its default, which values it takes, and what it
does. `woq.config.registry` says which algorithm has which.

`WeightOnlyQuantConfig.algorithm_args` holds them, all of them, so that what a checkpoint says of
its making does not depend on the defaults of the version that reads it. For the same reason an
option keeps the name that it has in checkpoints; other names for it are accepted, not written.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..core import native
from ..core.nearest import nearest

__all__ = [
    "Option",
    "boolean",
    "calibration",
    "canonical_names",
    "choice",
    "complete",
    "integer",
    "number",
    "optional",
]


@dataclasses.dataclass(frozen=True)
class Option:
    default: Any
    annotation: str  # of Python's type, for signatures
    what: str  # allowed values, for messages
    allowed: Callable[[Any], bool]
    help: str = ""  # one clause
    also: tuple[str, ...] = ()  # other names, which other libraries have for it
    core: str = ""  # the field of the core's options that it sets; empty: none
    # Younger than the format: left out of checkpoints at its default, which then stay as they were.
    young: bool = False


def integer(default: int, least: int, **more: Any) -> Option:
    return Option(
        default,
        "int",
        f"an integer of at least {least}",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least,
        **more,
    )


def number(default: float, what: str, allowed: Callable[[float], bool], **more: Any) -> Option:
    """A finite number; `what` names the bounds that `allowed` checks."""

    def check(value: Any) -> bool:
        usable = isinstance(value, (int, float)) and not isinstance(value, bool)
        return usable and math.isfinite(value) and allowed(value)

    return Option(default, "float", f"a number {what}", check, **more)


def boolean(default: bool, **more: Any) -> Option:
    return Option(default, "bool", "True or False", lambda value: isinstance(value, bool), **more)


def choice(values: Sequence[str | bool], default: str | bool, **more: Any) -> Option:
    """One of `values`. True and False are no numbers here."""
    texts = [repr(value) for value in values]
    return Option(
        default,
        " | ".join(sorted({type(value).__name__ for value in values})),
        f"{', '.join(texts[:-1])} or {texts[-1]}",
        lambda value: any(type(value) is type(each) and value == each for each in values),
        **more,
    )


def optional(option: Option) -> Option:
    """`option`, or None, which is the default: something else decides then."""
    return dataclasses.replace(
        option,
        default=None,
        annotation=f"{option.annotation} | None",
        what=f"{option.what}, or None",
        allowed=lambda value: value is None or option.allowed(value),
    )


def calibration(nsamples: int, seqlen: int, batch_size: int | None = None) -> dict[str, Option]:
    """The options of every algorithm that looks at data: which samples it is given."""
    return {
        "nsamples": integer(
            nsamples,
            1,
            help="samples of the data",
            also=("n_samples", "calib_iters", "max_calib_samples"),
        ),
        "seqlen": integer(
            seqlen,
            2,
            help="tokens of each sample",
            also=(
                "calib_len",
                "max_input_length",
                "model_seqlen",
                "pad_max_length",
                "max_calib_seq_len",
            ),
        ),
        "batch_size": dataclasses.replace(
            optional(
                integer(
                    1,
                    1,
                    help="samples that go through a block together; None: about 2048 tokens. Only "
                    "AutoRound's result depends on it",
                )
            ),
            default=batch_size,
        ),
        "seed": integer(42, 0, help="draws the samples"),
    }


def canonical_names(
    owner: str, algorithm: str, options: Mapping[str, Option], given: Mapping[str, Any]
) -> dict[str, Any]:
    """`given` under the names that the options have here.

    Raises:
        InvalidArgument: an unknown name, with the option that was probably meant; two names of one
            option.
    """
    names = {other: name for name, option in options.items() for other in option.also}
    names |= {name: name for name in options}
    found: dict[str, Any] = {}
    written: dict[str, str] = {}
    for name, value in given.items():
        own = names.get(name)
        if own is None:
            meant = nearest(str(name), names)
            hint = f"; did you mean {names[meant]!r}?" if meant else "."
            known = ", ".join(sorted(options)) or "none"
            raise native.InvalidArgument(
                f"{owner}: {algorithm} has no option {name!r}{hint} Known: {known}"
            )
        if own in found:
            other = written[own] if name == own else name
            raise native.InvalidArgument(
                f"{owner}.algorithm_args has {own!r} twice, once as {other!r}"
            )
        found[own], written[own] = value, name
    return found


def complete(
    owner: str, algorithm: str, options: Mapping[str, Option], given: Mapping[str, Any]
) -> dict[str, Any]:
    """All of `options`: those given, checked, and the defaults of the others.

    Raises:
        InvalidArgument: names the option, its value and what is allowed.
    """
    given = canonical_names(owner, algorithm, options, given)
    values = {name: given.get(name, option.default) for name, option in options.items()}
    for name, option in options.items():
        if not option.allowed(values[name]):
            raise native.InvalidArgument(
                f"{owner}.{name} must be {option.what}, got {values[name]!r}"
            )
    return values
