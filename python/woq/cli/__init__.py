# SPDX-License-Identifier: Apache-2.0
"""The command `woq`. One file for each of its commands; what they share begins with an underscore.

This package is the only part of the library that prints. Its modules import torch and transformers
inside of functions, so that `--help` and shell completion are fast.
"""

from __future__ import annotations

import importlib.util
import signal
import sys
from typing import Any

__all__ = ["main"]


def main() -> None:
    """Run the command line of this process."""
    if importlib.util.find_spec("click") is None:
        sys.stderr.write("woq: the command line needs click: pip install 'woq[cli]'\n")
        sys.exit(1)
    from ._app import app

    signal.signal(signal.SIGTERM, _terminate)
    app(prog_name="woq")


def _terminate(number: int, frame: Any) -> None:
    """End as after an error, so that half-written folders go, too."""
    sys.exit(128 + number)
