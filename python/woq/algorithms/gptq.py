# SPDX-License-Identifier: Apache-2.0
"""GPTQ (arXiv:2210.17323): columns are rounded one after the other, and those that follow make up
for each error. Second moments of the inputs are accumulated here, for each group of layers that
share an input; the core does the rest, layer by layer. With `gptaq_alpha` also the moments with the
float model's inputs (GPTAQ, arXiv:2504.02692)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..config.options import boolean, calibration, integer, number, optional
from ..config.registry import Algorithm
from ..core import native
from .rtn import round_to_nearest

if TYPE_CHECKING:
    import torch

    from ..config.quant_config import WeightOnlyQuantConfig
    from ..modules.targets import Target
    from ..observe.block import Block
    from ..observe.moments import Moments
    from .shared.finished import Finished

__all__ = ["ALGORITHM", "round_columns"]

_DEFAULTS = native.option_defaults()["quantize_gptq"]


def quantize_block(block: Block, config: WeightOnlyQuantConfig) -> Iterator[Finished]:
    """Quantize the layers of `block` in the order of their calls."""
    from ..modules.targets import linear_parameters
    from ..observe.moments import in_rounds, moments, output_error
    from .shared.finished import Finished

    for together in in_rounds(block.groups(), config.algorithm_args):
        found = moments(block, together)
        for group, seen in zip(together, found, strict=True):
            for target in group:
                weight = linear_parameters(target.module)
                matrix, note = round_columns(weight, config, target, seen)
                rounded = round_to_nearest(weight, config, target, mse_range=False)
                yield Finished(
                    target,
                    matrix,
                    loss=output_error(weight, matrix, seen.hessian),
                    start_loss=output_error(weight, rounded, seen.hessian),
                    note=note,
                )


def round_columns(
    weight: torch.Tensor,
    config: WeightOnlyQuantConfig,
    target: Target,
    seen: Moments,
    ranges: torch.Tensor | None = None,
    in_flight: torch.Tensor | None = None,
) -> tuple[native.QuantizedMatrix, str]:
    """Quantizes `weight` [N, K] by GPTQ. Returns the matrix and a note for the report.

    Scales come from the groups of `ranges` [N, K] if it is given, else from the weights in flight.
    The weights in flight are written to `in_flight` [N, K] if it is given. An option that the
    config's algorithm doesn't have takes GPTQ's default."""
    import torch

    options = {**ALGORITHM.complete("GPTQ", {}), **config.algorithm_args}
    facts: dict[str, float] = {}
    matrix = native.quantize_gptq(
        weight,
        seen.hessian,
        target.scheme,
        **ALGORITHM.core_options(options),
        act_order=_act_order(options),
        mse_range=bool(config.mse_range),
        cross=seen.cross,
        ranges=ranges,
        in_flight=in_flight,
        facts=facts,
        name=target.name,
        num_threads=torch.get_num_threads(),
    )
    damp = facts["damp"]
    if damp == options["damp_percent"]:
        return matrix, ""
    return matrix, f"its Hessian is singular: damp_percent was raised to {damp:g}"


def _act_order(options: Mapping[str, Any]) -> str:
    """The core's name for the order in which the columns are taken."""
    if options["desc_act"]:
        return "desc"
    return "group_aware" if options["act_group_aware"] else "none"


def _complete(owner: str, options: dict[str, Any]) -> None:
    if options["act_group_aware"] is None:
        options["act_group_aware"] = not options["desc_act"]
    if options["desc_act"] and options["act_group_aware"]:
        raise native.InvalidArgument(
            f"{owner}: desc_act and act_group_aware exclude each other: both order the columns"
        )


ALGORITHM = Algorithm(
    name="GPTQ",
    summary="rounds column after column, each making up for the errors before it",
    options={
        "blocksize": integer(
            _DEFAULTS["block_size"],
            1,
            help="columns that are corrected together; it changes the result by rounding only",
            also=("block_size",),
            core="block_size",
        ),
        "damp_percent": number(
            _DEFAULTS["damp"],
            "between 0 and 1",
            lambda damp: 0 < damp < 1,
            help="share (not percent) of the moments' mean diagonal that is added to the diagonal",
            also=("damp", "percdamp"),
            core="damp",
        ),
        "desc_act": boolean(
            False,
            help="columns with large inputs first, in groups of that order: stores g_idx",
            also=("act_order", "actorder"),
        ),
        "act_group_aware": optional(
            boolean(
                False,
                help="groups with large inputs first, and so within each; None: unless desc_act",
            )
        ),
        "static_groups": boolean(
            _DEFAULTS["static_groups"],
            help="scales of the weights as they were",
            core="static_groups",
        ),
        "true_sequential": boolean(
            False, help="layers of a block see what those before them in the block became"
        ),
        "gptaq_alpha": number(
            _DEFAULTS["gptaq_alpha"],
            "from 0 to 1",
            lambda alpha: 0 <= alpha <= 1,
            help="how far to make up for inputs that differ from the float model's (GPTAQ)",
            core="gptaq_alpha",
        ),
        **calibration(nsamples=128, seqlen=512),
    },
    complete_options=_complete,
    quantize_block=quantize_block,
    round_scaled=round_columns,
    mse_range=True,
    stores_g_idx=lambda options: options["desc_act"] and not options["static_groups"],
    float_inputs=lambda options: options["gptaq_alpha"] > 0,
)
