# SPDX-License-Identifier: Apache-2.0
"""Code that imports Intel Extension for Transformers (ITREX, archived in 2024) runs on woq.

    import woq.compat.itrex

    woq.compat.itrex.install()
    from intel_extension_for_transformers.transformers import AutoModelForCausalLM, RtnConfig

ITREX 1.2 to 1.4 are covered as far as weight-only quantization goes. Nothing is written to disk:
the modules exist in this process, from `install` to `uninstall`.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from ..core.extras import needed_by
from ..core.native import Unsupported
from . import _removed_tasks

__all__ = ["install", "uninstall"]

logger = logging.getLogger("woq")

_PACKAGE = "intel_extension_for_transformers"
# The version whose interface this is; the local part tells it from the real one.
_VERSION = "1.4.2+woq"

_CONFIGS = ("AutoRoundConfig", "AwqConfig", "GPTQConfig", "RtnConfig", "TeqConfig",
            "WeightOnlyQuantConfig")  # fmt: skip
_MODELS = ("AutoModel", "AutoModelForCausalLM", "AutoModelForSeq2SeqLM")

# Module -> its names -> where they come from; loaded on first use, for some need torch. 1.3 has
# utils.utils, 1.4 tools.utils.
_NAMES: dict[str, dict[str, str]] = {
    "": {},
    ".transformers": {
        **dict.fromkeys(_CONFIGS, "woq.compat._itrex_configs"),
        **dict.fromkeys(_MODELS, "woq.compat._itrex_models"),
        "BitsAndBytesConfig": "transformers",
    },
    ".utils": {},
    ".utils.utils": {"is_ipex_available": "woq.compat.itrex"},
    ".tools": {},
    ".tools.utils": {"is_ipex_available": "woq.compat.itrex"},
}
# What ITREX has besides, so that whoever imports it is told more than "cannot import name".
_NOT_WEIGHT_ONLY = frozenset(
    "DynamicQuantConfig MixedPrecisionConfig NoTrainerOptimizer OptimizedModel PrunerConfig "
    "QuantAwareTrainingConfig QuantizationConfig SmoothQuantConfig SparsityConfig "
    "StaticQuantConfig qbits".split()
)


def install(*, pipelines: bool = True) -> None:
    """Make `import intel_extension_for_transformers` find woq. Calling it again changes nothing.

    Args:
        pipelines: also give `transformers.pipeline` back the tasks of encoder-decoder models that
            transformers 5 removed ("text2text-generation", "summarization", "translation"); they
            are `woq.pipeline`'s. Code for ITREX uses them; False leaves transformers alone.

    Raises:
        Unsupported: the real ITREX is installed.
    """
    present = _is_ours(sys.modules.get(_PACKAGE))
    if not present:
        _refuse_real_package()
    if pipelines:
        with needed_by("woq.compat.itrex"):
            _removed_tasks.restore()
    if not present:
        for suffix, names in _NAMES.items():
            _add_module(suffix, names)
        sys.meta_path.append(_OTHER_MODULES)
        logger.info("%s is woq.compat.itrex in this process", _PACKAGE)


def uninstall() -> None:
    """Undo `install`: the modules are gone for later imports, transformers is as it was.

    Names that were imported meanwhile go on working. Without `install` nothing happens.
    """
    if _is_ours(sys.modules.get(_PACKAGE)):
        for suffix in _NAMES:
            sys.modules.pop(_PACKAGE + suffix, None)
        sys.meta_path.remove(_OTHER_MODULES)
    _removed_tasks.remove()


class _OtherModules(MetaPathFinder):
    """Says of ITREX's other modules why they are not there; asked after all other finders."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.startswith(_PACKAGE + "."):
            raise ModuleNotFoundError(
                f"woq.compat.itrex has no {fullname}: it covers ITREX's weight-only quantization, "
                f"in {', '.join(_PACKAGE + suffix for suffix in _NAMES if suffix)}",
                name=fullname,
            )
        return None


_OTHER_MODULES = _OtherModules()


def is_ipex_available() -> bool:
    """False: woq computes on CPUs, with kernels of its own."""
    return False


def _refuse_real_package() -> None:
    if _PACKAGE not in sys.modules and importlib.util.find_spec(_PACKAGE) is None:
        return
    raise Unsupported(
        f"{_PACKAGE} is installed in this environment, and woq does not stand in for it: leave out "
        "woq.compat.itrex.install(), or uninstall the package "
        "(pip uninstall intel-extension-for-transformers)"
    )


def _is_ours(module: ModuleType | None) -> bool:
    spec = getattr(module, "__spec__", None)
    return spec is not None and spec.origin == __name__


def _add_module(suffix: str, names: dict[str, str]) -> None:
    name = _PACKAGE + suffix
    module = ModuleType(name, f"Part of ITREX's interface, from {__name__}.")
    module.__spec__ = ModuleSpec(name, None, origin=__name__, is_package=True)
    module.__path__ = []  # a package, with no files to look for modules in
    module.__dict__["__all__"] = sorted(names)
    module.__dict__["__getattr__"] = _finder(module, names)
    module.__dict__["__version__"] = _VERSION
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)


def _finder(module: ModuleType, names: dict[str, str]) -> Callable[[str], Any]:
    def find(name: str) -> Any:
        if name in names:
            with needed_by(f"{name} of woq.compat.itrex"):
                value = getattr(importlib.import_module(names[name]), name)
            setattr(module, name, value)
            return value
        if name in _NOT_WEIGHT_ONLY:
            raise ImportError(
                f"woq.compat.itrex has no {name}: it covers ITREX's weight-only quantization "
                f"({', '.join(sorted(_NAMES['.transformers']))})"
            )
        raise AttributeError(f"module {module.__name__!r} (woq.compat.itrex) has no {name!r}")

    return find
