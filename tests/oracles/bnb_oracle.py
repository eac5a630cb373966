# SPDX-License-Identifier: Apache-2.0
"""bitsandbytes as an oracle: its CPU results as numpy arrays. Needs torch and bitsandbytes."""

from __future__ import annotations

import bitsandbytes.functional as bnb
import numpy as np
import torch

NESTED_BLOCK = 256


def table(quant_type: str) -> np.ndarray:
    """float32 [16]: the value of every code at scale 1."""
    return bnb.get_4bit_type(quant_type, device="cpu").numpy()


def dynamic_map() -> np.ndarray:
    """float32 [256], ascending: the signed 8-bit map of the nested statistics."""
    return bnb.create_dynamic_map(signed=True).numpy()


def quantize(weight: np.ndarray, quant_type: str, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes uint8 [N, K] and absmax float32 [N, K / block]; block must divide K."""
    rows, cols = weight.shape
    if cols % block:
        raise ValueError(f"block {block} does not divide K = {cols}: blocks would span rows")
    packed, state = bnb.quantize_4bit(
        torch.from_numpy(weight.copy()), blocksize=block, quant_type=quant_type
    )
    high_first = packed.numpy().reshape(-1)
    codes = np.stack([high_first >> 4, high_first & 15], axis=1).reshape(rows, cols)
    return codes, state.absmax.numpy().reshape(rows, -1)


def near_midpoints(quant_type: str) -> np.ndarray:
    """float32 [12, 64]: per row an awkward absmax, and the 15 midpoints between the table's values
    times it with their neighbours in float32. Dividing by the absmax in place of multiplying by its
    reciprocal changes codes here, and so does sending ties up."""
    values = np.sort(table(quant_type))
    midpoints = (values[:-1] + values[1:]) / np.float32(2)
    rows = []
    for absmax in np.float32(1) / np.arange(3, 27, 2, dtype=np.float32):
        ties = midpoints * absmax
        ends = np.array([absmax, -absmax, 0.0, -0.0], dtype=np.float32)
        below, above = (np.nextafter(ties, np.float32(side)) for side in (-9, 9))
        rows.append(np.concatenate([ends, ties, below, above, -ties]))
    return np.stack(rows)


def dequantize(codes: np.ndarray, absmax: np.ndarray, quant_type: str, block: int) -> np.ndarray:
    """float32 [N, K] by bitsandbytes' own kernel."""
    flat = codes.reshape(-1, 2)
    packed = torch.from_numpy((flat[:, 0] << 4 | flat[:, 1]).astype(np.uint8)).reshape(-1, 1)
    state = bnb.QuantState(
        absmax=torch.from_numpy(absmax.reshape(-1).copy()),
        shape=torch.Size(codes.shape),
        dtype=torch.float32,
        blocksize=block,
        code=bnb.get_4bit_type(quant_type, device="cpu"),
        quant_type=quant_type,
    )
    return bnb.dequantize_4bit(packed, state).numpy()


def nested_offset(scales: np.ndarray) -> np.float32:
    """The mean that bitsandbytes subtracts from the scales."""
    return np.float32(torch.from_numpy(scales.reshape(-1).copy()).mean().item())


def nested_kernel(centred: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes and block absmax of bitsandbytes' CPU kernel, which looks a value rounded to 1/65535
    up in a table: up to that much away from the nearest entry."""
    codes, state = bnb.quantize_blockwise(
        torch.from_numpy(centred.reshape(-1).copy()), blocksize=NESTED_BLOCK
    )
    return codes.numpy(), state.absmax.numpy()


def nested_nearest(centred: np.ndarray) -> np.ndarray:
    """Codes of bitsandbytes' generic path, the exact nearest entry. On a CPU it serves the types
    that the kernel does not know, so the values go in as float64; it computes in float32."""
    values = torch.from_numpy(centred.reshape(-1).astype(np.float64))
    codes, _ = torch.ops.bitsandbytes.quantize_blockwise.default(
        values, bnb.create_dynamic_map(signed=True), NESTED_BLOCK
    )
    return codes.numpy()


def nested_decode(codes: np.ndarray, absmax: np.ndarray, offset: np.float32) -> np.ndarray:
    """float32 scales by bitsandbytes' own kernel, plus the offset."""
    plain = bnb.dequantize_blockwise(
        torch.from_numpy(codes.reshape(-1).copy()),
        absmax=torch.from_numpy(absmax.reshape(-1).copy()),
        code=bnb.create_dynamic_map(signed=True),
        blocksize=NESTED_BLOCK,
    )
    return (plain + torch.tensor(offset)).numpy()
