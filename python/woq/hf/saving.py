# SPDX-License-Identifier: Apache-2.0
"""`woq.save_pretrained`: saves a quantized transformers model safely and in little memory.

`model.save_pretrained(path)` works too and writes the same tensors, but it unpacks the whole model
at once (its quantized size again), and writes over the files in `path`: if the disk is full, the
old checkpoint is gone, and a model loaded from that path loses the file under its embeddings.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..config.quant_config import WeightOnlyQuantConfig
from ..core import transformers_private
from ..core.native import InvalidArgument
from ..core.units import parse_bytes
from ..formats.checkpoint import digest_of, metadata_of_digest, metadata_of_tensors
from ..formats.files import PartlyReplaced, replace_files_in
from ..formats.safetensors import Entry, write_safetensors
from ..modules.deferred_state import Stored, deferred_state
from .conversions import spare_quantized_layers

__all__ = ["configuration_last", "describe_save", "is_weights", "save_pretrained", "stored_state",
           "write_configs", "write_weights"]  # fmt: skip

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_SHARD = r"model-\d{5}-of-\d{5}\.safetensors"


def save_pretrained(
    model: Any, save_directory: str | os.PathLike[str], *, max_shard_size: int | str = "50GB"
) -> None:
    """Save a transformers model quantized by woq; any `from_pretrained` reads it back.

    All files are written beside the old ones and flushed to the disk, then renamed over them. If
    anything fails before that (disk full, read-only folder, Ctrl-C), what was there is unchanged.
    Files of two saves, as a kill in the middle of renaming leaves them, are refused when they are
    loaded: all have the digest of the tensors. One layer is unpacked at a time.

    Raises:
        InvalidArgument: not a transformers model, or adapters are attached to it.
        Unsupported: a quantized layer of this model could not be read back.
        OSError: writing failed; the folder is as it was.
    """
    if not hasattr(model, "save_pretrained") or not hasattr(model, "config"):
        raise InvalidArgument(f"expected a transformers model, got {type(model).__name__}")
    if transformers_private.has_adapters(model):
        raise InvalidArgument("adapters are attached: save them with model.save_pretrained")
    limit = parse_bytes(max_shard_size, "max_shard_size")
    spare_quantized_layers(model)
    target = Path(save_directory)
    created = not target.exists()
    try:
        target.mkdir(parents=True, exist_ok=True)
        with replace_files_in(target, configuration_last, is_weights) as scratch:
            entries = _entries(model)
            digest = _set_digest(model, entries)
            write_configs(model, scratch)
            metadata = {
                "format": "pt",
                **metadata_of_digest(digest),
                **metadata_of_tensors(entries),
            }
            write_weights(entries, metadata, scratch, limit)
    except PartlyReplaced as error:
        raise OSError(
            error.errno, f"{error.strerror} while files of {target} were renamed: save it again"
        ) from error
    except OSError as error:
        if created:
            _remove_if_empty(target)
        kept = "nothing was written" if created else "the files that were there are unchanged"
        raise OSError(
            error.errno, f"{error.strerror or error} while saving to {target}; {kept}"
        ) from error
    except BaseException:
        if created:
            _remove_if_empty(target)
        raise


def write_configs(model: Any, folder: Path) -> None:
    """config.json, the generation config, and the model's own code where it has some."""
    model.config.dtype = str(model.dtype).rpartition(".")[2]
    model.config.architectures = [type(model).__name__]
    if transformers_private.has_own_code(model):
        from transformers.dynamic_module_utils import custom_object_save

        custom_object_save(model, folder, config=model.config)
    model.config.save_pretrained(folder)
    if model.can_generate() and model.generation_config is not None:
        model.generation_config.save_pretrained(folder)


def describe_save(model: Any) -> dict[str, str]:
    """The digest of the model's tensors, as metadata for files that transformers will write. It is
    put into the model's config, too.

    The digest of names and types is left out: transformers' options can change the names.
    """
    if transformers_private.has_adapters(model):
        return {}  # only those are written
    return metadata_of_digest(_set_digest(model, _entries(model)))


def _set_digest(model: Any, entries: dict[str, Entry]) -> str | None:
    """The digest of the tensors, from now on in the model's config; None: not quantized."""
    config = getattr(model.config, "quantization_config", None)
    if not isinstance(config, WeightOnlyQuantConfig):
        return None
    config.digest = digest_of(entries)
    return config.digest


def write_weights(
    entries: dict[str, Entry], metadata: dict[str, str], folder: Path, limit: int
) -> None:
    """One file, or several of at most `limit` bytes and their index."""
    shards: list[dict[str, Entry]] = [{}]
    size = 0
    for name, entry in entries.items():
        if shards[-1] and size + entry.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = entry
        size += entry.nbytes
    if len(shards) == 1:
        write_safetensors(folder / _WEIGHTS, shards[0], metadata)
        return
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / file_name, shard, metadata)
        weight_map.update(dict.fromkeys(shard, file_name))
    index = {
        "metadata": {"total_size": sum(entry.nbytes for entry in entries.values())},
        "weight_map": weight_map,
    }
    (folder / _INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", "utf-8")


def _entries(model: Any) -> dict[str, Entry]:
    """Every tensor of the checkpoint under its stored name, quantized ones unpacked on demand.

    Sorted by name: a loaded model has another order than the one that was saved, and is to be
    written as the same bytes.
    """
    unpack = _Unpacker()
    entries = {}
    for name, (tensor, source) in sorted(stored_state(model).items()):
        make = _constant(tensor) if source is None else unpack.maker(*source)
        entries[name] = Entry(tuple(tensor.shape), tensor.dtype, make)
    return entries


def stored_state(model: Any) -> dict[str, tuple[torch.Tensor, tuple[Stored, str] | None]]:
    """The tensors of the checkpoint by their stored names. One of a quantized layer is a stand-in,
    beside the layer and the name that the tensor has there."""
    from transformers.core_model_loading import revert_weight_conversion
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    with deferred_state() as deferred:
        state = model.state_dict()
    for name in transformers_private.keys_not_saved(model):
        state.pop(name, None)
    state = remove_tied_weights_from_state_dict(state, model)
    packed = {id(tensor) for tensor in state.values() if deferred.get(id(tensor))}
    state = revert_weight_conversion(model, state)
    if not packed <= {id(tensor) for tensor in state.values()}:
        # The stand-ins have no values: what was made from them must not be written.
        raise RuntimeError("transformers made other tensors from those of quantized layers")
    return {name: (tensor, deferred.get(id(tensor))) for name, tensor in state.items()}


class _Unpacker:
    """Unpacks layers on demand and keeps the last one: its tensors are written in a row."""

    def __init__(self) -> None:
        self._layer: Stored | None = None
        self._tensors: dict[str, torch.Tensor] = {}

    def maker(self, layer: Stored, key: str) -> Callable[[], torch.Tensor]:
        def make() -> torch.Tensor:
            if self._layer is not layer:
                self._tensors = {}
                self._tensors = layer.stored_tensors()
                self._layer = layer
            return self._tensors[key]

        return make


def _constant(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: tensor


def configuration_last(name: str) -> tuple[bool, bool, str]:
    """Sorts the files of a checkpoint: what makes the others valid comes last."""
    return name == "config.json", name.endswith(".json"), name


def is_weights(name: str) -> bool:
    """Whether it is a file of weights as save_pretrained calls them."""
    return name in (_WEIGHTS, _INDEX) or re.fullmatch(_SHARD, name) is not None


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()
