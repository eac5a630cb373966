# SPDX-License-Identifier: Apache-2.0
"""bitsandbytes, 4 bits (nf4, fp4) and 8 bits (LLM.int8)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ...core import native
from .form import ForeignFormat, Tensors

__all__ = ["bitsandbytes"]

# Its name of a table of codes -> ours.
_TABLES = {"nf4": "nf4", "fp4": "fp4_e2m1_bnb"}
_STATE = "weight.quant_state.bitsandbytes__"

_TENSORS_4BIT = frozenset(
    {
        "weight",
        "weight.absmax",
        "weight.quant_map",
        "weight.nested_absmax",
        "weight.nested_quant_map",
        *(_STATE + table for table in _TABLES),
    }
)
_TENSORS_8BIT = frozenset({"weight", "SCB", "weight_format"})


def bitsandbytes(settings: Mapping[str, Any]) -> ForeignFormat:
    if settings.get("load_in_8bit") or settings.get("_load_in_8bit"):
        return ForeignFormat("bitsandbytes (int8)", "SCB", _TENSORS_8BIT, _read_8bit)
    return ForeignFormat("bitsandbytes (4 bits)", "weight.absmax", _TENSORS_4BIT, _read_4bit)


def _read_4bit(tensors: Tensors, rows: int, cols: int) -> tuple[native.QuantizedMatrix, str]:
    table, state = _quant_state(tensors)
    if list(state.get("shape") or ()) != [rows, cols]:
        raise native.InvalidArgument(
            f"its quant_state says shape {state.get('shape')}, the model's layer has "
            f"[{rows}, {cols}]"
        )
    _check_table(tensors, table)
    parts = {name.removeprefix("weight."): tensor for name, tensor in tensors.items()}
    # The same bytes whatever `bnb_4bit_quant_storage` they are said to be of.
    if "weight" in parts:
        parts["weight"] = parts["weight"].reshape(-1).view(torch.uint8).reshape(-1, 1)
    nested = "nested_absmax" in parts
    if nested and state.get("nested_blocksize", 256) != 256:
        raise native.Unsupported(
            f"its scales are quantized in blocks of {state['nested_blocksize']}; woq reads 256"
        )
    matrix = native.read_bitsandbytes4(
        {name: tensor for name, tensor in parts.items() if "quant_state" not in name},
        rows,
        cols,
        nf4=table == "nf4",
        block_size=_block_size(state),
        nested_offset=_offset(state) if nested else 0.0,
    )
    return matrix, f"{table}, {'quantized scales' if nested else 'scales as stored'}"


def _read_8bit(tensors: Tensors, rows: int, cols: int) -> tuple[native.QuantizedMatrix, str]:
    layout = tensors.get("weight_format")
    if layout is not None and layout.numel() > 0 and int(layout.reshape(-1)[0]) != 0:
        raise native.Unsupported(
            f"its weight_format is {layout.tolist()}, an order for GPUs; woq reads 0 (row by row)"
        )
    rule = "int8 weights; columns of outliers are not computed apart, as LLM.int8 does"
    return native.read_bitsandbytes8(tensors, rows, cols), rule


def _quant_state(tensors: Tensors) -> tuple[str, dict[str, Any]]:
    """The table of codes, and what the layer's JSON says."""
    found = [table for table in _TABLES if _STATE + table in tensors]
    if len(found) != 1:
        raise native.InvalidArgument(
            f"it has {len(found)} of the tensors "
            f"{' and '.join(_STATE + table for table in _TABLES)}; expected one"
        )
    tensor = tensors[_STATE + found[0]]
    try:
        state = json.loads(bytes(tensor.reshape(-1).tolist()).decode("utf-8"))
        if not isinstance(state, dict) or state.get("quant_type", found[0]) != found[0]:
            raise ValueError(f"{state!r} is not the state of {found[0]}")
    except (ValueError, TypeError, RecursionError) as error:
        raise native.InvalidArgument(f"tensor {_STATE + found[0]!r} is damaged: {error}") from error
    return found[0], state


def _block_size(state: Mapping[str, Any]) -> int:
    value = state.get("blocksize")
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
        raise native.InvalidArgument(f"blocksize of its quant_state is {value!r}")
    return value


def _offset(state: Mapping[str, Any]) -> float:
    value = state.get("nested_offset")
    if not isinstance(value, int | float) or not abs(value) < 3e38:
        raise native.InvalidArgument(f"nested_offset of its quant_state is {value!r}")
    return float(value)


def _check_table(tensors: Tensors, table: str) -> None:
    """The values of the codes are stored, too."""
    stored = tensors.get("weight.quant_map")
    if stored is None:
        return
    values = np.asarray(native.code_values(_TABLES[table]), dtype=np.float32)
    if stored.dim() != 1 or not np.array_equal(stored.float().numpy(), values):
        raise native.Unsupported(
            f"its quant_map has other values than {table}, and the kernels compute with those"
        )
