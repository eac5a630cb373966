# SPDX-License-Identifier: Apache-2.0
"""What goes from one block of a model to the next: hidden states, and a block's other arguments."""

from __future__ import annotations

import dataclasses
import logging
import os
import tempfile
from typing import Any

import torch

from ..core import native

__all__ = ["Activations", "Call", "check_finite", "hidden_states"]

logger = logging.getLogger("woq")


class Activations:
    """A tensor for each calibration batch, in memory or, beyond `limit` bytes, in a file.

    The file is mapped: the system writes pages out and takes them back as it needs memory. It lies
    in the temporary folder (TMPDIR) and is deleted with the object.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._tensors: list[torch.Tensor] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __len__(self) -> int:
        return len(self._tensors)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self._tensors[index]

    @property
    def offloaded(self) -> bool:
        return self._folder is not None

    def append(self, value: torch.Tensor) -> None:
        size = value.numel() * value.element_size()
        self._used += size
        if self._used <= self._limit or not size:
            self._tensors.append(value.detach().clone())
            return
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="woq-activations-")
            logger.info("activations beyond %d MiB go to %s", self._limit >> 20, self._folder.name)
        path = os.path.join(self._folder.name, f"{len(self._tensors)}")
        mapped = torch.from_file(path, shared=True, size=value.numel(), dtype=value.dtype)
        mapped = mapped.view(value.shape)
        mapped.copy_(value.detach())
        self._tensors.append(mapped)

    def replace(self, index: int, value: torch.Tensor) -> None:
        """Put `value`, of the same shape (as a block's output has), in the place of `index`."""
        self._tensors[index].copy_(value.detach())

    def copy(self) -> Activations:
        other = Activations(self._limit)
        try:
            for tensor in self._tensors:
                other.append(tensor)
        except BaseException:
            other.close()
            raise
        return other

    def close(self) -> None:
        self._tensors.clear()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


@dataclasses.dataclass(frozen=True)
class Call:
    """The arguments of a block besides its hidden states: attention mask, position embeddings,
    cross-attention states ..."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    keyword: str | None  # name under which the hidden states are passed, None: they come first

    def arguments(self, hidden: torch.Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if self.keyword is None:
            return (hidden, *self.args), self.kwargs
        return self.args, {**self.kwargs, self.keyword: hidden}


def hidden_states(output: Any) -> torch.Tensor:
    hidden = output[0] if isinstance(output, (tuple, list)) else output
    if not isinstance(hidden, torch.Tensor):
        raise native.Unsupported(f"a block returned {type(output).__name__}, not hidden states")
    return hidden


def check_finite(hidden: torch.Tensor, what: str, batch: int) -> None:
    if not bool(torch.isfinite(hidden).all()):
        raise native.InvalidArgument(
            f"{what} has NaN or infinite values in calibration batch {batch}: the model's weights "
            "or the calibration data are damaged, or its dtype overflows (try float32)"
        )
