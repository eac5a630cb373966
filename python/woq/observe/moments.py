# SPDX-License-Identifier: Apache-2.0
"""Second moments of layers' inputs, H = (2 / n) X^T X, and errors measured by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from ..core import native
from ..modules.targets import Target
from .block import Block, observed_inputs

__all__ = ["Moments", "in_rounds", "input_rows", "moments", "output_error"]


class Moments(NamedTuple):
    """Second moments of one input: H, and with the float model's input (`native.CrossMoment`)
    where that was observed."""

    hessian: Any
    cross: Any | None = None

    def scaled(self, multipliers: torch.Tensor) -> Moments:
        """Those of the input times `multipliers` [K]."""
        cross = None if self.cross is None else self.cross.scaled(multipliers)
        return Moments(self.hessian.scaled(multipliers), cross)


def moments(block: Block, groups: Sequence[Sequence[Target]]) -> list[Moments]:
    """The moments [K, K] for each group of targets that share an input, over all batches.

    The block computes with the weights that its modules have at present; `block.original`, if there
    is one, with the float ones. Held at a time: the float inputs of one batch.
    """
    threads = torch.get_num_threads()
    # One of each group stands for all of them.
    first = {group[0].name: group[0] for group in groups}
    sums = {name: native.Hessian(target.shape[1], name) for name, target in first.items()}
    crosses = {}
    originals = []
    if block.original is not None:
        originals = [target for target in block.original.targets if target.name in first]
        crosses = {
            target.name: native.CrossMoment(target.shape[1], target.name) for target in originals
        }
    floats: dict[str, list[torch.Tensor]] = {}

    def keep(target: Target, x: torch.Tensor) -> None:
        floats.setdefault(target.name, []).append(input_rows(x))

    def add(target: Target, x: torch.Tensor) -> None:
        rows = input_rows(x)
        if not len(rows):
            return
        # As the products take them.
        sums[target.name].add(rows if block.products is None else rows.to(block.products), threads)
        held = floats.get(target.name)
        # An expert is given some of the tokens, and they may be others in the float model.
        if held and len(held[0]) == len(rows) == tokens:
            crosses[target.name].add(held.pop(0), rows, threads)

    with torch.no_grad(), block.fast_products():
        for index in range(len(block)):
            tokens = block.inputs[index].shape[:-1].numel()
            floats.clear()
            if block.original is not None:
                with observed_inputs(originals, keep):
                    block.original.run(index)
            with observed_inputs(list(first.values()), add):
                block.run(index)
    return [Moments(sums[name], _whole(crosses.get(name), sums[name])) for name in first]


def input_rows(x: torch.Tensor) -> torch.Tensor:
    """What a layer is given, as the core takes it: [..., K] -> [rows, K]."""
    return x.detach().reshape(-1, x.shape[-1]).contiguous()


def _whole(cross: Any | None, hessian: Any) -> Any | None:
    """`cross` if it has seen all that `hessian` has."""
    return cross if cross is not None and cross.rows == hessian.rows else None


def in_rounds(groups: list[list[Target]], options: Mapping[str, Any]) -> list[list[list[Target]]]:
    """What is calibrated together: with `true_sequential` each group on what the quantized layers
    before it in the block produce; else all of them on the float block."""
    return [[group] for group in groups] if options.get("true_sequential") else [groups]


def output_error(weight: torch.Tensor, matrix: native.QuantizedMatrix, hessian: Any) -> float:
    """tr((W - Q) H (W - Q)^T) / tr(W H W^T): the squared error of the layer's output, relative."""
    return float(native.layer_error(weight, matrix, hessian, torch.get_num_threads()))
