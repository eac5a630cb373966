# SPDX-License-Identifier: Apache-2.0
"""Loads the C++ extension.

The extension needs the system's OpenMP runtime, libgomp.so.1, and must share it with torch: one
pool of threads for both. Where the system has none but torch is installed, torch's copy (the same
SONAME) serves.
"""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path

from . import forks


def _load_torch_openmp() -> bool:
    """Loads the libgomp that torch ships, without importing torch; False if there is none."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    for library in sorted((Path(spec.origin).parent / "lib").glob("libgomp*.so*")):
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        return True
    return False


try:
    import woq._woq  # noqa: F401
except ImportError as error:
    if "libgomp" not in str(error):
        raise
    if not _load_torch_openmp():
        raise ImportError(
            f"woq needs the OpenMP runtime libgomp.so.1 ({error}); install it, on Debian and "
            "Ubuntu with: apt-get install libgomp1"
        ) from error

# After the runtime that it needs. All of it: `_woq.pyi` is the list.
from woq._woq import *  # noqa: E402, F403
from woq._woq import enter_forked_child  # noqa: E402

if forks.in_forked_child():
    enter_forked_child()
