# SPDX-License-Identifier: Apache-2.0
"""The options of every algorithm: one table of names, defaults and allowed values.

`WeightOnlyQuantConfig.algorithm_args` holds them, all of them, so that what a checkpoint says of
its making does not depend on the defaults of the version that reads it.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ..core import native

__all__ = ["ALGORITHMS", "Option", "complete_options", "needs_calibration", "searches_ranges"]


class Option(NamedTuple):
    default: Any
    what: str  # allowed values, for the message
    allowed: Callable[[Any], bool]


def _integer(default: int, least: int) -> Option:
    return Option(
        default,
        f"an integer of at least {least}",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least,
    )


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _boolean(default: bool) -> Option:
    return Option(default, "True or False", lambda value: isinstance(value, bool))


def _rate() -> Option:
    return Option(
        None,
        "a number above 0, or None",
        lambda value: value is None or (_number(value) and value > 0),
    )


def _calibration(nsamples: int, seqlen: int, batch_size: int | None = None) -> dict[str, Option]:
    return {
        "nsamples": _integer(nsamples, 1),
        "seqlen": _integer(seqlen, 2),
        # None: calibration.BATCH_TOKENS decides; results depend on it for AutoRound only.
        "batch_size": Option(
            batch_size,
            "an integer of at least 1, or None",
            lambda value: value is None or _integer(1, 1).allowed(value),
        ),
        "seed": _integer(42, 0),
    }


# Names are those of the algorithm field in capitals. RTN and HQQ need no data.
ALGORITHMS: dict[str, dict[str, Option]] = {
    "RTN": {},
    "HQQ": {
        "iters": _integer(20, 0),
        "lp_norm": Option(
            0.7, "a number above 0 and at most 1", lambda value: _number(value) and 0 < value <= 1
        ),
        "beta": Option(10.0, "a number above 0", lambda value: _number(value) and value > 0),
        "kappa": Option(1.01, "a number above 0", lambda value: _number(value) and value > 0),
    },
    "GPTQ": {
        **_calibration(128, 512),
        "blocksize": _integer(128, 1),
        "damp_percent": Option(
            0.01, "a number between 0 and 1", lambda value: _number(value) and 0 < value < 1
        ),
        "desc_act": _boolean(False),
        # None: unless desc_act orders the columns.
        "act_group_aware": Option(
            None,
            "True, False or None",
            lambda value: value is None or isinstance(value, bool),
        ),
        "static_groups": _boolean(False),
        "true_sequential": _boolean(False),
        # How far to make up for inputs that differ from the float model's (GPTAQ); 0 is plain GPTQ.
        "gptaq_alpha": Option(
            0.0, "a number from 0 to 1", lambda value: _number(value) and 0 <= value <= 1
        ),
    },
    "AWQ": {
        **_calibration(32, 512),
        "n_grid": _integer(20, 1),
        # Scales x^a (False), x^a / w^(1 - a) (True), or whichever is better.
        "duo_scaling": Option(
            "both",
            "True, False or 'both'",
            lambda value: isinstance(value, bool) or value == "both",
        ),
        "apply_clip": _boolean(True),
    },
    "TEQ": {
        **_calibration(32, 512),
        "iters": _integer(60, 0),
        "lr": _rate(),
    },
    "AUTOROUND": {
        **_calibration(32, 512, 4),
        "start": Option("gptq", "'gptq' or 'rtn'", lambda value: value in ("gptq", "rtn")),
        "iters": _integer(10, 0),
        "lr": _rate(),
        "minmax_lr": _rate(),
        "enable_minmax_tuning": _boolean(True),
        "enable_quanted_input": _boolean(True),
    },
}

# One after the other: input channels are scaled, then columns rounded, with the options of both.
for _first in ("AWQ", "TEQ"):
    ALGORITHMS[f"{_first}+GPTQ"] = {**ALGORITHMS["GPTQ"], **ALGORITHMS[_first]}

_ALIASES = {
    "calib_len": "seqlen",
    "max_input_length": "seqlen",
    "model_seqlen": "seqlen",
    "n_samples": "nsamples",
    "percdamp": "damp_percent",
    "block_size": "blocksize",
    "act_order": "desc_act",
}


def searches_ranges(algorithm: str) -> bool:
    """Whether `mse_range` is on unless said otherwise: where data weighs the errors, the search
    halves the loss; round to nearest by its name is the plain one."""
    return needs_calibration(algorithm)


def needs_calibration(algorithm: str) -> bool:
    return "nsamples" in ALGORITHMS[algorithm]


def complete_options(owner: str, algorithm: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of `algorithm`: those given, checked, and the defaults of the others.

    Raises:
        InvalidArgument: names the option, its value and what is allowed; an unknown name gets a
            suggestion.
    """
    options = ALGORITHMS[algorithm]
    for name in given:
        if name not in options:
            meant = _ALIASES.get(name)
            if meant not in options:
                close = difflib.get_close_matches(str(name), list(options), n=1, cutoff=0.5)
                meant = close[0] if close else None
            hint = f"; did you mean {meant!r}?" if meant else "."
            known = ", ".join(sorted(options)) or "none"
            raise native.InvalidArgument(
                f"{owner}: {algorithm} has no option {name!r}{hint} Known: {known}"
            )
    complete = {name: given.get(name, option.default) for name, option in options.items()}
    for name, option in options.items():
        if not option.allowed(complete[name]):
            raise native.InvalidArgument(
                f"{owner}.{name} must be {option.what}, got {complete[name]!r}"
            )
    if "act_group_aware" in complete and complete["act_group_aware"] is None:
        complete["act_group_aware"] = not complete["desc_act"]
    if complete.get("desc_act") and complete.get("act_group_aware"):
        raise native.InvalidArgument(
            f"{owner}: desc_act and act_group_aware exclude each other: both order the columns"
        )
    return complete
