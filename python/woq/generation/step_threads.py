# SPDX-License-Identifier: Apache-2.0
"""How many threads torch's operations have in the steps of a generation."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from transformers import StoppingCriteria

from ..core import native


class StepThreads(StoppingCriteria):
    """While entered: torch's operations of this thread get no more threads than woq's layers.

    On a machine that other programs use as well, layers compute on fewer threads for a while,
    because a team waits for a member whose core another program has. torch's operations between
    them, attention above all, would wait as well. The number is asked for again at each step:
    layers take what the thread has, and the core tries more threads only where more are asked for.

    What changes are numbers of the calling thread. torch.set_num_threads() would also change what
    other threads begin with.
    """

    def __enter__(self) -> StepThreads:
        # For the first time in a thread, torch here sets what it begins with.
        self._wanted = self._set = torch.get_num_threads()
        self._mkl: int | None = None  # MKL's number before it was lowered
        self._next_step()
        return self

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        self._next_step()
        done = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        return cast(torch.BoolTensor, done)

    def __exit__(self, *error: object) -> None:
        if torch.get_num_threads() == self._set:
            self._use(self._wanted)

    def _next_step(self) -> None:
        if (now := torch.get_num_threads()) != self._set:
            # By torch.set_num_threads(), which sets MKL's as well: from now on this is wanted.
            self._wanted, self._mkl = now, None
        self._use(native.allowed_threads(self._wanted))

    def _use(self, threads: int) -> None:
        self._set = threads
        native.set_calling_threads(threads)
        if threads < self._wanted:
            before = _set_mkl_threads(threads)
            self._mkl = before if self._mkl is None else self._mkl
        elif self._mkl is not None:
            _set_mkl_threads(self._mkl)
            self._mkl = None


def _set_mkl_threads(threads: int) -> int:
    """MKL's own number for the calling thread, 0 for none; returns the one before.

    MKL goes by OpenMP's number, but once torch.set_num_threads() was called, by one of its own.
    """
    function = _mkl_function()
    return 0 if function is None else function(threads)


@functools.cache
def _mkl_function() -> Callable[[int], int] | None:
    """None where torch was built without MKL, or its library does not show MKL's functions."""
    if not torch.backends.mkl.is_available():
        return None
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        function = library.MKL_Set_Num_Threads_Local
    except (OSError, AttributeError):
        return None
    function.argtypes, function.restype = [ctypes.c_int], ctypes.c_int
    return cast(Callable[[int], int], function)
