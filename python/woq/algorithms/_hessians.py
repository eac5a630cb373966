# SPDX-License-Identifier: Apache-2.0
"""Second moments of layers' inputs, H = (2 / n) X^T X, and errors measured by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .. import _native
from .._blocks import Block, fast_products, observed_inputs
from .._selection import Target

__all__ = ["act_order", "hessians", "output_error"]


def hessians(block: Block, groups: Sequence[Sequence[Target]]) -> list[Any]:
    """One `_native.Hessian` [K, K] for each group of targets that share an input, over all batches.

    The block computes with the weights that its modules have at present.
    """
    sums = [_native.Hessian(group[0].shape[1]) for group in groups]
    # One of each group stands for all of them.
    places = {group[0].name: number for number, group in enumerate(groups)}

    def add(target: Target, x: torch.Tensor) -> None:
        rows = x.detach().reshape(-1, x.shape[-1])
        if len(rows):
            sums[places[target.name]].add(rows.contiguous(), torch.get_num_threads())

    firsts = [group[0] for group in groups]
    with observed_inputs(firsts, add), torch.no_grad(), fast_products():
        for index in range(len(block)):
            block.run(index)
    return sums


def output_error(weight: torch.Tensor, matrix: _native.QuantizedMatrix, hessian: Any) -> float:
    """tr((W - Q) H (W - Q)^T) / tr(W H W^T): the squared error of the layer's output, relative."""
    return float(_native.layer_error(weight, matrix.dequantize(), hessian, torch.get_num_threads()))


def act_order(options: Mapping[str, Any]) -> str:
    """The core's name for the order in which GPTQ takes the columns."""
    if options["desc_act"]:
        return "desc"
    return "group_aware" if options["act_group_aware"] else "none"
