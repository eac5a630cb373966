# SPDX-License-Identifier: Apache-2.0
"""Code that imports ctransformers (last released in 2023) runs on woq.

    import woq.compat.ctransformers

    woq.compat.ctransformers.install()
    from ctransformers import AutoModelForCausalLM

GGUF files run packed, as `woq.AutoModelForCausalLM` runs them.
"""

from __future__ import annotations

from ..core.installed import Installation, Installed
from ._stand_in import StandIn

__all__ = ["install", "uninstall"]

_CONFIGS = {"AutoConfig": "woq.compat._ct_config", "Config": "woq.compat._ct_config"}
_LLM = {"LLM": "woq.compat._ct_llm"}
_AUTO = dict.fromkeys(("AutoModelForCausalLM", "AutoTokenizer"), "woq.compat._ct_models")
_STAND_IN = StandIn(
    package="ctransformers",
    distribution="ctransformers",
    owner=__name__,
    version="0.2.27+woq",
    covers="loading GGUF and GPTQ models, and generating text",
    names={
        "": {**_CONFIGS, **_LLM, **_AUTO},
        ".llm": {"Config": _CONFIGS["Config"], **_LLM},
        ".hub": {"AutoConfig": _CONFIGS["AutoConfig"], **_AUTO},
    },
)


def install() -> Installed:
    """Make `import ctransformers` find woq. Calling it again changes nothing.

    It holds until `uninstall()`, or as `with install():` to the end of the block.

    Raises:
        Unsupported: the real ctransformers is installed.
    """
    return _INSTALLATION.open()


def uninstall() -> None:
    """Undo `install`: the modules are gone for later imports. Names that were imported meanwhile
    go on working. Without `install` nothing happens."""
    _INSTALLATION.close_all()


_INSTALLATION = Installation(_STAND_IN.put, _STAND_IN.put_back)
