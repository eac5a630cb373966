# SPDX-License-Identifier: Apache-2.0
"""Several calls of a chat model, each in its own thread with its own callbacks, as one batch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, Generic, TypeVar

from woq.generation import Flag

Item = TypeVar("Item")
Result = TypeVar("Result")


class AllSet:
    """Set once all of the flags are."""

    def __init__(self, flags: Sequence[Flag]) -> None:
        self._flags = flags

    def is_set(self) -> bool:
        return all(flag.is_set() for flag in self._flags)


class BatchGroup(Generic[Item, Result]):
    """Waits until each member has submitted an item or left, then runs all items together.

    A member leaves without an item if a cache had its answer or its messages were refused. One of
    the waiting threads does the work.
    """

    def __init__(self, run: Callable[[list[Item], Flag], list[Result]], members: int) -> None:
        self._run = run
        self._missing = members
        self._changed = threading.Condition()
        self._items: list[Item] = []
        self._flags: list[Flag] = []
        self._running = False
        self._results: list[Result] | None = None
        self._error: BaseException | None = None

    def submit(self, item: Item, cancelled: Flag) -> Result:
        with self._changed:
            index = len(self._items)
            self._items.append(item)
            self._flags.append(cancelled)
            self._missing -= 1
            self._changed.notify_all()
            while self._results is None and self._error is None:
                if self._missing == 0 and not self._running:
                    self._running = True
                    break
                self._changed.wait()
            else:
                return self._take(index)
        try:
            results = self._run(self._items, AllSet(self._flags))
            with self._changed:
                self._results = results
        except BaseException as error:
            with self._changed:
                self._error = error
            raise
        finally:
            with self._changed:
                self._changed.notify_all()
        return self._take(index)

    def leave(self) -> None:
        """A member that will not submit."""
        with self._changed:
            self._missing -= 1
            self._changed.notify_all()

    def _take(self, index: int) -> Result:
        if self._error is not None:
            raise self._error
        assert self._results is not None
        return self._results[index]


class Seat:
    """One member's place in a group: used at most once, and given up in the end."""

    def __init__(self, group: BatchGroup[Any, Any]) -> None:
        self._group = group
        self._open = True

    def submit(self, item: Any, cancelled: Flag) -> Any:
        self._open = False
        return self._group.submit(item, cancelled)

    @property
    def is_open(self) -> bool:
        return self._open

    def close(self) -> None:
        if self._open:
            self._open = False
            self._group.leave()


# The seat of the call that is under way in this context.
current_seat: ContextVar[Seat | None] = ContextVar("langchain_woq_seat", default=None)
