# SPDX-License-Identifier: Apache-2.0
"""Weight-only quantization of language models for CPUs.

Importing this module needs numpy only. Names that need torch or transformers load them on first use.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from woq._native import (
    InvalidArgument,
    Linear,
    QuantizedMatrix,
    Unsupported,
    build_info,
    code_values,
    cpu_info,
    error_metrics,
    quantize_rtn,
    targets,
)

if TYPE_CHECKING:
    from woq.config import RtnConfig, WeightOnlyQuantConfig
    from woq.linear import WeightOnlyLinear
    from woq.quantize import QuantizationReport, quantize
    from woq.transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

__version__: str = build_info()["version"]

# Name -> module that defines it, loaded on first access.
_LAZY = {
    "AutoModelForCausalLM": "woq.transformers",
    "AutoModelForSeq2SeqLM": "woq.transformers",
    "QuantizationReport": "woq.quantize",
    "RtnConfig": "woq.config",
    "WeightOnlyLinear": "woq.linear",
    "WeightOnlyQuantConfig": "woq.config",
    "quantize": "woq.quantize",
}

__all__ = [
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "InvalidArgument",
    "Linear",
    "QuantizationReport",
    "QuantizedMatrix",
    "RtnConfig",
    "Unsupported",
    "WeightOnlyLinear",
    "WeightOnlyQuantConfig",
    "build_info",
    "code_values",
    "cpu_info",
    "error_metrics",
    "get_cmake_dir",
    "get_include",
    "quantize",
    "quantize_rtn",
    "targets",
]


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module 'woq' has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def get_include() -> str:
    """Folder of the C++ headers that this installation carries."""
    return str(Path(__file__).parent / "include")


def get_cmake_dir() -> str:
    """Folder of woqConfig.cmake: pass it to CMake as -Dwoq_DIR=... for find_package(woq)."""
    return str(Path(__file__).parent / "share" / "cmake" / "woq")
