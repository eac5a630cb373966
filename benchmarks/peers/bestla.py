# SPDX-License-Identifier: Apache-2.0
"""BesTLA's kernels, through AutoRound's library (auto-round-lib)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from .base import Peer, Weight, Work, is_int4, unless


class Bestla(Peer):
    library: ClassVar[str] = "auto-round-lib"
    packages: ClassVar[tuple[str, ...]] = ("auto-round-lib", "torch")

    def __init__(self, activations: str) -> None:
        self.name = f"bestla {activations}"
        self.activations = activations

    def unsupported(self, work: Work) -> str | None:
        return unless(
            (is_int4(work) or work.dtype == "int8")
            and work.k % work.group == 0
            and work.group % 32 == 0,
            "int4 or int8 in groups of a multiple of 32, K a multiple of the group size",
        )

    def build_one(self, weight: Weight, threads: int) -> Callable[[Any], Any]:
        import auto_round_kernel as kernels

        work = weight.work
        center = 1 << (work.bits - 1)

        def signed(codes: NDArray[np.uint8]) -> torch.Tensor:  # [K, N] or [G, N]
            return torch.from_numpy((codes.astype(np.int16) - center).astype(np.int8).T.copy())

        scheme = (work.group, self.activations, f"int{work.bits}", "fp32", work.asym)
        zeros = signed(weight.zero_points) if work.asym else torch.empty(0, dtype=torch.int8)
        scales = torch.from_numpy(weight.scales.T.copy())
        packed = kernels.repack_quantized_weight(signed(weight.codes), scales, zeros, *scheme)
        bias = torch.empty(0)
        return lambda x: kernels.woqgemm(x, packed, bias, work.n, work.k, *scheme)

    def prepare(self, x: NDArray[np.float32]) -> torch.Tensor:
        return torch.from_numpy(x)

    def to_numpy(self, y: torch.Tensor) -> NDArray[np.float32]:
        return y.float().numpy()


CANDIDATES = [Bestla("fp32"), Bestla("bf16"), Bestla("int8")]
