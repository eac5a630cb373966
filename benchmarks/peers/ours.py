# SPDX-License-Identifier: Apache-2.0
"""woq's own layer, once for each compute dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from woq.core import native

from .base import Peer, Weight, Work


class Woq(Peer):
    library: ClassVar[str] = "woq"
    packages: ClassVar[tuple[str, ...]] = ()

    def __init__(self, compute_dtype: str) -> None:
        self.name = f"woq {compute_dtype}"
        self.activations = compute_dtype

    def unsupported(self, work: Work) -> str | None:
        return None

    def build_one(self, weight: Weight, threads: int) -> Callable[[Any], Any]:
        layer = native.Linear(weight.matrix, None, self.activations, "", threads)

        def call(x: torch.Tensor) -> torch.Tensor:
            y = torch.empty(x.shape[0], layer.out_features, dtype=x.dtype)
            layer.forward(x, y, threads)
            return y

        return call

    # As the peers of its kind: bf16 in and out for bf16 products.
    def prepare(self, x: NDArray[np.float32]) -> torch.Tensor:
        return torch.from_numpy(x).to(
            torch.bfloat16 if self.activations == "bf16" else torch.float32
        )

    def to_numpy(self, y: torch.Tensor) -> NDArray[np.float32]:
        return y.float().numpy()


CANDIDATES = [Woq(name) for name in native.compute_dtype_names()]
