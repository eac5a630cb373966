# SPDX-License-Identifier: Apache-2.0
"""Code that imports AutoAWQ (archived in 2025) runs on woq.

    import woq.compat.awq

    woq.compat.awq.install()
    from awq import AutoAWQForCausalLM

Models are quantized by woq's AWQ, and written and read in AutoAWQ's format.
"""

from __future__ import annotations

from ..core.installed import Installation, Installed
from ._stand_in import StandIn

__all__ = ["install", "uninstall"]

_AUTO = {"AutoAWQForCausalLM": "woq.compat._awq_models"}
_BASE = {"BaseAWQForCausalLM": "woq.compat._awq_models"}
_CONFIG = {"AwqConfig": "woq.compat._awq_config"}
_STAND_IN = StandIn(
    package="awq",
    distribution="autoawq",
    owner=__name__,
    version="0.2.9+woq",
    covers="quantizing, saving, loading and running causal language models",
    names={
        "": _AUTO,
        ".models": {**_AUTO, **_BASE},
        ".models.auto": _AUTO,
        ".models.base": _BASE,
        ".models._config": _CONFIG,
    },
)


def install(*, on_cpu: bool = False) -> Installed:
    """Make `import awq` find woq. Calling it again changes nothing.

    It holds until `uninstall()`, or as `with install():` to the end of the block.

    Args:
        on_cpu: run on the CPU, and log, what asks for a GPU (`device_map={"": 0}`, `.cuda()`);
            otherwise that is an error.

    Raises:
        Unsupported: the real AutoAWQ is installed.
    """
    return INSTALLATION.open(on_cpu=on_cpu)


def uninstall() -> None:
    """Undo `install`: the modules are gone for later imports. Names that were imported meanwhile
    go on working. Without `install` nothing happens."""
    INSTALLATION.close_all()


INSTALLATION = Installation(_STAND_IN.put, _STAND_IN.put_back)
