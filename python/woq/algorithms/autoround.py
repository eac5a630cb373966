# SPDX-License-Identifier: Apache-2.0
"""AutoRound (SignRound, arXiv:2309.05516): learns, block by block, whether each weight is rounded
up or down and how far each group's range reaches, by signed gradient descent on the error of the
block's output.

Differences from the paper: tuning starts from what GPTQ makes of each layer (`start="rtn"` is the
paper's), with smaller steps; the factors on the ranges may also exceed 1; the last parameters are
kept unless the start was better on the same batches, where the paper compares the losses of
different batches. docs/quality.md shows what the start is worth.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..config.options import boolean, calibration, choice, integer, number, optional
from ..config.registry import Algorithm
from .gptq import round_columns
from .rtn import round_to_nearest

if TYPE_CHECKING:
    import torch

    from ..config.quant_config import WeightOnlyQuantConfig
    from ..modules.targets import Target
    from ..observe.block import Block
    from .shared.finished import Finished
    from .shared.tuned_rounding import Rounding

__all__ = ["ALGORITHM"]

# Keeps the relative error of a block whose output is zero finite.
_SMALL = 1e-12
# Batches on which the start and the end are compared.
_COMPARED = 2
# The whole way that an offset can go in all steps together is half of the rate times the steps:
# from RTN to the neighbouring code, from GPTQ's codes, which are good already, a part of it.
_RATE_TIMES_STEPS = {"rtn": 1.0, "gptq": 0.3}
# Of the ranges' rate to the offsets', after GPTQ: its scales fit its codes.
_RANGE_RATE = {"rtn": 1.0, "gptq": 0.3}


def quantize_block(block: Block, config: WeightOnlyQuantConfig) -> Iterator[Finished]:
    """Tune the rounding of all targets of `block` together.

    `block.references` are the outputs to come near to; `block.inputs` what the block is given.
    The tuned matrices are yielded with the loss before and after.
    """
    from ..modules.targets import linear_parameters
    from .shared.finished import Finished

    options = config.algorithm_args
    if options["iters"] == 0:
        for target in block.targets:
            weight = linear_parameters(target.module)
            yield Finished(target, round_to_nearest(weight, config, target, mse_range=False))
        return
    starts = _after_gptq if options["start"] == "gptq" else _after_rtn
    roundings, notes = {}, {}
    for target, rounding, note in starts(block, config):
        roundings[target.name], notes[target.name] = rounding, note
    before, after = _tune(block, roundings, options)
    for target in list(block.targets):
        matrix = roundings.pop(target.name).matrix()
        yield Finished(target, matrix, loss=after, start_loss=before, note=notes[target.name])


def _after_rtn(
    block: Block, config: WeightOnlyQuantConfig
) -> Iterator[tuple[Target, Rounding, str]]:
    """For each layer: its target, the rounding that tuning starts from, a note for the report."""
    from ..modules.targets import linear_parameters
    from .shared.tuned_rounding import Rounding

    for target in block.targets:
        weight = linear_parameters(target.module)
        start = round_to_nearest(weight, config, target)
        dtype = _product_dtype(block, weight)
        yield target, Rounding(weight.float(), start, target.scheme, dtype), ""


def _after_gptq(
    block: Block, config: WeightOnlyQuantConfig
) -> Iterator[tuple[Target, Rounding, str]]:
    """GPTQ's result as a rounding to nearest: that of the weights as they were in flight."""
    import torch

    from ..modules.targets import linear_parameters
    from ..observe.moments import moments
    from .shared.tuned_rounding import Rounding

    groups = block.groups()
    found = moments(block, groups)[::-1]
    for group in groups:
        moment = found.pop()  # not held beside the tuning's state
        for target in group:
            weight = linear_parameters(target.module)
            in_flight = torch.empty(*target.shape)
            start, note = round_columns(weight, config, target, moment, in_flight=in_flight)
            dtype = _product_dtype(block, weight)
            yield target, Rounding(in_flight, start, target.scheme, dtype), note


