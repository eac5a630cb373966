# SPDX-License-Identifier: Apache-2.0
"""OpenVINO: a product whose weight is a compressed constant, decompressed inside the graph.

Activations are fp32 (or bf16) as they are, or quantized to int8 in groups at run time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .base import Peer, Weight, Work, is_int4, pack_nibbles, unless


class CompressedMatMul(Peer):
    library: ClassVar[str] = "openvino"
    packages: ClassVar[tuple[str, ...]] = ("openvino",)

    def __init__(self, activations: str, dynamic_group: int) -> None:
        self.name = f"openvino {activations}" + (f" g{dynamic_group}" if dynamic_group else "")
        self.activations = activations
        self.dynamic_group = dynamic_group

    def unsupported(self, work: Work) -> str | None:
        if self.activations == "int8" and not (is_int4(work) or work.dtype == "int8"):
            return "quantizes activations for integer weights only"
        if self.dynamic_group > work.group:
            return f"activation groups of {self.dynamic_group} are larger than the weight's"
        return unless(
            work.dtype != "fp4_e2m1_bnb" and work.k % work.group == 0,
            "integers, nf4 or fp4_e2m1, K a multiple of the group size",
        )

    def build_one(self, weight: Weight, threads: int) -> Callable[[Any], Any]:
        import openvino
        from openvino import opset13 as ops

        work = weight.work
        shape = [work.n, work.groups, work.group]
        kind, codes = _codes(weight)
        compressed = ops.convert(_constant(kind, codes, shape), "f32")
        if work.asym:
            zeros = weight.zero_points
            packed = pack_nibbles(zeros.reshape(-1)) if work.bits == 4 else zeros
            zero = _constant(kind, packed, [work.n, work.groups, 1])
            compressed = ops.subtract(compressed, ops.convert(zero, "f32"))
        scales = ops.constant(weight.scales.reshape(work.n, work.groups, 1).astype(np.float16))
        compressed = ops.multiply(compressed, ops.convert(scales, "f32"))
        dense = ops.reshape(compressed, np.array([work.n, work.k]), False)
        x = ops.parameter([work.m, work.k], np.float32, "x")
        model = openvino.Model([ops.matmul(x, dense, False, True)], [x], "product")
        compiled = openvino.Core().compile_model(model, "CPU", self._settings(threads))
        request = compiled.create_infer_request()

        def call(x: Any) -> NDArray[np.float32]:
            request.set_input_tensor(x)
            request.infer()
            return request.get_output_tensor().data

        return call

    def _settings(self, threads: int) -> dict[str, Any]:
        return {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "bf16" if self.activations == "bf16" else "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": self.dynamic_group,
        }

    def prepare(self, x: NDArray[np.float32]) -> Any:
        import openvino

        return openvino.Tensor(x, shared_memory=True)


def _codes(weight: Weight) -> tuple[str, NDArray[np.uint8]]:
    """OpenVINO's type for the codes, and the codes as it stores them, 4 bits low nibble first."""
    dtype, asym = weight.work.dtype, weight.work.asym
    if dtype == "int8":
        return ("u8", weight.codes) if asym else ("i8", weight.codes ^ np.uint8(128))
    if dtype in ("nf4", "fp4_e2m1"):
        return {"nf4": "nf4", "fp4_e2m1": "f4e2m1"}[dtype], pack_nibbles(weight.codes)
    return ("u4", pack_nibbles(weight.codes)) if asym else ("i4", pack_nibbles(weight.codes ^ 8))


def _constant(kind: str, stored: NDArray[np.uint8], shape: list[int]) -> Any:
    import openvino
    from openvino import op

    if kind in ("i8", "u8"):
        stored = stored.reshape(shape).view(np.int8 if kind == "i8" else np.uint8)
        return op.Constant(stored)
    packed = np.ascontiguousarray(stored).reshape(-1)
    tensor = openvino.Tensor(packed, openvino.Shape(shape), getattr(openvino.Type, kind))
    return op.Constant(tensor)


CANDIDATES = [
    CompressedMatMul("fp32", 0),
    CompressedMatMul("bf16", 0),
    CompressedMatMul("int8", 32),
    CompressedMatMul("int8", 128),
]
