# SPDX-License-Identifier: Apache-2.0
"""The name that was probably meant, for messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["nearest"]

# Alike, 0 to 1. `groups` and `group_size` are 0.75, with which the suggestion still helps;
# `exllama_config` and `layer_config`, which have nothing to do with each other, are 0.69. Names of
# three or four letters have 0.67 with one wrong letter, and take another cutoff.
_CUTOFF = 0.75


def nearest(name: str, known: Iterable[str], cutoff: float = _CUTOFF) -> str | None:
    """The one of `known` that is most like `name`; None: none is like it."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return found[0] if found else None
