# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that other libraries quantized: what their settings mean, and which tensors of a
layer make its weight. The bytes are read by the core (woq/io/foreign.h); no file is opened here.

A layer's width and group size are taken from the shapes of its tensors: so are mixed widths, and no
pattern of the settings has to be matched. The settings say what shapes cannot.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..core import native

if TYPE_CHECKING:
    import torch

__all__ = ["FOREIGN_METHODS", "ForeignFormat", "foreign_format"]

Tensors = Mapping[str, "torch.Tensor"]
# From the tensors of a layer and its shape [N, K] to its matrix and a sentence on how it was read.
Reader = Callable[[Tensors, int, int], tuple[native.QuantizedMatrix, str]]


@dataclasses.dataclass(frozen=True)
class ForeignFormat:
    """How to read the quantized layers of one checkpoint.

    Args:
        name: for messages.
        mark: the tensor that every quantized layer has, and no other one.
        tensors: the tensors that a quantized layer may have, its bias apart. Others are errors:
            they would change what the layer computes.
        read: makes the matrix of a layer.
    """

    name: str
    mark: str
    tensors: frozenset[str]
    read: Reader


def foreign_format(settings: Mapping[str, Any]) -> ForeignFormat | None:
    """The format of a checkpoint with these settings (its `quantization_config`); None where the
    method is not one that woq reads.

    Raises:
        Unsupported: the method is known, and this form of it is not read.
    """
    make = FOREIGN_METHODS.get(str(settings.get("quant_method", "")).lower())
    return None if make is None else make(settings)


# -- what shapes say ------------------------------------------------------------------------------


