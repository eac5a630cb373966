# SPDX-License-Identifier: Apache-2.0
"""ctransformers' auto classes: a GGUF file of a folder or of the hub, as an `LLM` or as a
transformers model."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from ..core.native import InvalidArgument
from ..hf.location import locate
from ..hf.tokenizers import load_tokenizer
from ._ct_config import OWNER, AutoConfig, Config, file_of
from ._ct_llm import LLM

__all__ = ["AutoModelForCausalLM", "AutoTokenizer"]

# The attribute of a transformers model that says where its tokenizer is.
_SOURCE = "woq_ctransformers_source"


class AutoModelForCausalLM:
    """Use `AutoModelForCausalLM.from_pretrained(...)`."""

    @classmethod
    def from_pretrained(
        cls,
        model_path_or_repo_id: str | PathLike[str],
        *,
        model_type: str | None = None,
        model_file: str | None = None,
        config: AutoConfig | None = None,
        lib: str | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        hf: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load a model.

        Args:
            model_path_or_repo_id: a GGUF file, a folder that has one, or a model of the hub.
            model_type: is not needed: the file says it. "gptq": the folder is a GPTQ checkpoint.
            model_file: the GGUF file of the folder or repository; default: the smallest.
            config: an `AutoConfig`; else `kwargs` are its fields.
            lib: has no effect.
            hf: return a transformers model, for transformers' pipelines and `generate`.

        Raises:
            InvalidArgument: there is no such model, or an argument is unknown.
            Unsupported: a file of GGML, which came before GGUF.
        """
        where: dict[str, Any] = {
            "local_files_only": local_files_only,
            "revision": revision or "main",
        }
        if not Path(model_path_or_repo_id).is_file():
            locate(model_path_or_repo_id)  # what looks like a path and leads nowhere is an error
        if config is None:
            config = AutoConfig.from_pretrained(model_path_or_repo_id, **where, **kwargs)
        elif kwargs:
            raise InvalidArgument(
                f"{OWNER}: config and {', '.join(kwargs)} are given: put them into the config"
            )
        settings = config.config if isinstance(config, AutoConfig) else config
        if not isinstance(settings, Config):
            raise InvalidArgument(f"{OWNER}: config must be an AutoConfig, got {config!r}")
        path = _located(model_path_or_repo_id, model_type, model_file, where)
        llm = LLM(path, model_type or config.model_type, config=settings, lib=lib)
        if not hf:
            return llm
        setattr(llm.model, _SOURCE, llm.source)
        return llm.model


class AutoTokenizer:
    """Use `AutoTokenizer.from_pretrained(model)`."""

    @classmethod
    def from_pretrained(cls, model: Any) -> Any:
        """The tokenizer of a model that was loaded with hf=True, from the same file.

        Raises:
            InvalidArgument: it is no such model.
        """
        source = getattr(model, _SOURCE, None)
        if source is None:
            raise InvalidArgument(
                f"{OWNER}.AutoTokenizer.from_pretrained takes a model that AutoModelForCausalLM "
                f"loaded with hf=True, got {type(model).__name__}"
            )
        path, keywords = source
        return load_tokenizer(path, keywords)


def _located(
    source: str | PathLike[str], model_type: str | None, file: str | None, where: dict[str, Any]
) -> str:
    """The path of the file, which is downloaded if it is on the hub; of a GPTQ checkpoint its
    folder."""
    path = Path(source)
    if path.is_file():
        return str(path)
    gptq = model_type == "gptq" or (model_type is None and "gptq" in str(source).lower())
    if path.is_dir():
        if file is not None:
            if not (path / file).is_file():
                raise InvalidArgument(f"{path} has no {file}, which model_file names")
            return str(path / file)
        if gptq and not any(path.glob("*.gguf")):
            return str(path)
        return str(path / _smallest(source, {p.name: p.stat().st_size for p in path.iterdir()}))
    if gptq and file is None:
        from huggingface_hub import snapshot_download

        return str(snapshot_download(str(source), ignore_patterns=["*.bin", "*.pt"], **where))
    if file is None and not where["local_files_only"]:
        file = _smallest(source, _sizes(str(source), where["revision"]))
    if file is None:
        raise InvalidArgument(
            f"{OWNER}: with local_files_only, name the file of {source} (model_file)"
        )
    return str(file_of(str(source), file, where, required=True))


def _sizes(repository: str, revision: str) -> dict[str, int]:
    from huggingface_hub import HfApi

    found = HfApi().model_info(repository, revision=revision, files_metadata=True)
    return {file.rfilename: file.size or 0 for file in found.siblings or ()}


def _smallest(source: Any, sizes: dict[str, int]) -> str:
    files = [(size, name) for name, size in sizes.items() if name.endswith(".gguf")]
    if not files:
        raise InvalidArgument(f"{source} has no GGUF file: name one (model_file)")
    return min(files)[1]
