# SPDX-License-Identifier: Apache-2.0
"""AutoAWQ's settings of a quantization, with its fields and its defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..core.native import InvalidArgument, Unsupported
from ._arguments import check_known

__all__ = ["AwqConfig"]

# Names of transformers' config, which AutoAWQ writes into config.json.
_OTHER_NAMES = {"bits": "w_bit", "group_size": "q_group_size"}


@dataclasses.dataclass
class AwqConfig:
    """What `quantize` is given as a dict.

    Args:
        quant_method: "awq".
        zero_point: with zero points; False: symmetric.
        q_group_size: weights that share a scale; -1: a row.
        w_bit: 4.
        version: "GEMM"; the other layouts are for kernels of GPUs.
        modules_to_not_convert: parts of names of layers that stay in floating point.

    Raises:
        InvalidArgument: a field has a value that AutoAWQ does not take.
        Unsupported: another layout than GEMM.
    """

    quant_method: str = "awq"
    zero_point: bool = True
    q_group_size: int = 128
    w_bit: int = 4
    version: str = "GEMM"
    modules_to_not_convert: list[str] | None = None

    def __post_init__(self) -> None:
        if str(self.quant_method).lower() != "awq":
            raise InvalidArgument(
                f"quant_config['quant_method'] must be 'awq', got {self.quant_method!r}"
            )
        if not isinstance(self.zero_point, bool):
            raise InvalidArgument(
                f"quant_config['zero_point'] must be True or False, got {self.zero_point!r}"
            )
        size = self.q_group_size
        if not isinstance(size, int) or isinstance(size, bool) or not (size == -1 or size > 0):
            raise InvalidArgument(
                f"quant_config['q_group_size'] must be -1 or a positive number, got {size!r}"
            )
        if self.w_bit != 4 or isinstance(self.w_bit, bool):
            raise InvalidArgument(f"quant_config['w_bit'] must be 4, got {self.w_bit!r}")
        if str(self.version).lower() != "gemm":
            raise Unsupported(
                f"quant_config['version'] {self.version!r} is a layout for kernels of GPUs; woq "
                "writes and reads 'GEMM'"
            )
        names = self.modules_to_not_convert
        if names is not None and not (
            isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
        ):
            raise InvalidArgument(
                f"quant_config['modules_to_not_convert'] must be a list of names, got {names!r}"
            )

    @classmethod
    def from_dict(cls, quant_config: Mapping[str, Any] | None = None) -> AwqConfig:
        """The fields that are given; AutoAWQ's defaults for the others."""
        if not isinstance(quant_config, Mapping | None):
            raise InvalidArgument(
                'quant_config must be a dict such as {"zero_point": True, "q_group_size": 128, '
                f'"w_bit": 4, "version": "GEMM"}}, got {quant_config!r}'
            )
        given = {_OTHER_NAMES.get(name, name): v for name, v in (quant_config or {}).items()}
        check_known("quant_config", given, [field.name for field in dataclasses.fields(cls)])
        return cls(**given)

    def to_dict(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        del values["quant_method"]
        return values

    def to_transformers_dict(self) -> dict[str, Any]:
        """What config.json says of a checkpoint."""
        return {
            "quant_method": self.quant_method,
            "zero_point": self.zero_point,
            "group_size": self.q_group_size,
            "bits": self.w_bit,
            "version": self.version.lower(),
            "modules_to_not_convert": self.modules_to_not_convert,
        }
