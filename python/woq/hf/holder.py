# SPDX-License-Identifier: Apache-2.0
"""What a layer of a saved checkpoint is while the checkpoint is loaded."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from ..core import native
from ..formats.pages import release_file_pages
from ..modules.layer import WeightOnlyLinear

__all__ = ["Holder"]


class Holder(nn.Module):
    """Receives the stored tensors of one layer from the loader; does not compute.

    Args:
        name: of the layer in its model.
        transposed: the model has a Conv1D there.
        dtype: of the float weight that the model would have.
    """

    def __init__(self, name: str, transposed: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer_name, self.transposed, self.dtype = name, transposed, dtype

    def expect(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """The loader is to bring such a tensor."""
        self.register_buffer(name, torch.empty(shape, dtype=dtype, device="meta"))

    def packed(
        self,
        matrix: native.QuantizedMatrix,
        bias: torch.Tensor | None,
        compute_dtype: str,
        read: Iterable[torch.Tensor],
    ) -> WeightOnlyLinear:
        """The layer with that weight, which was made from the tensors `read`."""
        layer = WeightOnlyLinear.from_quantized(
            matrix,
            # A copy: the loaded one would keep the file's pages.
            None if bias is None else bias.detach().clone(),
            compute_dtype=compute_dtype,
            name=self.layer_name,
            dtype=self.dtype,
            transposed=self.transposed,
        )
        for tensor in read:
            release_file_pages(tensor)
        return layer