def _tune(
    block: Block, roundings: dict[str, Rounding], options: Mapping[str, Any]
) -> tuple[float, float]:
    """Change `roundings` in place; the loss before and after."""
    import torch

    steps = int(options["iters"])
    start = options["start"]
    offset_lr = options["lr"] or _RATE_TIMES_STEPS[start] / steps
    range_lr = options["minmax_lr"] or offset_lr * _RANGE_RATE[start]
    ranges: list[torch.Tensor] = []
    if options["enable_minmax_tuning"]:
        ranges = [factor for rounding in roundings.values() for factor in rounding.ranges()]
    compared = range(min(len(block), _COMPARED))
    before = _mean_loss(block, roundings, compared)
    generator = torch.Generator().manual_seed(int(options["seed"]))
    order: list[int] = []
    for factor in ranges:
        factor.requires_grad_(True)
    for step in range(steps):
        if not order:
            order = torch.randperm(len(block), generator=generator).tolist()
        remaining = 1 - step / steps  # linear decay to 0
        for rounding in roundings.values():
            rounding.rate = offset_lr * remaining
        weights = {name: rounding.weight() for name, rounding in roundings.items()}
        _loss(block, order.pop(), weights).backward()  # moves the offsets, too
        with torch.no_grad():
            for factor in ranges:
                if factor.grad is not None:
                    factor.add_(factor.grad.sign_(), alpha=-range_lr * remaining)
                    factor.grad = None
            for rounding in roundings.values():
                rounding.clamp_()
    for rounding in roundings.values():
        rounding.rate = 0.0
    for factor in ranges:
        factor.requires_grad_(False)
    after = _mean_loss(block, roundings, compared)
    if after < before:
        return before, after
    for rounding in roundings.values():
        rounding.reset()
    return before, before


def _mean_loss(block: Block, roundings: Mapping[str, Rounding], batches: Iterable[int]) -> float:
    import torch

    with torch.no_grad():
        weights = {name: rounding.weight() for name, rounding in roundings.items()}
        return float(torch.stack([_loss(block, index, weights) for index in batches]).mean())


def _loss(block: Block, index: int, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """sum (y - y_q)^2 / sum y^2 of the block's output, for batch `index`."""
    assert block.references is not None
    reference = block.references[index].float()
    with block.fast_products():
        output = block.run(index, weights=weights)
    power = reference.square().sum().clamp_(min=_SMALL)
    return (output.float() - reference).square().sum() / power


def _product_dtype(block: Block, weight: torch.Tensor) -> torch.dtype:
    """What the block multiplies in."""
    import torch

    if block.products is not None:
        return block.products
    return torch.float32 if weight.dtype == torch.float16 else weight.dtype


def _rate(text: str) -> Any:
    return optional(number(1.0, "above 0", lambda rate: rate > 0, help=text))


ALGORITHM = Algorithm(
    name="AUTOROUND",
    summary="learns to round up or down, block by block",
    options={
        "lr": _rate("the offsets' first step; None: 0.3 / iters after GPTQ, 1 / iters after RTN"),
        "minmax_lr": _rate("the ranges' first step; None: 0.3 lr after GPTQ, lr after RTN"),
        "enable_minmax_tuning": boolean(True, help="also learn how far each group's range reaches"),
        "enable_quanted_input": boolean(
            True, help="tune on what the quantized blocks before give; False: the float ones"
        ),
        "start": choice(("gptq", "rtn"), "gptq", help="what is tuned; the paper's is rtn"),
        "iters": integer(10, 0, help="steps; 0: round to nearest", also=("steps",)),
        **calibration(nsamples=32, seqlen=512, batch_size=4),
    },
    quantize_block=quantize_block,
    mse_range=True,
    float_outputs=True,
    follows_float=lambda options: not options["enable_quanted_input"],
)
