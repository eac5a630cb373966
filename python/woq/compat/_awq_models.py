# SPDX-License-Identifier: Apache-2.0
"""AutoAWQ's classes: AWQ by woq, written and read in AutoAWQ's own format."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

from ..config.algorithm_configs import AwqConfig as _WoqConfig
from ..core.native import InvalidArgument, Unsupported
from ..hf.export import export_into
from ..hf.foreign import stored_settings
from ..hf.location import file_arguments
from ..observe.corpus import rows_of
from ..quantizing.quantize import quantize
from ._arguments import check_known
from ._awq_config import AwqConfig
from ._wrapped_model import WrappedModel, load_float, load_packed, named_file
from .awq import INSTALLATION

__all__ = ["AutoAWQForCausalLM", "BaseAWQForCausalLM"]

_OWNER = "AutoAWQForCausalLM"
_KERNELS = "woq runs its own kernels"
_PLACE = "the model is on the CPU, and woq keeps it packed there"
_MEMORY = "woq goes block by block, and keeps to activation_memory"
_IDLE = {
    "max_memory": _PLACE,
    "low_cpu_mem_usage": _PLACE,
    "offload_folder": _PLACE,
    "use_cache": "it is the model's own",
    "max_seq_len": "the cache grows with the text",
    "max_new_tokens": "the cache grows with the text; generate() takes it",
    "batch_size": "any number of texts can be generated together",
    "fuse_layers": "woq runs transformers' modules",
    "use_exllama": _KERNELS,
    "use_exllama_v2": _KERNELS,
    "use_ipex": _KERNELS,
    "use_qbits": _KERNELS,
    "n_parallel_calib_samples": _MEMORY,
    "max_chunk_memory": _MEMORY,
}


class BaseAWQForCausalLM(WrappedModel):
    """A transformers model, AutoAWQ's way to quantize it, and its own files.

    Attributes:
        quant_config: the settings.
        is_quantized: whether it is.
    """

    _owner = _OWNER
    _installation = INSTALLATION
    _idle = _IDLE
    _idle_defaults: ClassVar = {"low_cpu_mem_usage": True, "max_chunk_memory": 1 << 30}

    def __init__(self, model: Any, is_quantized: bool, quant_config: AwqConfig) -> None:
        super().__init__(model)
        self.model_type = model.config.model_type
        self.is_quantized = is_quantized
        self.quant_config = quant_config

    def quantize(
        self,
        tokenizer: Any = None,
        quant_config: Mapping[str, Any] | None = None,
        calib_data: Any = "pileval",
        split: str = "train",
        text_column: str = "text",
        duo_scaling: bool = True,
        export_compatible: bool = False,
        apply_clip: bool = True,
        n_parallel_calib_samples: int | None = None,
        max_calib_samples: int = 128,
        max_calib_seq_len: int = 512,
        **kwargs: Any,
    ) -> None:
        """Quantize in place by AWQ; its multipliers go into the layers before.

        Args:
            tokenizer: of the calibration data; None: the one beside the model.
            quant_config: zero_point, q_group_size, w_bit, version, modules_to_not_convert.
            calib_data: the name of a data set, the path of a text file, or a list of texts or of
                token ids. They are joined and cut into samples.
            split, text_column: of a data set that is named.
            duo_scaling: multipliers x^a / w^(1 - a), or x^a (False).
            apply_clip: search how far each group's range is clipped.
            max_calib_samples, max_calib_seq_len: samples, and tokens of each.

        Raises:
            InvalidArgument: the model is quantized already, or the data is of no use.
            Unsupported: `export_compatible`, a quantizer of one's own, or another layout.
        """
        if self.is_quantized:
            raise InvalidArgument(
                "the model is quantized already: load the model in floating point with "
                f"{_OWNER}.from_pretrained to quantize it"
            )
        owner = f"{_OWNER}.quantize"
        check_known(owner, kwargs, (*_IDLE, "quantizer_cls"))
        if export_compatible:
            raise Unsupported(
                f"{owner}: export_compatible=True asks for a scaled model in floating point, which "
                "woq does not make; woq.export and woq convert write other formats"
            )
        if kwargs.pop("quantizer_cls", None) is not None:
            raise Unsupported(f"{owner}: quantizer_cls: woq quantizes by its own AWQ")
        self.note_idle({"n_parallel_calib_samples": n_parallel_calib_samples, **kwargs})
        asked = AwqConfig.from_dict(quant_config)
        config = _WoqConfig(
            bits=asked.w_bit,
            group_size=asked.q_group_size,
            zero_point=asked.zero_point,
            tokenizer=tokenizer,
            dataset=_dataset(calib_data, split, text_column),
            duo_scaling=duo_scaling,
            apply_clip=apply_clip,
            mse_range=False,
            nsamples=max_calib_samples,
            seqlen=max_calib_seq_len,
            # AutoAWQ looks for these anywhere in a name.
            llm_int8_skip_modules=[
                f".*{re.escape(name)}.*" for name in asked.modules_to_not_convert or ()
            ]
            or None,
            scale_dtype="fp16",  # that of the file
            fold_scales=True,
        )
        quantize(self.model, config)
        self.quant_config = asked
        self.is_quantized = True

    def save_quantized(
        self,
        save_dir: str | PathLike[str],
        safetensors: bool = True,
        shard_size: int | str = "5GB",
    ) -> None:
        """Write model.safetensors (or shards of `shard_size`) and config.json into `save_dir`;
        other files there, such as a tokenizer's, stay.

        Raises:
            InvalidArgument: the model is not quantized.
            Unsupported: the format has no place for a layer, or `safetensors` is False.
            OSError: writing failed; what was there is unchanged.
        """
        if not self.is_quantized:
            raise InvalidArgument("only a quantized model can be saved: call quantize first")
        _check_safetensors(f"{_OWNER}.save_quantized", safetensors)
        export_into(self.model, save_dir, format="awq", max_shard_size=shard_size)

    def save_pretrained(self, save_dir: str | PathLike[str], **kwargs: Any) -> None:
        """`save_quantized`."""
        self.save_quantized(save_dir, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        model_path: str | PathLike[str],
        trust_remote_code: bool = False,
        safetensors: bool = True,
        device_map: Any = None,
        download_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> BaseAWQForCausalLM:
        """Load a model that is to be quantized, in the dtype of its checkpoint unless
        `torch_dtype` says otherwise. Code of the repository's own runs only if
        `trust_remote_code` is True.

        Raises:
            InvalidArgument: the model is quantized, or an argument is unknown.
            Unsupported: a device that is not the CPU.
        """
        given = {"trust_remote_code": trust_remote_code, "device_map": device_map}
        keywords = cls.keywords("from_pretrained", {**(download_kwargs or {}), **given, **kwargs})
        if not safetensors:
            keywords["use_safetensors"] = False
        return cls(load_float(_OWNER, model_path, keywords), False, AwqConfig())

    @classmethod
    def from_quantized(
        cls,
        quant_path: str | PathLike[str],
        quant_filename: str = "",
        max_seq_len: int | None = None,
        trust_remote_code: bool = False,
        fuse_layers: bool | None = None,
        safetensors: bool = True,
        device_map: Any = None,
        download_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> BaseAWQForCausalLM:
        """Load a checkpoint of AutoAWQ, and run it packed.

        Args:
            quant_filename: the name of the safetensors file, if it is not the usual one.
            kwargs: transformers' torch_dtype and those of the hub; what chooses a kernel of GPUs
                is logged and has no effect.

        Raises:
            InvalidArgument: the checkpoint says nowhere that it is quantized, or is damaged.
            Unsupported: a device that is not the CPU, another layout than GEMM, or `safetensors`
                is False.
        """
        owner = f"{_OWNER}.from_quantized"
        _check_safetensors(owner, safetensors)
        given = {
            "trust_remote_code": trust_remote_code,
            "device_map": device_map,
            "max_seq_len": max_seq_len,
            "fuse_layers": fuse_layers,
        }
        keywords = cls.keywords("from_quantized", {**(download_kwargs or {}), **given, **kwargs})
        settings = stored_settings(quant_path, keywords)
        if not settings:
            raise InvalidArgument(
                f"{quant_path} has neither quantization_config in config.json nor "
                f"quant_config.json: it is not quantized; {_OWNER}.from_pretrained loads it"
            )
        method = str(settings.get("quant_method", "awq")).lower()
        if method != "awq":
            raise InvalidArgument(
                f"{quant_path} is quantized by {method}, not by AWQ: load it with "
                "woq.AutoModelForCausalLM"
            )
        known = ("zero_point", "version", "modules_to_not_convert", *_CONFIG_NAMES)
        asked = AwqConfig.from_dict({k: settings[k] for k in known if settings.get(k) is not None})
        weights = _weights(owner, quant_path, quant_filename, file_arguments(keywords))
        return cls(load_packed(quant_path, keywords, settings, weights), True, asked)


class AutoAWQForCausalLM:
    """AutoAWQ's way in: `from_pretrained` to quantize a model, `from_quantized` to run one."""

    def __init__(self) -> None:
        raise OSError(f"use {_OWNER}.from_pretrained(...) or {_OWNER}.from_quantized(...)")

    from_pretrained = BaseAWQForCausalLM.from_pretrained
    from_quantized = BaseAWQForCausalLM.from_quantized


