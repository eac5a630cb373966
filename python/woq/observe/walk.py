# SPDX-License-Identifier: Apache-2.0
"""The one loop over a model's blocks: `walk` hands each of them to its caller, on the inputs that
the blocks before it produce, and runs it when the caller is done with it.

What the caller may want of the float model besides is a class of its own, a `Comparison`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import closing

from torch import nn

from ..modules.targets import Target
from .activations import Activations, Call
from .block import Block, LoopedBlock, product_dtype
from .recorder import Batch, capture, segments

__all__ = ["Comparison", "FloatInputs", "FloatOutputs", "FloatPrefix", "walk"]


class Comparison:
    """What is kept of the float model beside the one that is walked through: here nothing."""

    def __init__(self, inputs: Activations) -> None:
        """`inputs` are those of a segment's first block; the walk replaces them as it goes on."""

    def before(self, block: Block) -> None:
        """Give `block` what its visitor compares with. Its layers are still the float ones."""

    def after(self, block: Block) -> None:
        """Turn the inputs of `block` into those of the next block."""
        block.advance(block.inputs)

    def close(self) -> None:
        """Release what was kept."""


class FloatOutputs(Comparison):
    """`block.references`: the outputs of the float block, on the float model's inputs."""

    def __init__(self, inputs: Activations) -> None:
        self._states = inputs.copy()

    def before(self, block: Block) -> None:
        block.advance(self._states)
        block.references = self._states

    def close(self) -> None:
        self._states.close()


class FloatPrefix(FloatOutputs):
    """`block.references` likewise; and each block is given the float model's inputs, not what the
    blocks before it make of theirs."""

    def after(self, block: Block) -> None:
        for index in range(len(block)):
            block.inputs.replace(index, self._states[index])


class FloatInputs(Comparison):
    """`block.original`: the float block, on the float model's inputs."""

    def __init__(self, inputs: Activations) -> None:
        self._states = inputs.copy()

    def before(self, block: Block) -> None:
        # A block without targets stays as it is, so it needs no copy.
        block.original = block.copy(self._states) if block.targets else block

    def after(self, block: Block) -> None:
        assert block.original is not None
        block.original.advance(self._states)
        super().after(block)

    def close(self) -> None:
        self._states.close()


def walk(
    model: nn.Module,
    batches: Sequence[Batch],
    targets: Sequence[Target],
    visit: Callable[[Block], None],
    *,
    limit: int,
    dtypes: Collection[str],
    comparison: Callable[[Activations], Comparison] = Comparison,
) -> list[str]:
    """Call `visit(block)` for each block that holds some of `targets`, in the order in which the
    model runs them. Targets outside of the blocks are not visited.

    Returns the names of blocks that are not visited either: those that are called more than once in
    a forward pass, which have no outputs that a `comparison` could keep.

    `visit` may replace layers of the block. When it returns, the block as it is then computes the
    next one's inputs. The model must be in the state of `for_calibration`.

    Args:
        limit: bytes of hidden states beyond which they lie in a file (`Activations`).
        dtypes: weight dtypes of the layers behind a block that holds none of `targets`; they decide
            how exactly it computes (`product_dtype`).
        comparison: makes, for each segment of blocks, what its blocks are given of the float model.

    Raises:
        InvalidArgument: hidden states with NaN or Inf.
    """
    sample = {name: tensor[:1] for name, tensor in batches[0].items()}
    left = []
    for segment in segments(model, sample, targets):
        if segment.looped:
            name = segment.blocks[0][0]
            if comparison is not Comparison:
                left.append(name)
            elif mine := _within(name, targets):
                _visit_looped(model, batches, name, mine, visit, limit)
            continue
        # Blocks after the last one that holds targets need not run.
        while segment.blocks and not _within(segment.blocks[-1][0], targets):
            segment.blocks.pop()
        if not segment.blocks:
            continue
        calls, inputs = capture(model, batches, segment, limit)
        with closing(inputs), closing(comparison(inputs)) as floats:
            last = segment.blocks[-1][0]
            for name, module in segment.blocks:
                mine = _within(name, targets)
                own = {target.weight_dtype for target in mine} or dtypes
                products = product_dtype(module, own, inputs[0].dtype)
                block = Block(name, module, mine, calls.pop(name), inputs, products)
                floats.before(block)
                if mine:
                    visit(block)
                if name != last:
                    floats.after(block)
    return left


def _visit_looped(
    model: nn.Module,
    batches: Sequence[Batch],
    name: str,
    targets: list[Target],
    visit: Callable[[Block], None],
    limit: int,
) -> None:
    calls = [
        Call((), {key: value for key, value in batch.items() if key != "input_ids"}, "input_ids")
        for batch in batches
    ]
    dtype = targets[0].module.weight.dtype
    products = product_dtype(model, {target.weight_dtype for target in targets}, dtype)
    with closing(Activations(limit)) as inputs:
        for batch in batches:
            inputs.append(batch["input_ids"])
        visit(LoopedBlock(name, model, targets, calls, inputs, products))


def _within(block: str, targets: Sequence[Target]) -> list[Target]:
    return [target for target in targets if target.name.startswith(f"{block}.")]
