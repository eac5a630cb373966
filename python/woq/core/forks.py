# SPDX-License-Identifier: Apache-2.0
"""Whether this process is a child that was forked after woq was imported.

The core notes forks by itself once it is loaded, but it is loaded on first use, which may be in the
child. The pool of threads that the two would share may have been started in the parent by torch,
and is not there in the child, which would wait for it for ever.
"""

from __future__ import annotations

import os

__all__ = ["in_forked_child"]

_forked = False


def in_forked_child() -> bool:
    """Whether there was a fork since this module was imported, and this is its child."""
    return _forked


def _note_fork() -> None:
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_note_fork)
