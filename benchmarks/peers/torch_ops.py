# SPDX-License-Identifier: Apache-2.0
"""torch's weight-only products, torchao's layers and bitsandbytes' 4-bit layers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from .base import Peer, Weight, Work, is_int4, pack_nibbles, unless


class TorchPeer(Peer):
    """A peer whose activations and outputs are bf16 tensors."""

    def prepare(self, x: NDArray[np.float32]) -> torch.Tensor:
        return torch.from_numpy(x).to(torch.bfloat16)

    def to_numpy(self, y: torch.Tensor) -> NDArray[np.float32]:
        return y.float().numpy()


class Int4Pack(TorchPeer):
    """torch's own int4: w = (code - 8) * scale + zero, with a real zero.

    Only with bf16 activations: with fp32 it is a scalar loop, seconds for one call of many rows.
    """

    library: ClassVar[str] = "torch"
    packages: ClassVar[tuple[str, ...]] = ("torch",)
    name = "torch int4pack bf16"
    activations = "bf16"

    def unsupported(self, work: Work) -> str | None:
        return unless(
            is_int4(work)
            and work.group in (32, 64, 128, 256)
            and work.n % 16 == 0
            and work.k % work.group == 0,
            "int4 in groups of 32, 64, 128 or 256, N a multiple of 16, K of the group size",
        )

    def build_one(self, weight: Weight, threads: int) -> Callable[[Any], Any]:
        ops, group = torch.ops.aten, weight.work.group
        codes = torch.from_numpy(weight.codes.astype(np.int32))
        packed = ops._convert_weight_to_int4pack_for_cpu(codes, 2)
        zeros = (8.0 - weight.zero_points) * weight.scales
        both = np.stack([weight.scales.T, zeros.T], axis=-1)  # [G, N, 2]
        both = torch.from_numpy(both.astype(np.float32)).to(torch.bfloat16).contiguous()
        return lambda x: ops._weight_int4pack_mm_for_cpu(x, packed, group, both)


class Int8Pack(TorchPeer):
    """torch's own int8: one scale a row, no zero point."""

    library: ClassVar[str] = "torch"
    packages: ClassVar[tuple[str, ...]] = ("torch",)
    name = "torch int8pack bf16"
    activations = "bf16"

    def unsupported(self, work: Work) -> str | None:
        return unless(
            work.dtype == "int8" and work.groups == 1 and not work.asym,
            "symmetric int8 with one scale a row (--group-size -1)",
        )

    def build_one(self, weight: Weight, threads: int) -> Callable[[Any], Any]:
        codes = torch.from_numpy((weight.codes.astype(np.int16) - 128).astype(np.int8))
        scales = torch.from_numpy(weight.scales[:, 0]).to(torch.bfloat16)
        return lambda x: torch.ops.aten._weight_int8pack_mm(x, codes, scales)


class TorchAo(TorchPeer):
    """torchao's CPU int4 layers, which quantize (asymmetrically) by themselves."""

    library: ClassVar[str] = "torchao"
    packages: ClassVar[tuple[str, ...]] = ("torchao",)

    # A group without both extreme codes gets a narrower grid, and its values are rounded anew.
    tolerance = 3e-2

    def __init__(self, activations: str) -> None:
        self.name = "torchao int4 " + ("bf16" if activations == "bf16" else "dynamic int8")
        self.activations = activations

    def unsupported(self, work: Work) -> str | None:
        return unless(
            is_int4(work)
            and work.asym
            and work.group in (32, 64, 128)
            and work.k % work.group == 0
            and work.n % 32 == 0,
            "asymmetric int4 in groups of 32, 64 or 128, N a multiple of 32, K of the group size",
        )

    def build_one(self, weight: Weight, threads: int) -> Callable[[Any], Any]:
        from torchao.prototype.quantization import int4
        from torchao.quantization import quantize_

        config = (
            int4.PrototypeInt4WeightOnlyConfig
            if self.activations == "bf16"
            else int4.Int8DynamicActivationInt4WeightConfig
        )
        layer = torch.nn.Linear(weight.work.k, weight.work.n, bias=False, dtype=torch.bfloat16)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(weight.dequantized))
        quantize_(layer, config(group_size=weight.work.group, set_inductor_config=False))
        return layer.eval()


class BitsAndBytes(TorchPeer):
    """bitsandbytes' 4-bit layer; it packs for the CPU in its first call."""

    library: ClassVar[str] = "bitsandbytes"
    packages: ClassVar[tuple[str, ...]] = ("bitsandbytes",)
    name = "bitsandbytes bf16"
    activations = "bf16"
    types: ClassVar[dict[str, str]] = {"nf4": "nf4", "fp4_e2m1_bnb": "fp4"}

    def unsupported(self, work: Work) -> str | None:
        return unless(
            work.dtype in self.types
            and work.group in (32, 64, 128, 256, 512)
            and work.k % work.group == 0
            and work.n % 32 == 0,
            "nf4 or fp4_e2m1_bnb in groups of 32 to 512, N a multiple of 32, K of the group size",
        )

    def build_one(self, weight: Weight, threads: int) -> Callable[[Any], Any]:
        import bitsandbytes
        from bitsandbytes.functional import QuantState, get_4bit_type

        work, quant_type = weight.work, self.types[weight.work.dtype]
        state = QuantState(
            absmax=torch.from_numpy(weight.scales.reshape(-1).copy()),
            shape=torch.Size((work.n, work.k)),
            code=get_4bit_type(quant_type, device="cpu"),
            blocksize=work.group,
            quant_type=quant_type,
            dtype=torch.bfloat16,
        )
        packed = torch.from_numpy(pack_nibbles(weight.codes, high_first=True).reshape(-1, 1))
        layer = bitsandbytes.nn.Linear4bit(
            work.k, work.n, bias=False, compute_dtype=torch.bfloat16, quant_type=quant_type
        )
        layer.weight = bitsandbytes.nn.Params4bit(
            packed,
            quant_state=state,
            blocksize=work.group,
            compress_statistics=False,
            quant_type=quant_type,
            module=layer,
            bnb_quantized=True,
        )
        layer.quant_state = state
        layer.eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            layer(torch.zeros(1, work.k, dtype=torch.bfloat16))
        return layer


CANDIDATES = [
    Int4Pack(),
    Int8Pack(),
    TorchAo("bf16"),
    TorchAo("int8"),
    BitsAndBytes(),
]
