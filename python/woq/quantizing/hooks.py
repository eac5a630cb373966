# SPDX-License-Identifier: Apache-2.0
"""How the maker of a model learns that `woq.quantize` has changed it.

`woq.quantize` takes any torch module and knows nothing of transformers. A transformers model, on
the other hand, has a quantizer and a config that must say what the model now is, or it would be
saved as something else. `woq.hf.quantizer` hands its two functions in here when it is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Protocol

from torch import nn

from ..config.quant_config import WeightOnlyQuantConfig
from ..core.native import Unsupported

__all__ = ["ModelHook", "add_hook", "check_hooks", "tell_quantized", "tell_untied"]


class ModelHook(Protocol):
    """What is told of every model; it looks for its own in it."""

    def untied(self, model: nn.Module, names: Iterable[str]) -> None:
        """The weights of the modules `names` are no longer those of another module."""

    def quantized(self, model: nn.Module, config: WeightOnlyQuantConfig) -> None:
        """All or (after an interrupt) some of the layers that `config` selects are quantized."""


_hooks: list[ModelHook] = []


def add_hook(hook: ModelHook) -> None:
    _hooks.append(hook)


def check_hooks(model: nn.Module) -> None:
    """
    Raises:
        Unsupported: transformers made (part of) the model, and does not know woq. That is said
            before hours of work, after which the model could not be saved.
    """
    modeling = sys.modules.get("transformers.modeling_utils")
    if _hooks or modeling is None:
        return
    if any(isinstance(module, modeling.PreTrainedModel) for module in model.modules()):
        raise Unsupported(
            "woq could not register itself with transformers (the log has a warning that says "
            "why): a quantized model could not be saved"
        )


def tell_untied(model: nn.Module, names: Iterable[str]) -> None:
    names = list(names)
    for hook in _hooks:
        hook.untied(model, names)


def tell_quantized(model: nn.Module, config: WeightOnlyQuantConfig) -> None:
    for hook in _hooks:
        hook.quantized(model, config)
