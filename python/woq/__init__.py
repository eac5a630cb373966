# SPDX-License-Identifier: Apache-2.0
"""Weight-only quantization of language models for CPUs.

Importing this module needs numpy only. Names that need torch or transformers load them on first
use.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from woq.core import forks as _forks  # noqa: F401  notes forks from now on
from woq.core import moved
from woq.hf import autoload

if TYPE_CHECKING:
    from woq.config.algorithm_configs import (
        AutoRoundConfig,
        AwqConfig,
        GPTQConfig,
        HqqConfig,
        RtnConfig,
        TeqConfig,
    )
    from woq.config.quant_config import WeightOnlyQuantConfig
    from woq.core.native import (
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
    from woq.generation.pipeline import pipeline
    from woq.hf.auto_model import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM
    from woq.hf.export import ExportReport, export
    from woq.hf.install import install, uninstall
    from woq.hf.saving import save_pretrained
    from woq.hf.tokenizers import AutoTokenizer
    from woq.modules.embedding import WeightOnlyEmbedding
    from woq.modules.layer import WeightOnlyLinear
    from woq.quantizing.imatrix import ImportanceMatrix, collect_imatrix
    from woq.quantizing.planning import LayerPlan, plan_layer_config
    from woq.quantizing.quantize import quantize
    from woq.quantizing.report import QuantizationReport
    from woq.reports.evaluation import Evaluation, evaluate
    from woq.reports.page import write_report

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
        "woq.core.native",
    ),
    "AutoModel": "woq.hf.auto_model",
    "AutoModelForCausalLM": "woq.hf.auto_model",
    "AutoModelForSeq2SeqLM": "woq.hf.auto_model",
    "AutoTokenizer": "woq.hf.tokenizers",
    "ExportReport": "woq.hf.export",
    "Evaluation": "woq.reports.evaluation",
    "LayerPlan": "woq.quantizing.planning",
    "QuantizationReport": "woq.quantizing.report",
    **dict.fromkeys(
        ("AutoRoundConfig", "AwqConfig", "GPTQConfig", "HqqConfig", "RtnConfig", "TeqConfig"),
        "woq.config.algorithm_configs",
    ),
    "ImportanceMatrix": "woq.quantizing.imatrix",
    "WeightOnlyEmbedding": "woq.modules.embedding",
    "WeightOnlyLinear": "woq.modules.layer",
    "WeightOnlyQuantConfig": "woq.config.quant_config",
    "collect_imatrix": "woq.quantizing.imatrix",
    "evaluate": "woq.reports.evaluation",
    "export": "woq.hf.export",
    "install": "woq.hf.install",
    "pipeline": "woq.generation.pipeline",
    "plan_layer_config": "woq.quantizing.planning",
    "quantize": "woq.quantizing.quantize",
    "save_pretrained": "woq.hf.saving",
    "uninstall": "woq.hf.install",
    "write_report": "woq.reports.page",
}

__all__ = [
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoRoundConfig",
    "AutoTokenizer",
    "AwqConfig",
    "Evaluation",
    "ExportReport",
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
    "WeightOnlyEmbedding",
    "WeightOnlyLinear",
    "WeightOnlyQuantConfig",
    "build_info",
    "code_values",
    "collect_imatrix",
    "cpu_info",
    "error_metrics",
    "evaluate",
    "export",
    "get_cmake_dir",
    "get_include",
    "install",
    "pipeline",
    "plan_layer_config",
    "quantize",
    "quantize_rtn",
    "save_pretrained",
    "targets",
    "uninstall",
    "write_report",
]

# transformers learns of woq the moment it loads its quantizers, whichever is imported first.
autoload.install()
moved.install()


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value = importlib.import_module("woq.core.native").build_info()["version"]
    elif name == "compat" or name in moved.MOVED:
        value = _import(f"woq.{name}", name)
    elif name in _LAZY:
        value = getattr(_import(_LAZY[name], name), name)
    else:
        raise AttributeError(f"module 'woq' has no attribute {name!r}")
    globals()[name] = value
    return value


def _import(module: str, name: str) -> Any:
    from woq.core import extras

    with extras.needed_by(f"woq.{name}"):
        return importlib.import_module(module)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def get_include() -> str:
    """Folder of the C++ headers that this installation carries."""
    return str(Path(__file__).parent / "include")


def get_cmake_dir() -> str:
    """Folder of woqConfig.cmake: pass it to CMake as -Dwoq_DIR=... for find_package(woq)."""
    return str(Path(__file__).parent / "share" / "cmake" / "woq")
