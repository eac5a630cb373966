# SPDX-License-Identifier: Apache-2.0
"""Registers woq with transformers as soon as transformers loads its quantizers.

torch (2.5 and later) calls `install` on `import torch`, through the entry point group
"torch.backends", and `import woq` calls it too. So a saved woq checkpoint opens in a process that
never imports woq, and the order of imports does not matter. Nothing is imported here before
transformers' quantizers are, and nothing may be raised: an exception would break `import torch`.

With TORCH_DEVICE_BACKEND_AUTOLOAD=0, or torch 2.4, and no `import woq`, transformers warns of an
unknown quantization method and then stops with a shape error at woq's marker tensors
(`woq.formats.stored_tensors.MARKER`): it does not load random weights. `import woq` mends it.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import logging
import sys
from collections.abc import Sequence
from types import ModuleType

__all__ = ["install"]

logger = logging.getLogger("woq")

# The second one matters when torch is first imported from inside the first one: no finder sees the
# end of an import that has begun. Every model class comes after the second.
_WATCHED = ("transformers.quantizers", "transformers.modeling_utils")


def install() -> None:
    """Register now if transformers' quantizers are loaded, else when they are. Never raises."""
    spec = getattr(sys.modules.get(_WATCHED[0]), "__spec__", None)
    if spec is not None and not getattr(spec, "_initializing", False):
        _register()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _register() -> None:
    try:
        importlib.import_module("woq.hf.quantizer")
    except Exception as error:  # noqa: BLE001 (see the module's docstring)
        logger.warning(
            "woq could not register itself with transformers (%s: %s); woq checkpoints will not "
            "load in this process",
            type(error).__name__,
            error,
        )
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]


class _Loader(importlib.abc.Loader):
    """Runs the real loader, then registers."""

    def __init__(self, real: importlib.abc.Loader) -> None:
        self._real = real

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._real.exec_module(module)
        _register()

    def __getattr__(self, name: str) -> object:
        # importlib.resources, inspect and others ask the loader for more than the two above.
        return getattr(self._real, name)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds nothing itself: swaps the loaders of the watched modules."""

    def __init__(self) -> None:
        self._busy = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _WATCHED or self._busy:
            return None
        self._busy = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._busy = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec
