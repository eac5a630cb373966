# SPDX-License-Identifier: Apache-2.0
"""The algorithms that look at what a model computes: a table of name -> implementation.

One file each. An implementation takes a block (`woq.observe.block.Block`) and the config and
yields each layer as it is finished. RTN looks at nothing, and is done by `woq.quantizing.quantize`
itself.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ..config.quant_config import WeightOnlyQuantConfig
from ..observe.block import Block
from .interface import Finished

__all__ = ["ALGORITHMS", "Algorithm", "Finished", "QuantizeBlock"]

QuantizeBlock = Callable[[Block, WeightOnlyQuantConfig], Iterator[Finished]]


class Algorithm(NamedTuple):
    module: str  # of this package, with a function quantize_block
    references: bool  # needs the float model's outputs of each block

    def load(self) -> QuantizeBlock:
        function: QuantizeBlock = importlib.import_module(
            f"{__name__}.{self.module}"
        ).quantize_block
        return function


ALGORITHMS: dict[str, Algorithm] = {
    "GPTQ": Algorithm("gptq", references=False),
    "AWQ": Algorithm("awq", references=False),
    "TEQ": Algorithm("teq", references=False),
    "AWQ+GPTQ": Algorithm("awq", references=False),
    "TEQ+GPTQ": Algorithm("teq", references=False),
    "AUTOROUND": Algorithm("autoround", references=True),
}
