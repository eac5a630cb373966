# SPDX-License-Identifier: Apache-2.0
"""woq and other libraries behind one interface, for `bench_peers.py`.

A new peer is a module here with a list CANDIDATES, and its line below.
"""

from __future__ import annotations

from . import bestla, ggml, onnx_runtime, openvino_model, ours, torch_ops
from .base import TOLERANCE, Peer, Run, Weight, Work, relative_error

__all__ = ["CANDIDATES", "TOLERANCE", "Peer", "Run", "Weight", "Work", "relative_error"]

CANDIDATES: list[Peer] = [
    *ours.CANDIDATES,
    *torch_ops.CANDIDATES,
    *onnx_runtime.CANDIDATES,
    *openvino_model.CANDIDATES,
    *bestla.CANDIDATES,
    *ggml.CANDIDATES,
]
