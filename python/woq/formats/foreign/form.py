# SPDX-License-Identifier: Apache-2.0
"""What a format of another library's checkpoints is, and what the shapes of its tensors say."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ...core import native

if TYPE_CHECKING:
    import torch

__all__ = ["ForeignFormat", "Reader", "Tensors", "bits_of", "extent", "group_size_of", "refuse"]

Tensors = Mapping[str, "torch.Tensor"]
# From the tensors of a layer and its shape [N, K] to its matrix and a sentence on how it was read.
Reader = Callable[[Tensors, int, int], tuple[native.QuantizedMatrix, str]]


@dataclasses.dataclass(frozen=True)
class ForeignFormat:
    """How to read the quantized layers of one checkpoint.

    Args:
        name: for messages.
        mark: the tensor that every quantized layer has, and no other one.
        tensors: the tensors that a quantized layer may have, its bias apart. Others are errors:
            they would change what the layer computes.
        read: makes the matrix of a layer.
        experts: a layer is a module of fused experts, its tensors are `<product>_<part>` and have
            the experts in their first dimension; `read` gets the parts of one matrix of one expert.
    """

    name: str
    mark: str
    tensors: frozenset[str]
    read: Reader
    experts: bool = False

    def split(self, key: str) -> tuple[str, str]:
        """Layer and tensor of a name in the files. A tensor's own name may have dots
        ("weight.absmax")."""
        for tensor in self.dotted:
            if key.endswith(f".{tensor}"):
                return key[: -len(tensor) - 1], tensor
        layer, _, tensor = key.rpartition(".")
        return layer, tensor

    @property
    def dotted(self) -> list[str]:
        """The tensors whose names have dots."""
        return sorted(tensor for tensor in self.tensors if "." in tensor)


def group_size_of(groups: int, cols: int, said: Any) -> int:
    """The group size of `groups` groups in rows of `cols`. Where several would do, because the last
    group is shorter, the settings decide."""
    if groups == 1:
        return -1
    if isinstance(said, int) and said > 0 and -(-cols // said) == groups:
        return said
    if groups == 0 or cols % groups != 0:
        raise native.InvalidArgument(
            f"{groups} groups of scales do not divide {cols} columns, and group_size is {said!r}"
        )
    return cols // groups


def bits_of(words: int, count: int, said: Any) -> int:
    """The width of `count` codes in `words` words of 32 bits."""
    widths = [bits for bits in range(2, 9) if -(-count * bits // 32) == words]
    if said in widths:
        return int(said)
    if len(widths) != 1:
        raise native.InvalidArgument(
            f"{count} codes in {words} words of 32 bits have no width from 2 to 8 bits"
            + (f": it could be any of {widths}" if widths else "")
        )
    return widths[0]


def extent(tensors: Tensors, name: str, axis: int) -> int:
    tensor = tensors.get(name)
    if tensor is None or tensor.dim() != 2:
        shape = "is missing" if tensor is None else f"has shape {list(tensor.shape)}"
        raise native.InvalidArgument(f"tensor {name!r} {shape}; expected one of two dimensions")
    return int(tensor.shape[axis])


def refuse(method: str, settings: Mapping[str, Any], keys: Mapping[str, str]) -> None:
    """Raise Unsupported where one of `keys` is set: each changes what a layer computes."""
    for key, why in keys.items():
        if settings.get(key):
            raise native.Unsupported(f"this {method} checkpoint has {key}={settings[key]!r}: {why}")
