# SPDX-License-Identifier: Apache-2.0
"""Module paths of earlier releases: `import woq.linear` still works, as another name of the module
that it has become.

Both names are one module: what is patched or pickled under one of them is there under the other.
Nothing is imported before somebody asks for an old path.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

__all__ = ["MOVED", "install"]

# Old path -> module, both below `woq.`. `woq.config` and `woq.generation` are rooms of that name.
MOVED = {
    "algorithm_configs": "config.algorithm_configs",
    "auto_model": "hf.auto_model",
    "calibration": "observe.samples",
    "evaluation": "reports.evaluation",
    "imatrix": "quantizing.imatrix",
    "linear": "modules.layer",
    "pipelines": "generation.pipeline",
    "planning": "quantizing.planning",
    "quantization": "quantizing.quantize",
    "report": "quantizing.report",
    "report_page": "reports.page",
    "saving": "hf.saving",
    "transformers": "hf.quantizer",
}


def install() -> None:
    """Make the old paths importable. The finder stands last: it is asked for what no file is."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())


class _Loader(importlib.abc.Loader):
    def __init__(self, name: str) -> None:
        self._name = name

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return None  # importlib makes an empty module, which exec_module replaces

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = importlib.import_module(self._name)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        package, _, old = fullname.partition(".")
        if package != "woq" or old not in MOVED:
            return None
        return importlib.machinery.ModuleSpec(fullname, _Loader(f"woq.{MOVED[old]}"))
