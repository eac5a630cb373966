# SPDX-License-Identifier: Apache-2.0
"""What says CPU among the ways to name a device."""

from __future__ import annotations

from typing import Any

__all__ = ["is_cpu"]

# What transformers and accelerate call a map that they make: here, of the CPU alone.
_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


def is_cpu(place: Any) -> bool:
    """Whether a device (its name, or a torch.device) or the name of a device map is the CPU's."""
    kind = getattr(place, "type", place)  # a torch.device has one
    return isinstance(kind, str) and (kind.partition(":")[0] == "cpu" or kind in _MAPS)
