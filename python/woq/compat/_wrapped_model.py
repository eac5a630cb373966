# SPDX-License-Identifier: Apache-2.0
"""What the model classes of AutoGPTQ and AutoAWQ have in common: they hold a transformers model."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from ..core.installed import Installation
from ..core.native import InvalidArgument
from ..hf.foreign import stored_settings
from ..hf.load import load_model
from ..hf.location import file_arguments, find_files
from ._arguments import check_known, note_idle, on_cpu, take_file_arguments

__all__ = ["WrappedModel", "load_float", "load_packed", "named_file"]

# Arguments of transformers' from_pretrained.
_OF_TRANSFORMERS = ("torch_dtype", "dtype", "attn_implementation")


class WrappedModel(nn.Module):
    """`model` is the transformers model; what is not found here is looked for there.

    Attributes:
        model: the transformers model.
        config: its config.
    """

    # Of the library that the class stands in for: what it is called, its `install()`, and its
    # arguments that have no meaning here: {name: why}, with the defaults of those that are not off.
    _owner: ClassVar[str]
    _installation: ClassVar[Installation]
    _idle: ClassVar[Mapping[str, str]]
    _idle_defaults: ClassVar[Mapping[str, Any]] = {}
    # Writes the model into a folder, in the library's own format.
    save_quantized: Callable[..., None]

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.config = model.config

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":
                raise
            return getattr(self.model, name)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def to(self, device: Any = None, *args: Any, **kwargs: Any) -> Any:
        """The model stays on the CPU."""
        self.check_device("device", device)
        return self

    def cuda(self, device: Any = None) -> Any:
        return self.to("cuda")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' `generate`, without gradients."""
        with torch.inference_mode():
            return self.model.generate(*args, **kwargs)

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        return self.model.prepare_inputs_for_generation(*args, **kwargs)

    def push_to_hub(
        self,
        repo_id: str,
        save_dir: str | PathLike[str] | None = None,
        *,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        use_auth_token: str | bool | None = None,
        create_pr: bool = False,
        **kwargs: Any,
    ) -> str:
        """Write the model as `save_quantized` does, and upload the files; returns where to.

        Args:
            save_dir: is written to and uploaded, with what is there already, such as a tokenizer;
                None: a folder that is removed afterwards.
            kwargs: of `save_quantized`.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=use_auth_token if token is None else token)
        with contextlib.ExitStack() as stack:
            folder = save_dir or stack.enter_context(tempfile.TemporaryDirectory())
            self.save_quantized(folder, **kwargs)
            name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            commit = api.upload_folder(
                repo_id=name,
                folder_path=str(folder),
                commit_message=commit_message or "Quantized model",
                create_pr=create_pr,
            )
        return str(commit)

    @classmethod
    def check_device(cls, name: str, place: Any) -> None:
        allowed = bool(cls._installation.setting("on_cpu", False))
        on_cpu(cls._owner, name, place, allowed=allowed)

    @classmethod
    def note_idle(cls, given: Mapping[str, Any]) -> None:
        """Log what is `given` and has no meaning here."""
        defaults = cls._idle_defaults
        asked = {k: v for k, v in given.items() if k not in defaults or v != defaults[k]}
        note_idle(cls._owner, asked, cls._idle)

    @classmethod
    def keywords(cls, method: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of transformers' from_pretrained among those `given` to `method`; those
        that have no meaning here are logged.

        Raises:
            InvalidArgument: an argument that nobody knows.
            Unsupported: a device that is not the CPU.
        """
        rest = dict(given)
        found = take_file_arguments(rest)
        for name in _OF_TRANSFORMERS:
            if name in rest:
                found["dtype" if name == "torch_dtype" else name] = rest.pop(name)
        for name in ("device_map", "device"):
            cls.check_device(name, rest.pop(name, None))
        check_known(f"{cls._owner}.{method}", rest, (*cls._idle, *_OF_TRANSFORMERS))
        cls.note_idle(rest)
        return found


def load_float(owner: str, path: str | PathLike[str], keywords: dict[str, Any]) -> Any:
    """The model that is to be quantized, in floating point.

    Raises:
        InvalidArgument: it is quantized.
    """
    settings = stored_settings(path, keywords)
    if settings:
        raise InvalidArgument(
            f"{path} is quantized already ({settings.get('quant_method')}): load it with "
            f"{owner}.from_quantized, or start from the model in floating point"
        )
    return load_model(AutoModelForCausalLM, path, (), keywords).eval()


def load_packed(
    path: str | PathLike[str],
    keywords: dict[str, Any],
    settings: dict[str, Any],
    weights: str | None,
) -> Any:
    """The model of a checkpoint that is quantized.

    Args:
        settings: its `quantization_config`, wherever it was found.
        weights: the safetensors file; None: model.safetensors, or its shards.
    """
    config = AutoConfig.from_pretrained(path, **file_arguments(keywords))
    config.quantization_config = settings
    if weights is not None:
        config.transformers_weights = weights
    return load_model(AutoModelForCausalLM, path, (), {**keywords, "config": config}).eval()


def named_file(path: str | PathLike[str], names: list[str], where: dict[str, Any]) -> str | None:
    """The first of `names` that the folder or repository has."""
    for name in names:
        if find_files(path, [name], where, required=False):
            return name
    return None
