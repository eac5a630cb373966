# SPDX-License-Identifier: Apache-2.0
"""Children that are killed, or fail, while they write."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator

import torch

__all__ = ["fit_for_children", "in_child", "kill_at_random"]


@contextlib.contextmanager
def fit_for_children() -> Iterator[None]:
    """One thread, for torch's pool does not live on in a forked child; and no progress bars, whose
    lock is one for all processes: a child that is killed with it stops the others for ever."""
    from transformers.utils import logging

    threads = torch.get_num_threads()
    bars = logging.is_progress_bar_enabled()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    yield
    torch.set_num_threads(threads)
    if bars:
        logging.enable_progress_bar()


def in_child(function: Callable[[], int | None], seconds: float = 60) -> tuple[str, int]:
    """("exit", code) or ("signal", number) of a forked child that runs `function`, whose result is
    the code; a child that takes longer is killed by SIGALRM."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            code = function() or 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "signal", os.WTERMSIG(status)
    return "exit", os.WEXITSTATUS(status)


def kill_at_random(
    function: Callable[[], object], times: int, draw: random.Random
) -> Iterator[tuple[int, bool]]:
    """Run `function` in a child `times` times and kill it at a random moment; yields the number,
    and whether it was killed before it was done."""
    started = time.perf_counter()
    assert in_child(lambda: function() and None) == ("exit", 0)
    whole = time.perf_counter() - started
    for number in range(times):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                function()
                code = 0
            finally:
                os._exit(code)
        time.sleep(draw.uniform(0, 1.1 * whole))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        yield number, os.WIFSIGNALED(status)
