# SPDX-License-Identifier: Apache-2.0
"""Arguments of other libraries: those without a meaning here are said once, devices are checked,
and those that nobody knows are errors."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ..core.devices import is_cpu
from ..core.native import InvalidArgument, Unsupported
from ..core.nearest import nearest
from ..hf.location import FILE_ARGUMENTS

__all__ = ["check_known", "note_idle", "on_cpu", "take_file_arguments"]

logger = logging.getLogger("woq")

# Owner and argument of what was said. A script that loads a hundred models says it once.
_said: set[tuple[str, str]] = set()

# Names and values of the hub's arguments that newer versions of it do not take.
_FORMER = ("resume_download", "_commit_hash", "_raise_exceptions_for_missing_entries")


def note_idle(owner: str, given: Mapping[str, Any], idle: Mapping[str, str]) -> None:
    """Log the arguments among `given` that are in `idle`, each with the reason there; None, False
    and 0 ask for nothing."""
    for name, value in given.items():
        if name in idle and value:
            _say(owner, name, f"{owner}: {name}={value!r} has no effect: {idle[name]}")


def on_cpu(owner: str, name: str, place: Any, *, allowed: bool) -> None:
    """Accept a device or a device map. Another device than the CPU is an error, or is logged if it
    is `allowed` to run on the CPU what asks for one.

    Raises:
        Unsupported: `place` names a GPU, a disk or the like.
    """
    places = place.values() if isinstance(place, Mapping) else [place]
    if all(each is None or is_cpu(each) for each in places):
        return
    if not allowed:
        raise Unsupported(
            f"{owner}: {name}={place!r}, and woq's kernels run on the CPU: leave it out, pass "
            f"{name}='cpu', or have it run on the CPU as it is by install(on_cpu=True)"
        )
    _say(owner, name, f"{owner}: {name}={place!r}: it runs on the CPU")


def take_file_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """Takes out of `given` what says where a repository's files are, in today's names."""
    for name in _FORMER:
        given.pop(name, None)
    token = given.pop("use_auth_token", None)
    found = {name: given.pop(name) for name in FILE_ARGUMENTS if name in given}
    if token is not None:
        found.setdefault("token", token)
    return {name: value for name, value in found.items() if value is not None}


def check_known(owner: str, given: Iterable[str], known: Collection[str] = ()) -> None:
    """
    Raises:
        InvalidArgument: something is given that is not known.
    """
    for name in given:
        if name not in known:
            close = nearest(name, known)
            meant = f": did you mean {close}?" if close else ""
            raise InvalidArgument(f"{owner} has no argument {name!r}{meant}")


def _say(owner: str, name: str, text: str) -> None:
    if (owner, name) not in _said:
        _said.add((owner, name))
        logger.warning("%s", text)
