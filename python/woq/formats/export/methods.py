# SPDX-License-Identifier: Apache-2.0
"""The formats that are written."""

from __future__ import annotations

from collections.abc import Mapping

from .awq import AwqExport
from .bitsandbytes import BitsandbytesExport
from .compressed_tensors import CompressedTensorsExport
from .form import ExportFormat
from .gptq import GptqExport

__all__ = ["EXPORT_FORMATS"]

# The one list, by name; the first is what most engines take.
EXPORT_FORMATS: Mapping[str, type[ExportFormat]] = {
    each.name: each for each in (CompressedTensorsExport, GptqExport, AwqExport, BitsandbytesExport)
}
