# SPDX-License-Identifier: Apache-2.0
"""Code that imports Intel Extension for Transformers (ITREX, archived in 2024) runs on woq.

    import woq.compat.itrex

    woq.compat.itrex.install()
    from intel_extension_for_transformers.transformers import AutoModelForCausalLM, RtnConfig

ITREX 1.2 to 1.4 are covered as far as weight-only quantization goes. Nothing is written to disk:
the modules exist in this process, from `install` to `uninstall`.
"""

from __future__ import annotations

from ..core.extras import needed_by
from ..core.installed import Installation, Installed
from . import _removed_tasks
from ._stand_in import StandIn

__all__ = ["install", "uninstall"]

_CONFIGS = ("AutoRoundConfig", "AwqConfig", "GPTQConfig", "RtnConfig", "TeqConfig",
            "WeightOnlyQuantConfig")  # fmt: skip
_MODELS = ("AutoModel", "AutoModelForCausalLM", "AutoModelForSeq2SeqLM")
_TRANSFORMERS = {
    **dict.fromkeys(_CONFIGS, "woq.compat._itrex_configs"),
    **dict.fromkeys(_MODELS, "woq.compat._itrex_models"),
    "BitsAndBytesConfig": "transformers",
}
_COVERS = "ITREX's weight-only quantization"
# What ITREX has besides, so that whoever imports it is told more than "cannot import name".
_NOT_WEIGHT_ONLY = (
    "DynamicQuantConfig MixedPrecisionConfig NoTrainerOptimizer OptimizedModel PrunerConfig "
    "QuantAwareTrainingConfig QuantizationConfig SmoothQuantConfig SparsityConfig "
    "StaticQuantConfig qbits"
)
_STAND_IN = StandIn(
    package="intel_extension_for_transformers",
    distribution="intel-extension-for-transformers",
    owner=__name__,
    version="1.4.2+woq",
    covers=_COVERS,
    # 1.3 has utils.utils, 1.4 tools.utils.
    names={
        "": {},
        ".transformers": _TRANSFORMERS,
        ".utils": {},
        ".utils.utils": {"is_ipex_available": __name__},
        ".tools": {},
        ".tools.utils": {"is_ipex_available": __name__},
    },
    absent=dict.fromkeys(
        _NOT_WEIGHT_ONLY.split(), f"it covers {_COVERS} ({', '.join(sorted(_TRANSFORMERS))})"
    ),
)


def install(*, pipelines: bool = True) -> Installed:
    """Make `import intel_extension_for_transformers` find woq. Calling it again changes nothing.

    It holds until `uninstall()`, or as `with install():` to the end of the block.

    Args:
        pipelines: also give `transformers.pipeline` back the tasks of encoder-decoder models that
            transformers 5 removed ("text2text-generation", "summarization", "translation"); they
            are `woq.pipeline`'s. Code for ITREX uses them; False leaves transformers alone.

    Raises:
        Unsupported: the real ITREX is installed.
    """
    call = _INSTALLATION.open()
    if pipelines:
        with needed_by("woq.compat.itrex"):
            _removed_tasks.restore()
    return call


def uninstall() -> None:
    """Undo `install`: the modules are gone for later imports, transformers is as it was.

    Names that were imported meanwhile go on working. Without `install` nothing happens.
    """
    _INSTALLATION.close_all()


def is_ipex_available() -> bool:
    """False: woq computes on CPUs, with kernels of its own."""
    return False


def _put_back() -> None:
    _STAND_IN.put_back()
    _removed_tasks.remove()


_INSTALLATION = Installation(_STAND_IN.put, _put_back)
