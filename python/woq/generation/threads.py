# SPDX-License-Identifier: Apache-2.0
"""The threads that models run in while somebody listens, and how they end."""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")

# Threads of streams that may be running, and what ends each after the token under way.
_streams: weakref.WeakKeyDictionary[threading.Thread, threading.Event] = weakref.WeakKeyDictionary()


def start_thread(run: Callable[[], None], cancelled: threading.Event) -> threading.Thread:
    """`run` in a thread of a stream; the program's end sets `cancelled` and waits for it.

    A daemon: Python joins others before anything could set the event, so that leaving the loop over
    a stream would leave the program running until the answer is complete.
    """
    thread = threading.Thread(target=run, name="woq-stream", daemon=True)
    thread.start()
    _streams[thread] = cancelled
    return thread


@atexit.register
def _end_streams() -> None:
    """A thread inside the core when the interpreter is torn down would abort the process."""
    streams = list(_streams.items())
    for _, cancelled in streams:
        cancelled.set()
    for thread, _ in streams:
        thread.join()


async def run_in_thread(function: Callable[[threading.Event], _T]) -> _T:
    """Await `function(cancelled)` in a thread of its own; cancelling the task sets the event.

    Not in asyncio's shared pool, whose few threads minutes of generation would occupy.
    """
    cancelled = threading.Event()
    context = contextvars.copy_context()
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="woq-generate")
    try:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(pool, context.run, function, cancelled)
    finally:
        cancelled.set()
        pool.shutdown(wait=False)
