# SPDX-License-Identifier: Apache-2.0
"""The formats that are written, by name. Light, for the command line."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .form import ExportFormat

__all__ = ["ALL_FORMATS", "EXPORT_FORMATS", "GGUF", "export_format"]

# One file, and not a folder of safetensors: it has no class here.
GGUF = "gguf"

# Name: module and class. The first is what most engines take.
EXPORT_FORMATS: Mapping[str, tuple[str, str]] = {
    "compressed-tensors": ("compressed_tensors", "CompressedTensorsExport"),
    "compressed-tensors-int8": ("compressed_tensors", "CompressedInt8Export"),
    "gptq": ("gptq", "GptqExport"),
    "awq": ("awq", "AwqExport"),
    "bitsandbytes": ("bitsandbytes", "BitsandbytesExport"),
}

ALL_FORMATS = (*EXPORT_FORMATS, GGUF)


def export_format(name: str) -> type[ExportFormat]:
    """The class of a format in EXPORT_FORMATS."""
    module, attribute = EXPORT_FORMATS[name]
    kind: type[ExportFormat] = getattr(
        importlib.import_module(f".{module}", __package__), attribute
    )
    return kind
