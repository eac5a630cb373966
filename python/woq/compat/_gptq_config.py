# SPDX-License-Identifier: Apache-2.0
"""AutoGPTQ's settings of a quantization, with its fields, its defaults and its file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from ..core.native import InvalidArgument, Unsupported
from ..hf.foreign import stored_settings
from ._arguments import check_known, take_file_arguments

__all__ = ["BaseQuantizeConfig"]

_FILE = "quantize_config.json"
_BITS = (2, 3, 4, 8)
# What AutoGPTQ's own checkpoints are; it also reads AutoAWQ's.
_FORMATS = {"gptq": ("gptq", "gptq_v2"), "awq": ("gemm",)}
# AutoAWQ's names.
_OTHER_NAMES = {"w_bit": "bits", "q_group_size": "group_size"}


@dataclasses.dataclass
class BaseQuantizeConfig:
    """Bits, groups and order of the columns, as AutoGPTQ 0.7 calls them.

    Args:
        bits: 2, 3, 4 or 8.
        group_size: weights that share a scale; -1: a row.
        damp_percent: share of the moments' mean diagonal that is added to the diagonal.
        desc_act: columns with large inputs first, which stores g_idx.
        static_groups: scales of the weights as they were.
        sym: without zero points.
        true_sequential: layers of a block see what those before them in the block became.
        is_marlin_format: must be False: Marlin is a kernel of GPUs.
        model_name_or_path, model_file_base_name: where a checkpoint with these settings lies.
        quant_method, checkpoint_format: "gptq" and "gptq" or "gptq_v2"; to read, "awq" and "gemm".

    Raises:
        InvalidArgument: a field has a value that AutoGPTQ does not take.
        Unsupported: a checkpoint with these settings is not read here.
    """

    bits: int = 4
    group_size: int = -1
    damp_percent: float = 0.01
    desc_act: bool = True
    static_groups: bool = False
    sym: bool = True
    true_sequential: bool = True
    is_marlin_format: bool = False
    model_name_or_path: str | None = None
    model_file_base_name: str | None = None
    quant_method: str = "gptq"
    checkpoint_format: str = "gptq"

    def __post_init__(self) -> None:
        if self.bits not in _BITS or isinstance(self.bits, bool):
            self._refuse("bits", "2, 3, 4 or 8")
        size = self.group_size
        if not isinstance(size, int) or isinstance(size, bool) or not (size == -1 or size > 0):
            self._refuse("group_size", "-1 or a positive number")
        if not isinstance(self.damp_percent, int | float) or not 0 < self.damp_percent < 1:
            self._refuse("damp_percent", "between 0 and 1")
        for name in ("desc_act", "static_groups", "sym", "true_sequential", "is_marlin_format"):
            if not isinstance(getattr(self, name), bool):
                self._refuse(name, "True or False")
        if self.is_marlin_format:
            raise Unsupported(
                "BaseQuantizeConfig.is_marlin_format: Marlin is a kernel of GPUs, and woq neither "
                "reads nor writes its layout: leave it out"
            )
        known = _FORMATS.get(self.quant_method)
        if known is None:
            self._refuse("quant_method", " or ".join(_FORMATS))
        elif self.checkpoint_format not in known:
            self._refuse("checkpoint_format", f"{' or '.join(known)} for {self.quant_method}")

    def _refuse(self, name: str, allowed: str) -> None:
        raise InvalidArgument(
            f"BaseQuantizeConfig.{name} must be {allowed}, got {getattr(self, name)!r}"
        )

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def save_pretrained(self, save_dir: str | PathLike[str], **kwargs: Any) -> None:
        """Write quantize_config.json into a folder that exists."""
        text = json.dumps(self.to_dict(), indent=2)
        (Path(save_dir) / _FILE).write_text(text + "\n", "utf-8")

    @classmethod
    def from_pretrained(cls, save_dir: str | PathLike[str], **kwargs: Any) -> BaseQuantizeConfig:
        """The settings of a checkpoint: of quantize_config.json, quant_config.json or config.json.

        Raises:
            InvalidArgument: it has none of them, or they are no settings of GPTQ or AWQ.
        """
        where = take_file_arguments(kwargs)
        checkpoint_format = kwargs.pop("checkpoint_format", None)
        check_known("BaseQuantizeConfig.from_pretrained", kwargs)
        settings = stored_settings(save_dir, where)
        if not settings:
            raise InvalidArgument(
                f"{save_dir} has no quantize_config.json, quant_config.json or quantization_config "
                "in config.json: pass quantize_config=BaseQuantizeConfig(...) if it is quantized"
            )
        return cls.from_quant_config(settings, checkpoint_format)

    @classmethod
    def from_quant_config(
        cls, quantize_cfg: Mapping[str, Any], checkpoint_format: str | None = None
    ) -> BaseQuantizeConfig:
        """The fields among a checkpoint's settings; what AutoGPTQ has no field for stays there."""
        given = {_OTHER_NAMES.get(key.lower(), key.lower()): v for key, v in quantize_cfg.items()}
        if checkpoint_format is not None:
            stored = given.setdefault("checkpoint_format", checkpoint_format)
            if stored != checkpoint_format:
                raise InvalidArgument(
                    f"checkpoint_format={checkpoint_format!r}, and the checkpoint says {stored!r}: "
                    "leave it out"
                )
        if str(given.get("version") or "").lower() == "gemm":
            given |= {"quant_method": "awq", "checkpoint_format": "gemm"}
        if given.get("checkpoint_format") == "gemm":
            given |= {"quant_method": "awq", "desc_act": False, "sym": not given.get("zero_point")}
        method = given.get("quant_method")
        given["quant_method"] = str(getattr(method, "value", method) or "gptq").lower()
        names = {field.name for field in dataclasses.fields(cls)}
        values = {k: v for k, v in given.items() if k in names and v is not None}
        return cls(**values)
