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
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from ..algorithms.rtn import round_to_nearest
from ..algorithms.shared.finished import Finished, as_stored
from ..config.quant_config import WeightOnlyQuantConfig
from ..core import native
from ..core.units import parse_bytes
from ..modules.targets import Target, linear_parameters
from ..observe.activations import Activations
from ..observe.block import Block, for_calibration
from ..observe.samples import calibration_batches
from ..observe.walk import Comparison, FloatInputs, FloatOutputs, FloatPrefix, walk
from .work_dir import WorkDir

__all__ = ["quantize_calibrated"]

logger = logging.getLogger("woq")


def quantize_calibrated(
    model: nn.Module,
    config: WeightOnlyQuantConfig,
    targets: Sequence[Target],
    finish: Callable[[Finished], None],
) -> None:
    """Quantize every target, and call `finish` with each as soon as it is done.

    `finish` replaces the layer in the model: the layers after it are calibrated on what the model
    computes then. Layers that the calibration does not reach are rounded to nearest, and say so.

    Raises:
        InvalidArgument: the calibration data is of no use, NaN appears, or the work directory
            belongs to another run.
    """
    if not targets:
        return
    for target in targets:
        _check_finite_weight(target)
    batches = calibration_batches(model, config.dataset, config.tokenizer, config.algorithm_args)
    work = None
    if config.work_dir is not None:
        work = WorkDir(config.work_dir, model, config, batches)
    left = {target.name: target for target in targets}

    def visit(block: Block) -> None:
        for finished in _quantized(block, config, work):
            del left[finished.target.name]
            finish(finished)

    with for_calibration(model):
        looped = walk(
            model,
            batches,
            targets,
            visit,
            limit=parse_bytes(config.activation_memory, "activation_memory"),
            dtypes={target.weight_dtype for target in targets},
            comparison=_comparison(config),
        )
    what = f"{config.algorithm} would need outputs of the float block"
    for target in left.values():
        reason = "outside of the blocks that are calibrated"
        if target.name.startswith(tuple(f"{name}." for name in looped)):
            reason = f"its block is called more than once in a pass, for which {what}"
        finish(_fallback(target, config, reason))


def _comparison(config: WeightOnlyQuantConfig) -> Callable[[Activations], Comparison]:
    """What the algorithm looks at in the float model: GPTAQ at the inputs of each layer, AutoRound
    at the outputs of each block."""
    method, options = config.method, config.algorithm_args
    if method.float_inputs(options):
        return FloatInputs
    if method.float_outputs:
        return FloatPrefix if method.follows_float(options) else FloatOutputs
    return Comparison


def _quantized(
    block: Block, config: WeightOnlyQuantConfig, work: WorkDir | None
) -> Iterator[Finished]:
    """The layers of one block: first those that no calibration token reaches, then the others, from
    the work directory if that holds them all. Each must be replaced before the next one is asked
    for: some algorithms run the block again."""
    unreached = _unreached(block)
    block.targets = [target for target in block.targets if target not in unreached]
    for target in unreached:
        yield _fallback(target, config, "no calibration token reached it")
    stored = None if work is None else work.load_block(block.targets)
    if stored is not None:
        yield from stored
        return
    quantize_block = config.method.quantize_block
    assert quantize_block is not None  # else there were no calibration
    for finished in quantize_block(block, config):
        finished = dataclasses.replace(finished, matrix=as_stored(finished.matrix, config))
        if work is not None:
            work.save(finished)
        yield finished


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
