# SPDX-License-Identifier: Apache-2.0
"""`woq.install()`: transformers itself runs the checkpoints of other libraries on woq's kernels.

transformers chooses what loads a quantized checkpoint by two tables, of configs and of quantizers.
For the methods whose checkpoints woq reads, both get entries of woq's here, until they are taken
back. Old checkpoints have their settings in a file beside config.json, which the config is then
given. Nothing else is replaced: models that are not quantized, woq's own and those of other methods
load as always.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, MutableMapping
from typing import Any

from transformers import GPTQConfig, PreTrainedConfig
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer

from ..core import native
from ..core.installed import Installation, Installed
from ..formats.foreign.methods import FOREIGN_METHODS
from .foreign import (
    ForeignConfig,
    ForeignQuantizer,
    note_idle,
    settings_beside,
    weights_beside,
)
from .others_configs import own_config, saying_what_is_idle
from .quantizer import WoqHfQuantizer

__all__ = ["install", "uninstall"]

logger = logging.getLogger("woq")

# transformers has two methods for this one.
_KEYS = {"bitsandbytes": ("bitsandbytes_4bit", "bitsandbytes_8bit")}
# What transformers need not know: a spelling of old checkpoints, and a method that it doesn't load.
_ADDED = ("intel/auto-round", "modelopt")


# Table and key -> what stood there, None for nothing, and what stands there now.
_REPLACED: list[tuple[MutableMapping[str, Any], str, Any, Any]] = []
# Class and name of a method, what stood there, and what stands there now.
_METHODS: list[tuple[type, str, Any, Any]] = []


def install(*, compute_dtype: str = "fp32", on_cpu: bool = False) -> Installed:
    """Have transformers' `from_pretrained` run checkpoints of GPTQ, AWQ, AutoRound, bitsandbytes,
    compressed-tensors, HQQ and ModelOpt packed, on woq's kernels: the code that loads them stays as
    it is, and the other library need not be installed.

    It holds for the whole process, until `woq.uninstall()`, or as `with woq.install():` to the end
    of the block. Blocks may be nested, and run in several threads: the last one that ends undoes
    it. Models that are loaded stay what they are. A config of the checkpoint's own method may be
    passed; what it chooses of a GPU's kernels is logged and has no effect. Old checkpoints, whose
    settings are in a file beside config.json, are loaded, too. transformers' GPTQConfig, AwqConfig
    and BitsAndBytesConfig also quantize a float model, as woq does and saves it; a list as the
    `dataset` of a GPTQConfig is samples as they are, however short.

    Args:
        compute_dtype: what the kernels compute with; of several calls, the last one decides.
        on_cpu: run on the CPU, and log, what asks for a GPU (`device_map="cuda:0"`); otherwise that
            is an error. "auto" is the CPU in any case.

    Raises:
        InvalidArgument: no such compute_dtype.
        Unsupported: this version of transformers has no such tables, or misses a method.
    """
    native.check_compute_dtype(compute_dtype)
    return _INSTALLATION.open(compute_dtype=compute_dtype, on_cpu=on_cpu)


def uninstall() -> None:
    """Undo every `install` but those of `with` blocks that still run."""
    _INSTALLATION.close_all()


def _replace() -> None:
    configs = getattr(auto, "AUTO_QUANTIZATION_CONFIG_MAPPING", {})
    quantizers = getattr(auto, "AUTO_QUANTIZER_MAPPING", {})
    keys = [key for name in FOREIGN_METHODS for key in _KEYS.get(name, (name,))]
    known = configs.keys() & quantizers.keys()
    missing = [key for key in keys if key not in known and key not in _ADDED]
    if missing:
        import transformers

        raise native.Unsupported(
            f"transformers {transformers.__version__} does not know the quantization methods "
            f"{', '.join(missing)}, which woq.install() replaces: load such checkpoints with "
            "woq.AutoModelForCausalLM, or use a version from 5.0 to 5.24"
        )
    for key in keys:
        _put(configs, key, _stored_config(configs.get(key, ForeignConfig)))
        _put(quantizers, key, _quantizer)
    _put_method(GPTQConfig, "__init__", saying_what_is_idle(GPTQConfig.__init__))
    _put_method(PreTrainedConfig, "get_config_dict", classmethod(_with_settings_beside))


def _put(table: MutableMapping[str, Any], key: str, value: Any) -> None:
    _REPLACED.append((table, key, table.get(key), value))
    table[key] = value


def _put_method(owner: type, name: str, value: Any) -> None:
    _METHODS.append((owner, name, owner.__dict__[name], value))
    setattr(owner, name, value)


def _put_back() -> None:
    """Leaves alone what somebody else has put there meanwhile."""
    while _METHODS:
        owner, name, before, now = _METHODS.pop()
        if owner.__dict__.get(name) is now:
            setattr(owner, name, before)
    while _REPLACED:
        table, key, before, now = _REPLACED.pop()
        if table.get(key) is not now:
            continue
        if before is None:
            del table[key]
        else:
            table[key] = before


_read_config = PreTrainedConfig.__dict__["get_config_dict"].__func__


def _with_settings_beside(cls: Any, /, path: Any, **kwargs: Any) -> tuple[dict[str, Any], Any]:
    """A model's config.json, with the settings that an old checkpoint has in a file beside it."""
    values, rest = _read_config(cls, path, **kwargs)
    if values.get("model_type") and not values.get("quantization_config"):
        settings = {} if kwargs.get("gguf_file") else settings_beside(path, kwargs)
        if settings:
            values["quantization_config"] = settings
            weights = weights_beside(path, settings, kwargs)
            if weights is not None:
                values["transformers_weights"] = weights
    return values, rest


def _stored_config(original: type) -> type:
    """The class for the config of a checkpoint. transformers compares its name with that of a
    config that is passed, and gives it what that one says about kernels if it is of the same kind;
    the original would drop settings that it does not know, and may need its library."""

    class StoredConfig(original):  # type: ignore[misc,valid-type]
        def __init__(self, source: Mapping[str, Any]) -> None:
            for name, value in vars(_foreign(source)).items():
                setattr(self, name, value)

        @classmethod
        def from_dict(
            cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
        ) -> Any:
            config = cls(config_dict)
            return (config, kwargs) if return_unused_kwargs else config

        def to_dict(self) -> dict[str, Any]:
            return dict(self.source)

    StoredConfig.__name__ = StoredConfig.__qualname__ = original.__name__
    return StoredConfig


def _compute_dtype() -> str:
    return str(_INSTALLATION.setting("compute_dtype", "fp32"))


def _on_cpu() -> bool:
    return bool(_INSTALLATION.setting("on_cpu", False))


def _foreign(source: Mapping[str, Any]) -> ForeignConfig:
    return ForeignConfig(source, _compute_dtype(), _on_cpu())


def _quantizer(config: Any, *, pre_quantized: bool = True, **kwargs: Any) -> HfQuantizer:
    """What transformers calls for a config of one of the methods."""
    if not pre_quantized:
        own = own_config(config, _compute_dtype())
        made = WoqHfQuantizer(own, pre_quantized=False, **kwargs)
        made.on_cpu = _on_cpu()
        return made
    # An AutoRoundConfig, which transformers makes itself where the user passes one: of the settings
    # of AutoRound, GPTQ and AWQ, without losing any.
    quantizer = ForeignQuantizer(_foreign(config.to_dict()), **kwargs)
    note_idle(quantizer.form.name, config.get_loading_attributes())
    return quantizer


_INSTALLATION = Installation(_replace, _put_back)
