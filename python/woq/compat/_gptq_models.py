# SPDX-License-Identifier: Apache-2.0
"""AutoGPTQ's classes: GPTQ by woq, written and read in AutoGPTQ's own format."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

from ..config.algorithm_configs import GPTQConfig
from ..core.native import InvalidArgument, Unsupported
from ..hf.export import export_into
from ..hf.foreign import stored_settings
from ..hf.location import file_arguments
from ..modules.targets import quantized_layers
from ..observe.samples import Examples
from ..quantizing.quantize import quantize
from ._arguments import check_known, note_idle
from ._gptq_config import BaseQuantizeConfig
from ._wrapped_model import WrappedModel, load_float, load_packed, named_file
from .auto_gptq import INSTALLATION

__all__ = ["AutoGPTQForCausalLM", "BaseGPTQForCausalLM", "exllama_set_max_input_length"]

logger = logging.getLogger("woq")

_OWNER = "AutoGPTQForCausalLM"
_KERNELS = "woq runs its own kernels"
_PLACE = "the model is on the CPU, and woq keeps it packed there"
# Arguments without a meaning here: of from_pretrained, quantize and from_quantized.
_IDLE = {
    "max_memory": _PLACE,
    "low_cpu_mem_usage": _PLACE,
    "offload_folder": _PLACE,
    "cache_examples_on_gpu": _PLACE,
    "use_triton": _KERNELS,
    "use_tritonv2": _KERNELS,
    "use_qigen": _KERNELS,
    "use_marlin": _KERNELS,
    "use_cuda_fp16": _KERNELS,
    "use_exllama": _KERNELS,
    "disable_exllama": _KERNELS,
    "disable_exllamav2": _KERNELS,
    "autotune_warmup_after_quantized": _KERNELS,
    "warmup_triton": _KERNELS,
    "inject_fused_attention": "woq runs transformers' modules",
    "inject_fused_mlp": "woq runs transformers' modules",
    "trainable": "woq's layers pass gradients on, and take adapters, as they are",
    "use_unsafe_math": "zero points are read and written as they are, each by itself",
    "strict": "what is missing in a checkpoint is an error",
}


class BaseGPTQForCausalLM(WrappedModel):
    """A transformers model, AutoGPTQ's way to quantize it, and its own files.

    Attributes:
        quantize_config: the settings.
        quantized: whether it is.
    """

    _owner = _OWNER
    _installation = INSTALLATION
    _idle = _IDLE
    _idle_defaults: ClassVar = {
        "use_cuda_fp16": True,
        "cache_examples_on_gpu": True,
        "strict": True,
    }

    def __init__(
        self, model: Any, quantized: bool, quantize_config: BaseQuantizeConfig, **kwargs: Any
    ) -> None:
        super().__init__(model)
        self.model_type = model.config.model_type
        self.quantized = quantized
        self.quantize_config = quantize_config

    def quantize(
        self, examples: Any, batch_size: int = 1, use_triton: bool = False, **kwargs: Any
    ) -> list[dict[str, Any]]:
        """Quantize in place by GPTQ.

        Args:
            examples: a list of what a tokenizer returns: dicts with input_ids and attention_mask.
                Each is a sample as it is; what the mask leaves out is not looked at.
            batch_size: has no effect: samples of one length go together, without padding.
            use_triton, ...: of GPUs, and without effect.

        Returns:
            For each layer its name and the relative error of its output.

        Raises:
            InvalidArgument: the model is quantized already, or the examples are empty or no tokens.
        """
        if self.quantized:
            raise InvalidArgument(
                "the model is quantized already: load the model in floating point with "
                f"{_OWNER}.from_pretrained to quantize it"
            )
        check_known(f"{_OWNER}.quantize", kwargs, _IDLE)
        self.note_idle({"use_triton": use_triton, **kwargs})
        _check_examples(examples)
        asked = self.quantize_config
        config = GPTQConfig(
            bits=asked.bits,
            group_size=asked.group_size,
            damp_percent=asked.damp_percent,
            desc_act=asked.desc_act,
            static_groups=asked.static_groups,
            sym=asked.sym,
            true_sequential=asked.true_sequential,
            dataset=Examples(examples),
            scale_dtype="fp16",  # that of the file
            act_group_aware=False,
            mse_range=False,
        )
        quantize(self.model, config)
        self.quantized = True
        layers = self.model.woq_report.layers
        return [{"module": layer.name, "avg_loss": layer.loss} for layer in layers]

    def save_quantized(
        self,
        save_dir: str | PathLike[str],
        use_safetensors: bool = True,
        safetensors_metadata: Mapping[str, str] | None = None,
        checkpoint_format: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Write model.safetensors, config.json and quantize_config.json into `save_dir`; other
        files there, such as a tokenizer's, stay.

        A symmetric model is written as checkpoint_format "gptq", one with zero points as "gptq_v2",
        which has a number for every zero point.

        Raises:
            InvalidArgument: the model is not quantized.
            Unsupported: the format has no place for a layer, or `use_safetensors` is False.
            OSError: writing failed; what was there is unchanged.
        """
        owner = f"{_OWNER}.save_quantized"
        check_known(owner, kwargs, ("use_unsafe_math",))
        if not self.quantized:
            raise InvalidArgument("only a quantized model can be saved: call quantize first")
        _check_safetensors(owner, use_safetensors)
        asked = self.quantize_config
        sym = asked.sym
        form = "gptq" if sym else "gptq_v2"
        if checkpoint_format not in (None, form):
            raise Unsupported(
                f"{owner}: checkpoint_format={checkpoint_format!r}, and a model with sym={sym} is "
                f"written as {form!r}: leave it out"
            )
        if form != asked.checkpoint_format:
            logger.info("%s: with zero points it is written as checkpoint_format %r", owner, form)
        more = {**asked.to_dict(), "model_file_base_name": "model", "checkpoint_format": form}
        del more["model_name_or_path"], more["is_marlin_format"]

        def files(settings: Mapping[str, Any]) -> dict[str, str]:
            # What the model is, which may be less than what was asked for: act order without groups
            # stores no g_idx.
            names = (*more, "model_name_or_path")
            values = {**more, **settings, "model_name_or_path": str(save_dir)}
            text = json.dumps({name: values[name] for name in names}, indent=2)
            return {"quantize_config.json": text + "\n"}

        export_into(
            self.model,
            save_dir,
            format="gptq",
            settings=more,
            files=files,
            metadata=safetensors_metadata,
        )

    def save_pretrained(self, save_dir: str | PathLike[str], **kwargs: Any) -> None:
        """`save_quantized`."""
        self.save_quantized(save_dir, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        quantize_config: BaseQuantizeConfig,
        max_memory: Any = None,
        trust_remote_code: bool = False,
        **kwargs: Any,
    ) -> BaseGPTQForCausalLM:
        """Load a model that is to be quantized, in the dtype of its checkpoint unless
        `torch_dtype` says otherwise.

        Raises:
            InvalidArgument: the model is quantized, or an argument is unknown.
            Unsupported: a device that is not the CPU.
        """
        if not isinstance(quantize_config, BaseQuantizeConfig):
            raise InvalidArgument(
                f"quantize_config must be a BaseQuantizeConfig, got {quantize_config!r}"
            )
        if quantize_config.quant_method != "gptq":
            raise InvalidArgument(
                f"quantize_config.quant_method {quantize_config.quant_method!r} is read, not "
                "quantized to; AWQ's own library is woq.compat.awq"
            )
        given = {"trust_remote_code": trust_remote_code, "max_memory": max_memory, **kwargs}
        keywords = cls.keywords("from_pretrained", given)
        model = load_float(_OWNER, pretrained_model_name_or_path, keywords)
        return cls(model, False, quantize_config)

    @classmethod
    def from_quantized(
        cls,
        model_name_or_path: str | PathLike[str],
        device_map: Any = None,
        max_memory: Any = None,
        device: Any = None,
        quantize_config: BaseQuantizeConfig | Mapping[str, Any] | None = None,
        model_basename: str | None = None,
        use_safetensors: bool = True,
        checkpoint_format: str | None = None,
        **kwargs: Any,
    ) -> BaseGPTQForCausalLM:
        """Load a checkpoint of AutoGPTQ (or of AutoAWQ), and run it packed.

        Args:
            quantize_config: in place of the checkpoint's own settings.
            model_basename: the name of the safetensors file, without its suffix.
            kwargs: transformers' torch_dtype and those of the hub; what chooses a kernel of GPUs
                is logged and has no effect.

        Raises:
            InvalidArgument: the checkpoint says nowhere that it is quantized, or is damaged.
            Unsupported: a device that is not the CPU, or `use_safetensors` is False.
        """
        owner = f"{_OWNER}.from_quantized"
        _check_safetensors(owner, use_safetensors)
        cls.check_device("device_map", device_map)
        cls.check_device("device", device)
        keywords = cls.keywords("from_quantized", {"max_memory": max_memory, **kwargs})
        given = quantize_config
        if given is None:
            asked = BaseQuantizeConfig.from_pretrained(
                model_name_or_path, checkpoint_format=checkpoint_format, **file_arguments(keywords)
            )
            settings = stored_settings(model_name_or_path, keywords)
        else:
            if isinstance(given, BaseQuantizeConfig):
                asked = given
            elif isinstance(given, Mapping):
                asked = BaseQuantizeConfig.from_quant_config(given, checkpoint_format)
            else:
                raise InvalidArgument(
                    f"quantize_config must be a BaseQuantizeConfig, got {given!r}"
                )
            settings = asked.to_dict()
        settings = {
            **settings,
            "quant_method": asked.quant_method,
            "checkpoint_format": asked.checkpoint_format,
        }
        weights = _weights(model_name_or_path, model_basename, file_arguments(keywords))
        model = load_packed(model_name_or_path, keywords, settings, weights)
        if given is not None:
            _check_agreement(model, asked, model_name_or_path)
        return cls(model, True, asked)