def _group_size(groups: int, cols: int, said: Any) -> int:
    """The group size of `groups` groups in rows of `cols`. Where several would do, because the last
    group is shorter, the settings decide."""
    if groups == 1:
        return -1
    if isinstance(said, int) and said > 0 and -(-cols // said) == groups:
        return said
    if cols % groups != 0:
        raise native.InvalidArgument(
            f"{groups} groups of scales do not divide {cols} columns, and group_size is {said!r}"
        )
    return cols // groups


def _bits(words: int, count: int, said: Any) -> int:
    """The width of `count` codes in `words` words of 32 bits."""
    widths = [bits for bits in range(2, 9) if -(-count * bits // 32) == words]
    if said in widths:
        return int(said)
    if len(widths) != 1:
        raise native.InvalidArgument(
            f"{count} codes in {words} words of 32 bits have no width from 2 to 8 bits"
            + (f": it could be any of {widths}" if widths else "")
        )
    return widths[0]


def _extent(tensors: Tensors, name: str, axis: int) -> int:
    tensor = tensors.get(name)
    if tensor is None or tensor.dim() != 2:
        shape = "is missing" if tensor is None else f"has shape {list(tensor.shape)}"
        raise native.InvalidArgument(f"tensor {name!r} {shape}; expected one of two dimensions")
    return int(tensor.shape[axis])


def _refuse(method: str, settings: Mapping[str, Any], keys: Mapping[str, str]) -> None:
    """Raise Unsupported where one of `keys` is set: each changes what a layer computes."""
    for key, why in keys.items():
        if settings.get(key):
            raise native.Unsupported(f"this {method} checkpoint has {key}={settings[key]!r}: {why}")


# -- GPTQ and AutoRound ---------------------------------------------------------------------------

_GPTQ_TENSORS = frozenset({"qweight", "qzeros", "scales", "g_idx"})


def _gptq_reader(settings: Mapping[str, Any], *, zeros: str, planes: bool = False) -> Reader:
    sym = bool(settings.get("sym", True))
    quantizer = (settings.get("meta") or {}).get("quantizer") or ()
    makers = [quantizer] if isinstance(quantizer, str) else list(quantizer)
    borrows = any(str(maker).startswith("gptqmodel") for maker in makers)

    def read(tensors: Tensors, rows: int, cols: int) -> tuple[native.QuantizedMatrix, str]:
        bits = _bits(_extent(tensors, "qweight", 0), cols, settings.get("bits"))
        groups = _extent(tensors, "scales", 0)
        kind = "v1_borrowed" if zeros == "v1" and borrows and bits in (2, 4, 8) else zeros
        return native.read_gptq(
            tensors,
            rows,
            cols,
            bits=bits,
            group_size=_group_size(groups, cols, settings.get("group_size")),
            sym=sym,
            zeros=kind,
            planes=planes,
        )

    return read


def _gptq(settings: Mapping[str, Any]) -> ForeignFormat:
    kind = settings.get("checkpoint_format") or settings.get("format") or "gptq"
    if kind == "gemm":
        return _awq({**settings, "version": kind})
    if kind not in ("gptq", "gptq_v2", "gptq_p"):
        raise native.Unsupported(
            f"this GPTQ checkpoint has checkpoint_format {kind!r}; woq reads gptq, gptq_v2, gptq_p "
            "and gemm"
        )
    if settings.get("is_marlin_format"):
        kind = "marlin"
        raise native.Unsupported("this GPTQ checkpoint is packed for Marlin, a kernel of GPUs")
    if settings.get("pack_dtype", "int32") not in ("int32", None):
        raise native.Unsupported(
            f"this GPTQ checkpoint has pack_dtype {settings['pack_dtype']!r}; woq reads int32"
        )
    _refuse("GPTQ", settings, {"rotation": "its weights are rotated, and the model's code is not"})
    zeros = "v1" if kind == "gptq" else "v2"
    reader = _gptq_reader(settings, zeros=zeros, planes=kind == "gptq_p")
    return ForeignFormat(f"GPTQ ({kind})", "qweight", _GPTQ_TENSORS, reader)


def _auto_round(settings: Mapping[str, Any]) -> ForeignFormat:
    packing = str(settings.get("packing_format") or "auto_round")
    name = f"AutoRound ({packing})"
    form = packing.rpartition(":")[2]
    if form in ("auto_awq", "awq"):
        awq = _awq({**settings, "version": "gemm"})
        return dataclasses.replace(awq, name=name)
    if form in ("auto_gptq", "gptq"):
        reader = _gptq_reader(settings, zeros="v1")
    elif form in ("auto_round", "gptqmodel"):
        reader = _gptq_reader(settings, zeros="v2")
    else:
        raise native.Unsupported(
            f"this AutoRound checkpoint has packing_format {packing!r}; woq reads auto_round, "
            "auto_round:auto_gptq, auto_round:gptqmodel and auto_round:auto_awq"
        )
    return ForeignFormat(name, "qweight", _GPTQ_TENSORS, reader)


# -- AWQ ------------------------------------------------------------------------------------------


def _awq(settings: Mapping[str, Any]) -> ForeignFormat:
    version = str(settings.get("version") or "gemm").lower()
    if version != "gemm":
        raise native.Unsupported(f"this AWQ checkpoint has version {version!r}; woq reads 'gemm'")
    bits = settings.get("bits", settings.get("w_bit", 4))
    if bits != 4:
        raise native.Unsupported(f"this AWQ checkpoint has {bits!r} bits; woq reads 4")
    said = settings.get("group_size", settings.get("q_group_size"))

    def read(tensors: Tensors, rows: int, cols: int) -> tuple[native.QuantizedMatrix, str]:
        group_size = _group_size(_extent(tensors, "scales", 0), cols, said)
        matrix = native.read_awq(tensors, rows, cols, group_size)
        return matrix, "zero points as stored" if matrix.scheme.asym else "symmetric"

    return ForeignFormat("AWQ (gemm)", "qweight", frozenset({"qweight", "qzeros", "scales"}), read)


# -- compressed-tensors ---------------------------------------------------------------------------


def _compressed(settings: Mapping[str, Any]) -> ForeignFormat:
    method = "compressed-tensors"
    status = settings.get("quantization_status", "compressed")
    if status != "compressed":
        raise native.Unsupported(
            f"this {method} checkpoint has quantization_status {status!r}: its weights are stored "
            "in floating point; save it compressed"
        )
    _refuse(
        method,
        settings,
        {
            "transform_config": "its weights are rotated, and the model's code is not",
            "sparsity_config": "sparse weights are not read",
        },
    )
    groups = list((settings.get("config_groups") or {}).values())
    weights = [group.get("weights") or {} for group in groups]
    formats = {settings.get("format"), *(group.get("format") for group in groups)}
    formats -= {None, "mixed-precision"}
    if formats not in ({"pack-quantized"}, {"int-quantized"}):
        raise native.Unsupported(
            f"this {method} checkpoint has format {', '.join(sorted(map(str, formats))) or 'none'}"
            "; woq reads pack-quantized and int-quantized"
        )

    def one(key: str) -> Any:
        values = {group.get(key) for group in weights}
        return values.pop() if len(values) == 1 else None

    def group_size(tensors: Tensors, cols: int) -> int:
        scale = tensors.get("weight_scale")
        if scale is not None and scale.dim() == 1:
            return -1
        return _group_size(_extent(tensors, "weight_scale", 1), cols, one("group_size"))

    def rule_of(matrix: native.QuantizedMatrix) -> str:
        rule = "zero points as stored" if matrix.scheme.asym else "symmetric"
        if any(group.get("input_activations") for group in groups):
            rule += "; activations are not quantized, though the settings say so"
        return rule

    def read_packed(tensors: Tensors, rows: int, cols: int) -> tuple[native.QuantizedMatrix, str]:
        shape = tensors.get("weight_shape")
        if shape is not None and shape.tolist() != [rows, cols]:
            raise native.InvalidArgument(
                f"weight_shape is {shape.tolist()}, the model's layer has [{rows}, {cols}]"
            )
        bits = _bits(_extent(tensors, "weight_packed", 1), cols, one("num_bits"))
        matrix = native.read_compressed_packed(tensors, rows, cols, bits, group_size(tensors, cols))
        return matrix, "zero points as stored" if matrix.scheme.asym else "symmetric"

    def read_int(tensors: Tensors, rows: int, cols: int) -> tuple[native.QuantizedMatrix, str]:
        matrix = native.read_compressed_int(tensors, rows, cols, group_size(tensors, cols))
        return matrix, rule_of(matrix)

    common = {"weight_scale", "weight_zero_point"}
    if formats == {"int-quantized"}:
        names = frozenset({"weight", *common})
        return ForeignFormat(f"{method} (int-quantized)", "weight_scale", names, read_int)
    names = frozenset({"weight_packed", "weight_shape", "weight_g_idx", *common})
    return ForeignFormat(f"{method} (pack-quantized)", "weight_packed", names, read_packed)


# The one list of methods, by transformers' `quant_method`.
FOREIGN_METHODS: Mapping[str, Callable[[Mapping[str, Any]], ForeignFormat]] = {
    "gptq": _gptq,
    "awq": _awq,
    "auto-round": _auto_round,
    "intel/auto-round": _auto_round,
    "compressed-tensors": _compressed,
}
