# SPDX-License-Identifier: Apache-2.0
"""Code that imports AutoGPTQ (archived in 2025) runs on woq.

    import woq.compat.auto_gptq

    woq.compat.auto_gptq.install()
    from auto_gptq import AutoGPTQForCausalLM, BaseQuantizeConfig

Models are quantized by woq's GPTQ, and written and read in AutoGPTQ's format.
"""

from __future__ import annotations

from ..core.installed import Installation, Installed
from ._stand_in import StandIn

__all__ = ["install", "uninstall"]

_MODELS = dict.fromkeys(
    ("AutoGPTQForCausalLM", "BaseGPTQForCausalLM", "exllama_set_max_input_length"),
    "woq.compat._gptq_models",
)
_AUTO = {"AutoGPTQForCausalLM": _MODELS["AutoGPTQForCausalLM"]}
_BASE = {"BaseGPTQForCausalLM": _MODELS["BaseGPTQForCausalLM"]}
_CONFIG = {"BaseQuantizeConfig": "woq.compat._gptq_config"}
_EXLLAMA = {"exllama_set_max_input_length": _MODELS["exllama_set_max_input_length"]}
_PEFT = "woq's layers take adapters as they are: peft.get_peft_model(model.model, LoraConfig(...))"
_STAND_IN = StandIn(
    package="auto_gptq",
    distribution="auto-gptq",
    owner=__name__,
    version="0.7.1+woq",
    covers="quantizing, saving, loading and running causal language models",
    names={
        "": {**_AUTO, **_CONFIG, **_EXLLAMA},
        ".modeling": {**_AUTO, **_BASE, **_CONFIG},
        ".modeling.auto": _AUTO,
        ".modeling._base": {**_BASE, **_CONFIG},
        ".quantization": _CONFIG,
        ".quantization.config": _CONFIG,
        ".utils": {},
        ".utils.exllama_utils": _EXLLAMA,
    },
    absent={"get_gptq_peft_model": _PEFT, "Perplexity": "woq.evaluate measures perplexity"},
)


def install(*, on_cpu: bool = False) -> Installed:
    """Make `import auto_gptq` find woq. Calling it again changes nothing.

    It holds until `uninstall()`, or as `with install():` to the end of the block.

    Args:
        on_cpu: run on the CPU, and log, what asks for a GPU (`device="cuda:0"`,
            `device_map={"": 0}`, `.to("cuda")`); otherwise that is an error.

    Raises:
        Unsupported: the real AutoGPTQ is installed.
    """
    return INSTALLATION.open(on_cpu=on_cpu)


def uninstall() -> None:
    """Undo `install`: the modules are gone for later imports. Names that were imported meanwhile
    go on working. Without `install` nothing happens."""
    INSTALLATION.close_all()


INSTALLATION = Installation(_STAND_IN.put, _STAND_IN.put_back)