_CONFIG_NAMES = ("bits", "w_bit", "group_size", "q_group_size")


def _check_safetensors(owner: str, safetensors: bool) -> None:
    if not safetensors:
        raise Unsupported(
            f"{owner}: safetensors=False asks for pickle files (.bin, .pt), which woq neither "
            "reads nor writes: leave it out"
        )


def _dataset(calib_data: Any, split: str, text_column: str) -> Any:
    named = isinstance(calib_data, str) and not os.path.isfile(calib_data)
    if not named or (split, text_column) == ("train", "text"):
        return calib_data
    name = str(calib_data)

    def texts() -> Any:
        for row in rows_of(name, split):
            if text_column not in row:
                raise InvalidArgument(
                    f"text_column={text_column!r}: data set {name!r} has {', '.join(sorted(row))}"
                )
            yield row[text_column]

    return texts()


def _weights(
    owner: str, path: str | PathLike[str], filename: str, where: dict[str, Any]
) -> str | None:
    if not filename:
        return None
    if not filename.endswith(".safetensors"):
        raise Unsupported(
            f"{owner}: quant_filename={filename!r} is no safetensors file, and woq reads no other"
        )
    found = named_file(path, [filename], where)
    if found is None and Path(path).is_dir():
        raise InvalidArgument(f"{path} has no {filename}, which quant_filename names")
    return found
