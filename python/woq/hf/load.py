# SPDX-License-Identifier: Apache-2.0
"""The one door through which woq loads a transformers model.

`woq.AutoModelForCausalLM` and its like, those of `woq.compat.itrex`, `woq.pipeline`, the LangChain
package, the command line and the demo all come here. Here is decided whether the loader quantizes
each weight as it reads it, or the whole float model comes first.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..config.quant_config import WeightOnlyQuantConfig
from ..core.extras import require
from ..core.native import GgufModel, InvalidArgument, Unsupported
from ..formats.checkpoint import check_folder
from ..formats.foreign.methods import foreign_format
from ..observe.samples import read_ahead
from ..quantizing.quantize import quantize_loaded
from .foreign import load_foreign, note_idle, stored_settings
from .gguf import load_packed_gguf
from .location import find_gguf, hub_error
from .quantizer import register

__all__ = ["check_source", "load_model"]

# What transformers raises for a GGUF file that is whole, and still no model that it knows.
_GGUF_ERRORS = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, struct.error)


def load_model(
    auto_class: Any,
    path: Any,
    arguments: tuple[Any, ...] = (),
    keywords: Mapping[str, Any] | None = None,
    *,
    quantization_config: Any = None,
    float_first: bool = False,
    progress: bool | None = None,
    explain: Callable[[Exception], Exception] | None = None,
) -> Any:
    """What `auto_class.from_pretrained(path, *arguments, **keywords)` returns, quantized if asked.

    Args:
        auto_class: one of transformers' auto classes.
        quantization_config: a `WeightOnlyQuantConfig`, another method's config, or None.
        float_first: quantize after loading, so that `progress` is shown. A GGUF file is always
            loaded so: transformers can read one or quantize, not both.
        progress: as `woq.quantize` takes it.
        explain: makes the error to raise of an error of loading that is not woq's own.

    Raises:
        InvalidArgument: a weight has NaN or Inf, a file is damaged, files are of different saves,
            an index names files outside of the folder, the checkpoint is quantized in a way that
            woq does not read, or `quantization_config` is another method's and `path` a checkpoint
            that woq saved.
        Unsupported: `device_map` asks for another device than the CPU.
        OSError: there is no such model, or the hub does not give it.
        ModuleNotFoundError: `gguf_file`, but the package gguf is not installed.
    """
    register()
    keywords = dict(keywords or {})
    is_gguf = keywords.get("gguf_file") is not None
    packed_in = _computes_packed_in(quantization_config) if is_gguf else None
    if is_gguf and packed_in is None:
        require("gguf", "reading a GGUF file")
    float_first = float_first or keywords.get("gguf_file") is not None
    afterwards = float_first and isinstance(quantization_config, WeightOnlyQuantConfig)
    if afterwards:
        device_map = keywords.pop("device_map", None)
        if device_map not in (None, "cpu", "auto"):
            raise Unsupported(
                f"device_map={device_map!r}: woq's kernels run on the CPU; leave device_map out"
            )
        quantization_config = quantization_config.canonical()
        # A GGUF file may have no tokenizer that is found without the model.
        if quantization_config.needs_calibration and keywords.get("gguf_file") is None:
            quantization_config.dataset = read_ahead(
                quantization_config.dataset,
                quantization_config.tokenizer,
                path,
                quantization_config.algorithm_args,
            )
    elif quantization_config is not None:
        keywords["quantization_config"] = quantization_config
    method = form = None
    try:
        check_source(path, keywords)
        if is_gguf:
            keywords.pop("force_download", None)  # that was just done
        if packed_in is not None:
            loaded = load_packed_gguf(auto_class, path, arguments, keywords, packed_in)
            if loaded is not None:
                return loaded
            require("gguf", "reading a GGUF file")
        settings = stored_settings(path, keywords)
        method = settings.get("quant_method")
        form = foreign_format(settings)
        if form is not None:
            compute_dtype = _compute_dtype(path, form.name, quantization_config)
            keywords.pop("quantization_config", None)
            return load_foreign(auto_class, path, arguments, keywords, settings, compute_dtype)
        if method == WeightOnlyQuantConfig.quant_method:
            _refuse_another_config(path, settings, quantization_config)
        loaded = auto_class.from_pretrained(path, *arguments, **keywords)
    except SafetensorError as error:
        raise InvalidArgument(
            f"{_damaged_file(path)} is damaged or incomplete ({error}): download or save it again"
        ) from error
    except (OSError, ImportError, RuntimeError, *_GGUF_ERRORS) as error:
        if isinstance(error, InvalidArgument | Unsupported):
            raise
        unreachable = hub_error(path, error, keywords)
        if unreachable is not None:
            raise (explain(unreachable) if explain else unreachable) from error
        if isinstance(error, _GGUF_ERRORS) and keywords.get("gguf_file") is not None:
            raise InvalidArgument(
                f"{os.path.join(str(path), keywords['gguf_file'])} cannot be read as a model "
                f"({type(error).__name__}: {error})"
            ) from error
        if form is None and method not in (None, WeightOnlyQuantConfig.quant_method):
            raise _quantized_already(path, method) from error
        if explain is None or not isinstance(error, OSError | ValueError | KeyError | ImportError):
            raise
        raise explain(error) from error
    if not afterwards:
        return loaded
    # With output_loading_info transformers returns a pair.
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    if method is not None:
        raise _quantized_already(path, method)
    quantize_loaded(model, quantization_config, progress=progress)
    return loaded


def check_source(path: Any, keywords: Mapping[str, Any]) -> None:
    """Look at the files of a local model, and at a GGUF file wherever it is, before they are read.
    `keywords` are from_pretrained's.

    Raises:
        InvalidArgument: a GGUF file is damaged, or an index names files outside of the folder.
        OSError: there is no such GGUF file.
    """
    if keywords.get("gguf_file") is not None:
        # transformers and the package gguf take a file's numbers as they are: a damaged one ends
        # in whatever Python raises for them, or in an attempt to get as much memory as they say.
        GgufModel(find_gguf(path, keywords))
        return
    folder = os.path.join(str(path), keywords.get("subfolder") or "")
    if os.path.isdir(folder):
        check_folder(folder)


def _computes_packed_in(given: Any) -> str | None:
    """What a GGUF file that runs packed is to compute in; None: `given` asks for other weights. A
    config in which the caller has named the compute dtype alone does not."""
    if given is None:
        return "fp32"
    if isinstance(given, WeightOnlyQuantConfig) and given.names_only("compute_dtype"):
        return given.compute_dtype
    return None


def _compute_dtype(path: Any, name: str, given: Any) -> str:
    """The compute dtype for a checkpoint that another library quantized. A config of that library
    has nothing more to say; one of woq chooses the compute dtype, and nothing else."""
    if not isinstance(given, WeightOnlyQuantConfig):
        note_idle(name, getattr(given, "get_loading_attributes", dict)())
        return "fp32"
    asked = WeightOnlyQuantConfig(compute_dtype=given.compute_dtype)
    if given.stored() != asked:
        raise InvalidArgument(
            f"{path} is quantized already ({name}), and its weights are run as they are: pass no "
            "quantization_config, or one that sets compute_dtype only; to quantize otherwise, "
            "start from the model in floating point"
        )
    return given.compute_dtype


def _refuse_another_config(path: Any, saved: Mapping[str, Any], given: Any) -> None:
    """Raise InvalidArgument where `given` is another method's config: woq saved the checkpoint."""
    if given is not None and not isinstance(given, WeightOnlyQuantConfig):
        raise InvalidArgument(
            f"{path} is quantized already, by woq ({saved.get('weight_dtype')}), and "
            f"quantization_config is a {type(given).__name__}: leave it out, or load the float "
            "model to quantize it otherwise"
        )


def _quantized_already(path: Any, method: str) -> InvalidArgument:
    return InvalidArgument(
        f"{path} is quantized already ({method}): start from the model in floating point"
    )


def _damaged_file(path: Any) -> str:
    """Names the first safetensors file of a checkpoint that cannot be opened."""
    for file in sorted(Path(path).glob("*.safetensors")):
        try:
            with safe_open(file, "pt"):
                continue
        except (SafetensorError, OSError):
            return str(file)
    return f"a safetensors file of {path}"
