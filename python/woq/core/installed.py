# SPDX-License-Identifier: Apache-2.0
"""What an `install()` puts into this process, and an `uninstall()` or the end of a `with` block
takes out again, however many calls there are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType, TracebackType
from typing import Any

__all__ = ["Installation", "Installed"]


class Installed:
    """One call of an `install()`, to be used in `with`: the end of the block undoes it."""

    def __init__(self, of: Installation, settings: Mapping[str, Any]) -> None:
        self.settings = MappingProxyType(dict(settings))
        self.entered = False
        self._of = of

    def __enter__(self) -> Installed:
        self.entered = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._of.close(self)


class Installation:
    """Put in place by the first call, and taken away when the last one ends.

    Blocks may be nested, and run in several threads.

    Args:
        put: puts it in place; if it raises, there is nothing to take away.
        put_back: takes it away.
    """

    def __init__(self, put: Callable[[], None], put_back: Callable[[], None]) -> None:
        self._put, self._put_back = put, put_back
        self._lock = threading.Lock()
        self._open: list[Installed] = []

    def open(self, **settings: Any) -> Installed:
        call = Installed(self, settings)
        with self._lock:
            if not self._open:
                self._put()
            self._open.append(call)
        return call

    def close(self, call: Installed) -> None:
        """End one call. Nothing happens if it has ended."""
        with self._lock:
            if call in self._open:
                self._open.remove(call)
                if not self._open:
                    self._put_back()

    def close_all(self) -> None:
        """End all calls but those of `with` blocks that still run."""
        with self._lock:
            running = [call for call in self._open if call.entered]
            if self._open and not running:
                self._put_back()
            self._open = running

    def setting(self, name: str, default: Any) -> Any:
        """What the last call that is open says; `default` without one."""
        with self._lock:
            return self._open[-1].settings.get(name, default) if self._open else default