class AutoGPTQForCausalLM:
    """AutoGPTQ's way in: `from_pretrained` to quantize a model, `from_quantized` to run one."""

    def __init__(self) -> None:
        raise OSError(f"use {_OWNER}.from_pretrained(...) or {_OWNER}.from_quantized(...)")

    from_pretrained = BaseGPTQForCausalLM.from_pretrained
    from_quantized = BaseGPTQForCausalLM.from_quantized


def exllama_set_max_input_length(model: Any, max_input_length: int) -> Any:
    """`model`, as it is: woq has no buffers of a fixed length."""
    note_idle("exllama_set_max_input_length", {"max_input_length": max_input_length},
              {"max_input_length": _KERNELS})  # fmt: skip
    return model


def _check_examples(examples: Any) -> None:
    if isinstance(examples, str | Mapping) or not hasattr(examples, "__iter__"):
        raise InvalidArgument(
            f"{_OWNER}.quantize: examples must be a list of what a tokenizer returns, got "
            f"{type(examples).__name__}"
        )


def _check_safetensors(owner: str, use_safetensors: bool) -> None:
    if not use_safetensors:
        raise Unsupported(
            f"{owner}: use_safetensors=False asks for a pickle file (.bin, .pt), which woq neither "
            "reads nor writes: leave it out"
        )


def _check_agreement(model: Any, asked: BaseQuantizeConfig, path: Any) -> None:
    """Raise InvalidArgument where the tensors of a checkpoint, which say their widths and groups
    themselves, are not what a passed config says."""
    for name, layer in quantized_layers(model).items():
        cols = layer.in_features
        length = layer.scheme.group_length(cols)
        said = cols if asked.group_size == -1 else min(asked.group_size, cols)
        if layer.scheme.bits != asked.bits or length != said:
            raise InvalidArgument(
                f"quantize_config says {asked.bits} bits in groups of {asked.group_size}, and "
                f"{name} of {path} has {layer.scheme.bits} bits in groups of {length}: pass what "
                "the checkpoint has, or leave quantize_config out"
            )


def _weights(path: str | PathLike[str], basename: str | None, where: dict[str, Any]) -> str | None:
    """The safetensors file that is named; None: what loads the model finds it."""
    if basename is None:
        return None
    name = f"{basename.removesuffix('.safetensors')}.safetensors"
    if named_file(path, [name], where) is not None:
        return name
    if Path(path).is_dir() and not (Path(path) / f"{name}.index.json").is_file():
        raise InvalidArgument(f"{path} has no {name}, which model_basename={basename!r} names")
    return None
