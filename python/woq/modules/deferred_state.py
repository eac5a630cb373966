# SPDX-License-Identifier: Apache-2.0
"""State dicts whose packed weights are unpacked when they are written, one layer at a time."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Protocol

import torch

__all__ = ["Deferred", "Stored", "current_deferred", "deferred_state"]


class Stored(Protocol):
    """A layer that can unpack its tensors."""

    def stored_tensors(self) -> dict[str, torch.Tensor]: ...


class Deferred:
    """Stand-ins in a state dict for tensors that are still packed."""

    def __init__(self) -> None:
        self._sources: dict[int, tuple[torch.Tensor, Stored, str]] = {}

    def add(self, stand_in: torch.Tensor, layer: Stored, key: str) -> None:
        # Holding the stand-in keeps its id from being given to another tensor.
        self._sources[id(stand_in)] = (stand_in, layer, key)

    def get(self, number: int) -> tuple[Stored, str] | None:
        found = self._sources.get(number)
        return None if found is None else found[1:]


_deferred: contextvars.ContextVar[Deferred | None] = contextvars.ContextVar(
    "woq_deferred_state", default=None
)


@contextlib.contextmanager
def deferred_state() -> Iterator[Deferred]:
    """Within it, `state_dict()` gives stand-ins of the right shape and dtype for packed weights."""
    deferred = Deferred()
    token = _deferred.set(deferred)
    try:
        yield deferred
    finally:
        _deferred.reset(token)


def current_deferred() -> Deferred | None:
    """Where a layer puts its stand-ins; None: outside of `deferred_state`, tensors are wanted."""
    return _deferred.get()
