# SPDX-License-Identifier: Apache-2.0
"""Weight-only quantization of language models for CPUs.

Importing this module needs numpy only. Names that need torch or transformers load them on first
use.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from woq import _autoload

if TYPE_CHECKING:
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
    from woq.algorithm_configs import (
        AutoRoundConfig,
        AwqConfig,
        GPTQConfig,
        HqqConfig,
        RtnConfig,
        TeqConfig,
    )
    from woq.auto_model import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM
    from woq.config import WeightOnlyQuantConfig
    from woq.evaluation import Evaluation, evaluate
    from woq.imatrix import ImportanceMatrix, collect_imatrix
    from woq.linear import WeightOnlyLinear
    from woq.pipelines import pipeline
    from woq.planning import LayerPlan, plan_layer_config
    from woq.quantization import quantize
    from woq.report import QuantizationReport
    from woq.report_page import write_report
    from woq.saving import save_pretrained

    __version__: str

# Name -> module that defines it, loaded on first access. The C++ core is among them: `import torch`
# imports this package through its entry point, and must work even where the core cannot be loaded.
_LAZY = {
    **dict.fromkeys(
        (
            "InvalidArgument",
            "Linear",
            "QuantizedMatrix",
            "Unsupported",
            "build_info",
            "code_values",
            "cpu_info",
            "error_metrics",
            "quantize_rtn",
            "targets",
        ),
        "woq._native",
    ),
    "AutoModel": "woq.auto_model",
    "AutoModelForCausalLM": "woq.auto_model",
    "AutoModelForSeq2SeqLM": "woq.auto_model",
    "Evaluation": "woq.evaluation",
    "LayerPlan": "woq.planning",
    "QuantizationReport": "woq.report",
    **dict.fromkeys(
        ("AutoRoundConfig", "AwqConfig", "GPTQConfig", "HqqConfig", "RtnConfig", "TeqConfig"),
        "woq.algorithm_configs",
    ),
    "ImportanceMatrix": "woq.imatrix",
    "WeightOnlyLinear": "woq.linear",
    "WeightOnlyQuantConfig": "woq.config",
    "collect_imatrix": "woq.imatrix",
    "evaluate": "woq.evaluation",
    "pipeline": "woq.pipelines",
    "plan_layer_config": "woq.planning",
    "quantize": "woq.quantization",
    "save_pretrained": "woq.saving",
    "write_report": "woq.report_page",
}

__all__ = [
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoRoundConfig",
    "AwqConfig",
    "Evaluation",
    "GPTQConfig",
    "HqqConfig",
    "ImportanceMatrix",
    "InvalidArgument",
    "LayerPlan",
    "Linear",
    "QuantizationReport",
    "QuantizedMatrix",
    "RtnConfig",
    "TeqConfig",
    "Unsupported",
    "WeightOnlyLinear",
    "WeightOnlyQuantConfig",
    "build_info",
    "code_values",
    "collect_imatrix",
    "cpu_info",
    "error_metrics",
    "evaluate",
    "get_cmake_dir",
    "get_include",
    "pipeline",
    "plan_layer_config",
    "quantize",
    "quantize_rtn",
    "save_pretrained",
    "targets",
    "write_report",
]

# transformers learns of woq the moment it loads its quantizers, whichever is imported first.
_autoload.install()


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value = importlib.import_module("woq._native").build_info()["version"]
    elif name == "compat":
        value = importlib.import_module("woq.compat")
    elif name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
    else:
        raise AttributeError(f"module 'woq' has no attribute {name!r}")
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
