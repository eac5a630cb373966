# SPDX-License-Identifier: Apache-2.0
"""Amounts of memory as people write them."""

from __future__ import annotations

import re

from .native import InvalidArgument

__all__ = ["parse_bytes"]

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def parse_bytes(size: int | str, name: str) -> int:
    """Bytes that `size` (5000000, "5GB") means; `name` is for the message."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(size))
    unit = match.group(2).upper() if match else None
    if match is None or unit not in _UNITS or float(match.group(1)) <= 0:
        raise InvalidArgument(f"{name} must be like 5000000 or '5GB', got {size!r}")
    return int(float(match.group(1)) * _UNITS[unit])
