# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime's MatMulNBits, computing in fp32 (accuracy level 0) or int8 (level 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .base import Peer, Run, Weight, Work, is_int4, pack_nibbles, unless


class MatMulNBits(Peer):
    library: ClassVar[str] = "onnxruntime"
    packages: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnx")

    def __init__(self, accuracy_level: int) -> None:
        self.name = f"onnxruntime level {accuracy_level}"
        self.activations = "int8" if accuracy_level == 4 else "fp32"
        self.accuracy_level = accuracy_level

    def unsupported(self, work: Work) -> str | None:
        return unless(
            (is_int4(work) or work.dtype == "int8")
            and work.group in (16, 32, 64, 128, 256)
            and work.k % work.group == 0,
            "int4 or int8 in groups of 16 to 256, K a multiple of the group size",
        )

    def build_one(self, weight: Weight, threads: int) -> Callable[[Any], Any]:
        run = self.build(weight, 1, threads)
        return lambda x: run(x)[0]

    def build(self, weight: Weight, copies: int, threads: int) -> Run:
        """One session, one node per copy: sessions would each have threads that spin after a run.

        Every node has an input of its own, so that no optimizer can merge two of them.
        """
        import onnxruntime
        from onnx import TensorProto, helper

        work = weight.work
        four_bits = work.bits == 4
        codes = pack_nibbles(weight.codes) if four_bits else weight.codes
        zeros = pack_nibbles(weight.zero_points) if four_bits else weight.zero_points
        arrays: dict[str, NDArray[Any]] = {
            "b": codes.reshape(work.n, work.groups, work.group * work.bits // 8),
            "scales": weight.scales,
        }
        if work.asym:
            arrays["zeros"] = zeros
        nodes, initializers, inputs, outputs = [], [], [], []
        for i in range(copies):
            names = [f"{name}{i}" for name in arrays]
            for name, array in zip(names, arrays.values(), strict=True):
                kind = TensorProto.FLOAT if array.dtype == np.float32 else TensorProto.UINT8
                initializers.append(
                    helper.make_tensor(name, kind, array.shape, array.tobytes(), raw=True)
                )
            nodes.append(
                helper.make_node(
                    "MatMulNBits",
                    [f"x{i}", *names],
                    [f"y{i}"],
                    domain="com.microsoft",
                    N=work.n,
                    K=work.k,
                    bits=work.bits,
                    block_size=work.group,
                    accuracy_level=self.accuracy_level,
                )
            )
            inputs.append(
                helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, [work.m, work.k])
            )
            outputs.append(
                helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, [work.m, work.n])
            )
        model = helper.make_model(
            helper.make_graph(nodes, "product", inputs, outputs, initializers),
            opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)],
            ir_version=10,
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

        def run(x: Any) -> Sequence[Any]:
            return session.run_with_ort_values(None, {f"x{i}": x for i in range(copies)})

        return run

    def prepare(self, x: NDArray[np.float32]) -> Any:
        import onnxruntime

        return onnxruntime.OrtValue.ortvalue_from_numpy(x)

    def to_numpy(self, y: Any) -> NDArray[np.float32]:
        return y.numpy()


CANDIDATES = [MatMulNBits(0), MatMulNBits(4)]
