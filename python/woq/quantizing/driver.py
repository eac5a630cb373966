# SPDX-License-Identifier: Apache-2.0
"""Calibrates a model block by block: every block is quantized on what the quantized blocks before
it produce, then replaced, and the next one gets its outputs.

In memory at a time: the block at hand, and the hidden states of the calibration data (twice for
algorithms that compare with the float model, GPTAQ with the block's weights, too); what exceeds
`activation_memory` is in a file.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Generator, Iterator, Sequence

import torch
from torch import nn

from ..algorithms.rtn import round_to_nearest
from ..algorithms.shared.finished import Finished, as_stored
from ..config.quant_config import WeightOnlyQuantConfig
from ..core import native
from ..core.units import parse_bytes
from ..modules.targets import Target, linear_parameters
from ..observe.block import Block, Segment, capture, for_calibration, product_dtype, segments
from ..observe.samples import calibration_batches
from .work_dir import WorkDir

__all__ = ["calibrated_layers"]

logger = logging.getLogger("woq")


def calibrated_layers(
    model: nn.Module, config: WeightOnlyQuantConfig, targets: Sequence[Target]
) -> Generator[Finished, None, None]:
    """Yield every target as it is finished. The caller replaces the module before it goes on: the
    next block's inputs come from the model as it is then.

    Layers that the calibration does not reach are rounded to nearest, and say so.

    Raises:
        InvalidArgument: the calibration data is of no use, NaN appears, or the work directory
            belongs to another run.
    """
    pending = {target.name: target for target in targets}
    dtypes = {target.weight_dtype for target in targets}
    if not pending:
        return
    for target in targets:
        _check_finite_weight(target)
    batches = calibration_batches(model, config.dataset, config.tokenizer, config.algorithm_args)
    work = None
    if config.work_dir is not None:
        work = WorkDir(config.work_dir, model, config, batches)
    with for_calibration(model):
        sample = {name: tensor[:1] for name, tensor in batches[0].items()}
        for segment in segments(model, sample, targets):
            yield from _segment(model, config, segment, batches, pending, dtypes, work)
    for name in list(pending):
        yield _fallback(pending.pop(name), config, "outside of the blocks that are calibrated")


def _segment(
    model: nn.Module,
    config: WeightOnlyQuantConfig,
    segment: Segment,
    batches: list[dict[str, torch.Tensor]],
    pending: dict[str, Target],
    dtypes: Collection[str],
    work: WorkDir | None,
) -> Iterator[Finished]:
    method, options = config.method, config.algorithm_args
    # Blocks after the last one with something to do need not run.
    while segment.blocks and not _within(segment.blocks[-1][0], pending):
        segment.blocks.pop()
    if not segment.blocks:
        return
    limit = parse_bytes(config.activation_memory, "activation_memory")
    calls, inputs = capture(model, batches, segment, limit)
    # GPTAQ looks at the float model's inputs of each layer, AutoRound at its outputs of each block.
    originals = method.float_inputs(options)
    references = inputs.copy() if method.float_outputs or originals else None
    float_inputs = method.follows_float(options)
    try:
        for number, (name, module) in enumerate(segment.blocks):
            mine = _within(name, pending)
            # A block without layers to quantize serves those of the others.
            own = {target.weight_dtype for target in mine} or dtypes
            products = product_dtype(module, own, inputs[0].dtype)
            block = Block(name, module, mine, calls.pop(name), inputs, products)
            if references is not None and originals:
                block.original = block.copy(references) if mine else block
            elif references is not None:
                block.references = references
                block.advance(references)
            if mine:
                unreached = _unreached(block)
                for target in unreached:
                    yield _fallback(
                        pending.pop(target.name), config, "no calibration token reached it"
                    )
                block.targets = [target for target in mine if target not in unreached]
                for finished in _block(block, config, work):
                    del pending[finished.target.name]
                    yield finished
            if number + 1 < len(segment.blocks):
                if block.original is not None and references is not None:
                    block.original.advance(references)
                if float_inputs and references is not None:
                    for index in range(len(block)):
                        inputs.replace(index, references[index])
                else:
                    block.advance(inputs)
    finally:
        inputs.close()
        if references is not None:
            references.close()


def _block(block: Block, config: WeightOnlyQuantConfig, work: WorkDir | None) -> Iterator[Finished]:
    """The layers of one block: first the ones that the work directory holds, then the others."""
    if work is not None:
        for target in list(block.targets):
            stored = work.load(target)
            if stored is not None:
                block.targets.remove(target)
                yield stored
    if not block.targets:
        return
    quantize_block = config.method.quantize_block
    assert quantize_block is not None  # else there were no calibration
    for finished in quantize_block(block, config):
        finished = dataclasses.replace(finished, matrix=as_stored(finished.matrix, config))
        if work is not None:
            work.save(finished)
        yield finished


def _within(block: str, pending: dict[str, Target]) -> list[Target]:
    return [target for name, target in pending.items() if name.startswith(f"{block}.")]


def _unreached(block: Block) -> list[Target]:
    reached = {target.name for group in block.groups() for target in group}
    return [target for target in block.targets if target.name not in reached]


def _fallback(target: Target, config: WeightOnlyQuantConfig, reason: str) -> Finished:
    logger.warning("%s: %s; it is rounded to nearest", target.name, reason)
    matrix = round_to_nearest(linear_parameters(target.module), config, target)
    return Finished(target, as_stored(matrix, config), algorithm="RTN", note=reason)


def _check_finite_weight(target: Target) -> None:
    """Before any work is done: NaN in a weight would show as NaN in some later activation."""
    weight = linear_parameters(target.module)
    finite = torch.isfinite(weight)
    if not bool(finite.all()):
        row, column = (~finite).nonzero()[0].tolist()
        raise native.InvalidArgument(
            f"tensor '{target.name}' holds {float(weight[row, column])} at row {row}, column "
            f"{column}; quantization needs finite weights: repair the checkpoint or exclude the "
            "module"
        )
