# SPDX-License-Identifier: Apache-2.0
"""Other libraries' interfaces over woq, for code that was written for them. Nothing here is active
until it is asked for."""

from . import auto_gptq, awq, ctransformers, itrex

__all__ = ["auto_gptq", "awq", "ctransformers", "itrex"]
