# SPDX-License-Identifier: Apache-2.0
"""The settings of a quantization.

- quant_config: `woq.WeightOnlyQuantConfig`, which every other way to write settings becomes
- algorithm_configs: one class for each algorithm, with the field names of ITREX and transformers
- options: which options each algorithm takes, with their defaults
"""

from .algorithm_configs import (
    AutoRoundConfig,
    AwqConfig,
    GPTQConfig,
    HqqConfig,
    RtnConfig,
    TeqConfig,
)
from .quant_config import FORMAT_VERSION, WeightOnlyQuantConfig

__all__ = [
    "FORMAT_VERSION",
    "AutoRoundConfig",
    "AwqConfig",
    "GPTQConfig",
    "HqqConfig",
    "RtnConfig",
    "TeqConfig",
    "WeightOnlyQuantConfig",
]
