# SPDX-License-Identifier: Apache-2.0
"""The settings of a quantization.

- quant_config: `woq.WeightOnlyQuantConfig`, which every other way to write settings becomes
- registry: the algorithms by name, and what woq has to know of each
- options: what an option of an algorithm is
- algorithm_configs: one class for each algorithm, with the field names of ITREX and transformers
"""

# Not the classes of algorithm_configs: these ask the algorithms for their options when they are
# defined, and the algorithms import this room.
from .quant_config import FORMAT_VERSION, WeightOnlyQuantConfig

__all__ = ["FORMAT_VERSION", "WeightOnlyQuantConfig"]
