# SPDX-License-Identifier: Apache-2.0
"""All names of transformers that begin with an underscore, in one file: what to look at when a new
version of it is out. Each function says what woq needs it for.

It stands in the lowest room because rooms below `hf` need some of them, and imports nothing: it
gets the objects. Methods of `HfQuantizer` that `woq.hf.quantizer` overrides are not here; they are
the interface for quantizers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

__all__ = [
    "changed_on_loading",
    "changed_on_saving",
    "declared_ties",
    "has_adapters",
    "has_own_code",
    "is_config_quantized",
    "is_loaded",
    "keep_values",
    "keys_not_saved",
    "keywords_of_pipeline",
    "mark_config_quantized",
    "model_class",
    "on_keys_compared",
    "planned_dtypes",
    "sample",
    "set_declared_ties",
    "set_weight_conversions",
    "unmark_config_quantized",
    "weight_conversions",
]


def keep_values(thing: Any) -> None:
    """Have transformers' initialisers leave a tensor or module alone."""
    thing._is_hf_initialized = True


def is_loaded(tensor: Any) -> bool:
    """Whether the loader has filled `tensor`: it sets the same mark as `keep_values`."""
    return bool(getattr(tensor, "_is_hf_initialized", False))


def has_adapters(model: Any) -> bool:
    """Whether peft's adapters are attached: they are saved apart from the model."""
    if getattr(model, "_hf_peft_config_loaded", False):
        return True
    # Without importing peft: a model that has its layers has imported it already.
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    layer = getattr(tuners, "BaseTunerLayer", None)
    return layer is not None and any(isinstance(module, layer) for module in model.modules())


def has_own_code(model: Any) -> bool:
    """Whether the model's class came with its checkpoint, whose code is then saved, too."""
    return getattr(model, "_auto_class", None) is not None


def keys_not_saved(model: Any) -> tuple[str, ...]:
    """Names of tensors that a checkpoint of the model leaves out."""
    return tuple(model._keys_to_ignore_on_save or ())


def mark_config_quantized(config: Any) -> None:
    """What `PreTrainedConfig` looks at before it writes a quantization config."""
    config._is_quantized = True


def is_config_quantized(config: Any) -> bool:
    """Whether `config` has that mark, which models ask for, too."""
    return hasattr(config, "_is_quantized")


def unmark_config_quantized(config: Any) -> None:
    """Take the mark off again."""
    vars(config).pop("_is_quantized", None)


def declared_ties(module: Any) -> dict[str, str] | None:
    """Patterns of tied weights -> of those that they are tied to; None for a module without."""
    ties = getattr(module, "_tied_weights_keys", None)
    return ties if isinstance(ties, dict) else None


def set_declared_ties(module: Any, ties: dict[str, str]) -> None:
    """On the instance: the class attribute serves other models."""
    module._tied_weights_keys = ties


def on_keys_compared(model: Any, told: Callable[[set[str], set[str]], None]) -> bool:
    """Have `told` called with the missing and the unexpected keys of the checkpoint that `model` is
    being loaded from, without those that the model's class ignores. False: this version of
    transformers has no such place."""
    adjust = getattr(model, "_adjust_missing_and_unexpected_keys", None)
    if not callable(adjust):
        return False

    def adjust_and_tell(*arguments: Any) -> Any:
        del model._adjust_missing_and_unexpected_keys  # this function: it is the instance's
        result = adjust(*arguments)
        if result is None:  # newer versions change what they are given
            told(set(arguments[0].missing_keys), set(arguments[0].unexpected_keys))
        else:
            told(*map(set, result))
        return result

    model._adjust_missing_and_unexpected_keys = adjust_and_tell
    return True


def model_class(auto_class: Any, config: Any) -> Any | None:
    """The class of which `auto_class` makes a model of `config`; None: it knows none. An auto class
    loads nothing without a path."""
    mapping = getattr(auto_class, "_model_mapping", None)
    if mapping is None:
        return auto_class
    found = mapping.get(type(config), None)
    return found[0] if isinstance(found, tuple) else found


def planned_dtypes(model: Any, dtype: Any) -> Mapping[str, Any]:
    """Patterns of modules that are held in another dtype than `dtype` -> that dtype."""
    planner: Callable[[Any], Any] | None = getattr(model, "_get_dtype_plan", None)
    # transformers 5.0 has the plan in an attribute, the same one for every dtype.
    plan = getattr(model, "dtype_plan", None) if planner is None else planner(dtype)
    return plan or {}


def sample(model: Any, input_ids: Any, **keywords: Any) -> Any:
    """The loop behind `generate` that draws or takes the best token, with prepared arguments."""
    return model._sample(input_ids, **keywords)


def keywords_of_pipeline(pipeline: Any) -> dict[str, Any]:
    """What a pipeline passes to `generate` in a call without arguments.

    5.23 merges them in a method; older versions keep a generation config and the keywords.
    """
    keywords = dict(getattr(pipeline, "_forward_params", {}))
    merge = getattr(pipeline, "_prepare_generate_kwargs", None)
    return dict(merge(keywords)) if callable(merge) else keywords


def weight_conversions(model: Any) -> list[Any]:
    """What transformers renames, joins and splits when it saves the model's tensors."""
    kept = getattr(model, "_weight_conversions", None)
    if kept is not None:
        return list(kept)
    # As `revert_weight_conversion` does for a model that was not loaded.
    from transformers.conversion_mapping import get_model_conversion_mapping

    found = get_model_conversion_mapping(model, add_legacy=False)
    return [each for each in found if type(each).__name__ != "PrefixChange"]


def set_weight_conversions(model: Any, conversions: list[Any]) -> None:
    model._weight_conversions = conversions


def changed_on_saving(conversion: Any, keys: Iterable[str]) -> list[str]:
    """The keys of a model's state dict whose tensors `conversion` changes, not only renames."""
    if not hasattr(conversion, "operations"):
        return []
    return changed_on_loading(conversion.reverse_transform(), keys)


def changed_on_loading(conversion: Any, keys: Iterable[str]) -> list[str]:
    """The keys of a checkpoint whose tensors `conversion`, which has operations, changes."""
    return [key for key in keys if conversion.rename_source_key(key)[1] is not None]
