# SPDX-License-Identifier: Apache-2.0
"""GPTQ (AutoGPTQ, GPTQModel) and AutoRound."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ...core import native
from .awq import awq
from .form import ForeignFormat, Reader, Tensors, bits_of, extent, group_size_of, refuse

__all__ = ["auto_round", "gptq"]

_GPTQ_TENSORS = frozenset({"qweight", "qzeros", "scales", "g_idx"})


def _gptq_reader(settings: Mapping[str, Any], *, zeros: str, planes: bool = False) -> Reader:
    sym = bool(settings.get("sym", True))
    quantizer = (settings.get("meta") or {}).get("quantizer") or ()
    makers = [quantizer] if isinstance(quantizer, str) else list(quantizer)
    borrows = any(str(maker).startswith("gptqmodel") for maker in makers)

    def read(tensors: Tensors, rows: int, cols: int) -> tuple[native.QuantizedMatrix, str]:
        bits = bits_of(extent(tensors, "qweight", 0), cols, settings.get("bits"))
        groups = extent(tensors, "scales", 0)
        kind = "v1_borrowed" if zeros == "v1" and borrows and bits in (2, 4, 8) else zeros
        return native.read_gptq(
            tensors,
            rows,
            cols,
            bits=bits,
            group_size=group_size_of(groups, cols, settings.get("group_size")),
            sym=sym,
            zeros=kind,
            planes=planes,
        )

    return read


def gptq(settings: Mapping[str, Any]) -> ForeignFormat:
    kind = settings.get("checkpoint_format") or settings.get("format") or "gptq"
    if kind == "gemm":
        return awq({**settings, "version": kind})
    if kind not in ("gptq", "gptq_v2", "gptq_p"):
        raise native.Unsupported(
            f"this GPTQ checkpoint has checkpoint_format {kind!r}; woq reads gptq, gptq_v2, gptq_p "
            "and gemm"
        )
    if settings.get("is_marlin_format"):
        raise native.Unsupported("this GPTQ checkpoint is packed for Marlin, a kernel of GPUs")
    if settings.get("pack_dtype", "int32") not in ("int32", None):
        raise native.Unsupported(
            f"this GPTQ checkpoint has pack_dtype {settings['pack_dtype']!r}; woq reads int32"
        )
    refuse("GPTQ", settings, {"rotation": "its weights are rotated, and the model's code is not"})
    zeros = "v1" if kind == "gptq" else "v2"
    reader = _gptq_reader(settings, zeros=zeros, planes=kind == "gptq_p")
    return ForeignFormat(f"GPTQ ({kind})", "qweight", _GPTQ_TENSORS, reader)


def auto_round(settings: Mapping[str, Any]) -> ForeignFormat:
    packing = str(settings.get("packing_format") or "auto_round")
    name = f"AutoRound ({packing})"
    form = packing.rpartition(":")[2]
    if form in ("auto_awq", "awq"):
        form_of_awq = awq({**settings, "version": "gemm"}, (4, 5, 6, 7))
        return dataclasses.replace(form_of_awq, name=name)
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
