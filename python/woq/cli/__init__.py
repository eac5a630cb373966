# SPDX-License-Identifier: Apache-2.0
"""The command `woq`. One file for each of its commands; what they share begins with an underscore.

This package is the only part of the library that prints. Its modules import torch and transformers
inside of functions, so that `--help` and shell completion are fast.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import MutableMapping
from typing import Any

__all__ = ["main", "wait_briefly"]

# Rounds that a thread of libgomp spins before it sleeps; libgomp's own number, 300,000, is longer
# than a time slice. benchmarks/busy.py compares.
_SPIN_COUNT = "20000"


def wait_briefly(environment: MutableMapping[str, str]) -> None:
    """Let OpenMP's waiting threads give up their cores soon, which other programs may want.

    libgomp reads the environment when it is loaded, so this has to come before torch and the C++
    core are. What the user has set stays.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & environment.keys():
        environment["GOMP_SPINCOUNT"] = _SPIN_COUNT


def main() -> None:
    """Run the command line of this process."""
    wait_briefly(os.environ)
    if importlib.util.find_spec("click") is None:
        sys.stderr.write("woq: the command line needs click: pip install 'woq[cli]'\n")
        sys.exit(1)
    from ._app import app

    signal.signal(signal.SIGTERM, _terminate)
    app(prog_name="woq")


def _terminate(number: int, frame: Any) -> None:
    """End as after an error, so that half-written folders go, too."""
    sys.exit(128 + number)
