# SPDX-License-Identifier: Apache-2.0
"""One error for those of several layers."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.native import InvalidArgument, Unsupported

__all__ = ["joined"]

_SHOWN = 8


def joined(errors: Sequence[Exception], what: str) -> Exception:
    """What to raise for the errors of several layers, so that the user mends them in one go. An
    error that is not woq's own is neither the checkpoint's fault nor the format's: it comes first.

    Args:
        what: "cannot be read", ...
    """
    others = [error for error in errors if not isinstance(error, InvalidArgument | Unsupported)]
    if others or len(errors) == 1:
        return (others or errors)[0]
    kind = InvalidArgument if any(isinstance(e, InvalidArgument) for e in errors) else Unsupported
    lines = "".join(f"\n- {error}" for error in errors[:_SHOWN])
    more = f"\n- and {len(errors) - _SHOWN} more" if len(errors) > _SHOWN else ""
    return kind(f"{len(errors)} layers {what}:{lines}{more}")
