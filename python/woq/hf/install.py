# SPDX-License-Identifier: Apache-2.0
"""`woq.install()`: transformers itself runs the checkpoints of other libraries on woq's kernels.

transformers chooses what loads a quantized checkpoint by two tables, of configs and of quantizers.
For the methods whose checkpoints woq reads, both get entries of woq's here, until they are taken
back. Nothing else is replaced: models that are not quantized, woq's own and those of other methods
load as always.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, MutableMapping
from typing import Any

from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer

from ..core import native
from ..core.installed import Installation, Installed
from ..formats.foreign.methods import FOREIGN_METHODS
from .foreign import ForeignConfig, ForeignQuantizer, note_idle
from .others_configs import own_config
from .quantizer import WoqHfQuantizer

__all__ = ["install", "uninstall"]

logger = logging.getLogger("woq")

# transformers has two methods for this one.
_KEYS = {"bitsandbytes": ("bitsandbytes_4bit", "bitsandbytes_8bit")}
# What transformers need not know: a spelling of old checkpoints, and a method that it doesn't load.
_ADDED = ("intel/auto-round", "modelopt")


# Table and key -> what stood there, None for nothing, and what stands there now.
_REPLACED: list[tuple[MutableMapping[str, Any], str, Any, Any]] = []


def install(*, compute_dtype: str = "fp32") -> Installed:
    """Have transformers' `from_pretrained` run checkpoints of GPTQ, AWQ, AutoRound, bitsandbytes,
    compressed-tensors, HQQ and ModelOpt packed, on woq's kernels: the code that loads them stays as
    it is, and the other library need not be installed.

    It holds for the whole process, until `woq.uninstall()`, or as `with woq.install():` to the end
    of the block. Blocks may be nested, and run in several threads: the last one that ends undoes
    it. Models that are loaded stay what they are. A config of the checkpoint's own method may be
    passed; what it chooses of a GPU's kernels is logged and has no effect. transformers'
    GPTQConfig and BitsAndBytesConfig also quantize a float model, as woq does and saves it.

    Args:
        compute_dtype: what the kernels compute with; of several calls, the last one decides.

    Raises:
        InvalidArgument: no such compute_dtype.
        Unsupported: this version of transformers has no such tables, or misses a method.
    """
    native.check_compute_dtype(compute_dtype)
    return _INSTALLATION.open(compute_dtype=compute_dtype)


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


def _put(table: MutableMapping[str, Any], key: str, value: Any) -> None:
    _REPLACED.append((table, key, table.get(key), value))
    table[key] = value


def _put_back() -> None:
    """Leaves alone what somebody else has put there meanwhile."""
    while _REPLACED:
        table, key, before, now = _REPLACED.pop()
        if table.get(key) is not now:
            continue
        if before is None:
            del table[key]
        else:
            table[key] = before


def _stored_config(original: type) -> type:
    """The class for the config of a checkpoint. transformers compares its name with that of a
    config that is passed, and gives it what that one says about kernels if it is of the same kind;
    the original would drop settings that it does not know, and may need its library."""

    class StoredConfig(original):  # type: ignore[misc,valid-type]
        def __init__(self, source: Mapping[str, Any]) -> None:
            for name, value in vars(ForeignConfig(source, _compute_dtype())).items():
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


def _quantizer(config: Any, *, pre_quantized: bool = True, **kwargs: Any) -> HfQuantizer:
    """What transformers calls for a config of one of the methods."""
    if not pre_quantized:
        return WoqHfQuantizer(own_config(config, _compute_dtype()), pre_quantized=False, **kwargs)
    # An AutoRoundConfig, which transformers makes itself where the user passes one: of the settings
    # of AutoRound, GPTQ and AWQ, without losing any.
    quantizer = ForeignQuantizer(ForeignConfig(config.to_dict(), _compute_dtype()), **kwargs)
    note_idle(quantizer.form.name, config.get_loading_attributes())
    return quantizer


_INSTALLATION = Installation(_replace, _put_back)
