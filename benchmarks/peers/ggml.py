# SPDX-License-Identifier: Apache-2.0
"""ggml, llama.cpp's kernels, through the shared libraries in llama-cpp-python.

q4_0, q4_1 and q8_0 hold woq's codes as they are. iq4_nl (for nf4) and mxfp4 (for fp4_e2m1) are
formats of the same size with other values: ggml quantizes, and its own dequantization is the
reference. "repack" is the interleaved layout that llama.cpp chooses where there is one. The CPU
backend computes with int8 activations in blocks of 32.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable, Sequence
from ctypes import c_bool, c_char_p, c_float, c_int, c_int64, c_size_t, c_void_p
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .base import Peer, Run, Weight, Work, unless

BLOCK = 32  # elements
TYPES = {"q4_0": 2, "q4_1": 3, "q8_0": 8, "iq4_nl": 20, "mxfp4": 39}  # enum ggml_type
FOR_DTYPES = {
    "q4_0": ("int4_clip", "int4_fullrange"),
    "q4_1": ("int4_clip", "int4_fullrange"),
    "q8_0": ("int8",),
    "iq4_nl": ("nf4",),
    "mxfp4": ("fp4_e2m1",),
}
F32 = 0


class InitParams(ctypes.Structure):
    _fields_: ClassVar = [("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool)]


class TypeTraits(ctypes.Structure):
    _fields_: ClassVar = [
        ("type_name", c_char_p),
        ("blck_size", c_int64),
        ("blck_size_interleave", c_int64),
        ("type_size", c_size_t),
        ("is_quantized", c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_int64)),
        ("from_float_ref", c_void_p),
    ]


# Name: result, arguments. Handles are void pointers.
SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "ggml_log_set": (None, [c_void_p, c_void_p]),
    "ggml_init": (c_void_p, [InitParams]),
    "ggml_free": (None, [c_void_p]),
    "ggml_new_tensor_2d": (c_void_p, [c_void_p, c_int, c_int64, c_int64]),
    "ggml_mul_mat": (c_void_p, [c_void_p, c_void_p, c_void_p]),
    "ggml_nbytes": (c_size_t, [c_void_p]),
    "ggml_get_data": (c_void_p, [c_void_p]),
    "ggml_new_graph": (c_void_p, [c_void_p]),
    "ggml_build_forward_expand": (None, [c_void_p, c_void_p]),
    "ggml_tensor_overhead": (c_size_t, []),
    "ggml_graph_overhead": (c_size_t, []),
    "ggml_get_type_traits": (ctypes.POINTER(TypeTraits), [c_int]),
    "ggml_quantize_chunk": (
        c_size_t,
        [c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p],
    ),
    "ggml_backend_cpu_init": (c_void_p, []),
    "ggml_backend_cpu_reg": (c_void_p, []),
    "ggml_backend_cpu_set_n_threads": (None, [c_void_p, c_int]),
    "ggml_backend_free": (None, [c_void_p]),
    "ggml_backend_get_device": (c_void_p, [c_void_p]),
    "ggml_backend_reg_get_proc_address": (c_void_p, [c_void_p, c_char_p]),
    "ggml_backend_buft_name": (c_char_p, [c_void_p]),
    "ggml_backend_cpu_buffer_type": (c_void_p, []),
    "ggml_backend_alloc_ctx_tensors_from_buft": (c_void_p, [c_void_p, c_void_p]),
    "ggml_backend_buffer_free": (None, [c_void_p]),
    "ggml_backend_tensor_set": (None, [c_void_p, c_void_p, c_size_t, c_size_t]),
    "ggml_backend_graph_compute": (c_int, [c_void_p, c_void_p]),
}


def library_folder() -> Path | None:
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "lib"
    return folder if (folder / "libggml-cpu.so").exists() else None


class Library:
    """The functions above, from whichever of ggml's libraries has them."""

    def __init__(self, folder: Path) -> None:
        parts = [
            ctypes.CDLL(str(folder / f"lib{name}.so"), mode=ctypes.RTLD_GLOBAL)
            for name in ("ggml-base", "ggml-cpu")
        ]
        for name, (result, arguments) in SIGNATURES.items():
            function = next((getattr(part, name) for part in parts if hasattr(part, name)), None)
            if function is None:
                raise RuntimeError(f"this ggml has no {name}")
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        # Kept, as ggml holds its address: without it every repacked tensor is a line on stderr.
        self.silence = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)(lambda *_: None)
        self.ggml_log_set(self.silence, None)

    def __getattr__(self, name: str) -> Any:  # for type checkers: set in __init__
        raise AttributeError(name)

    def context(self, tensors: int) -> int:
        size = tensors * self.ggml_tensor_overhead() + self.ggml_graph_overhead()
        return int(self.ggml_init(InitParams(size, None, True)))

    def repack_buffer_type(self, backend: int) -> int | None:
        address = self.ggml_backend_reg_get_proc_address(
            self.ggml_backend_cpu_reg(), b"ggml_backend_dev_get_extra_bufts"
        )
        if not address:
            return None
        prototype = ctypes.CFUNCTYPE(ctypes.POINTER(c_void_p), c_void_p)
        listed = prototype(address)(self.ggml_backend_get_device(backend))
        for i in range(8):
            if not listed or not listed[i]:
                return None
            if self.ggml_backend_buft_name(listed[i]) == b"CPU_REPACK":
                return int(listed[i])
        return None


@cache
def library() -> Library:
    folder = library_folder()
    assert folder is not None
    return Library(folder)


class Ggml(Peer):
    library: ClassVar[str] = "ggml"
    packages: ClassVar[tuple[str, ...]] = ("llama-cpp-python",)
    activations = "int8"

    def __init__(self, form: str, repack: bool) -> None:
        self.name = f"ggml {form}" + (" repack" if repack else "")
        self.form = form
        self.repack = repack

    def missing(self) -> str | None:
        return super().missing() or (
            None if library_folder() else "llama-cpp-python brings no shared libggml"
        )

    def unsupported(self, work: Work) -> str | None:
        fits = work.dtype in FOR_DTYPES[self.form] and work.asym == (self.form == "q4_1")
        return unless(
            fits and work.group == BLOCK and work.k % BLOCK == 0 and work.n % 8 == 0,
            f"{' or '.join(FOR_DTYPES[self.form])}, {'a' if self.form == 'q4_1' else ''}symmetric, "
            "groups of 32, N a multiple of 8",
        )

    def stored(self, weight: Weight) -> NDArray[np.uint8]:
        """The matrix in ggml's blocks, as in a GGUF file."""
        work = weight.work
        if self.form in ("iq4_nl", "mxfp4"):
            return quantized(self.form, weight.dequantized)
        codes = weight.codes.reshape(work.n, work.groups, BLOCK)
        scales = _halves(weight.scales)
        if self.form == "q8_0":  # scale, 32 signed bytes
            return np.concatenate([scales, codes ^ 128], axis=-1)
        # Element i in a low nibble, element i + 16 in the high one beside it.
        nibbles = codes[..., :16] | codes[..., 16:] << 4
        if self.form == "q4_0":
            return np.concatenate([scales, nibbles], axis=-1)
        minima = _halves(-weight.scales * weight.zero_points)
        return np.concatenate([scales, minima, nibbles], axis=-1)

    def reference(self, weight: Weight) -> NDArray[np.float32]:
        if self.form in ("iq4_nl", "mxfp4"):
            return dequantized(self.form, self.stored(weight), weight.work)
        return weight.dequantized

    def build_one(self, weight: Weight, threads: int) -> Callable[[Any], Any]:
        run = self.build(weight, 1, threads)
        return lambda x: run(x)[0]

    def build(self, weight: Weight, copies: int, threads: int) -> Run:
        """One graph of as many products as there are copies."""
        product = Products(self, weight, copies, threads)
        return product.run


class Products:
    """A backend, the weights, and a graph y_i = W_i x; freed with the object."""

    # For an object whose making failed.
    backend: int | None = None
    contexts: Sequence[int] = ()

    def __init__(self, peer: Ggml, weight: Weight, copies: int, threads: int) -> None:
        work, ggml = weight.work, library()
        self.ggml = ggml
        self.buffers: list[int] = []
        self.backend = ggml.ggml_backend_cpu_init()
        self.contexts = [ggml.context(copies), ggml.context(copies + 1)]
        ggml.ggml_backend_cpu_set_n_threads(self.backend, threads)
        plain = ggml.ggml_backend_cpu_buffer_type()
        kind = ggml.repack_buffer_type(self.backend) if peer.repack else plain
        if kind is None:
            raise RuntimeError("this ggml was built without the repacked layouts")
        weights = [
            ggml.ggml_new_tensor_2d(self.contexts[0], TYPES[peer.form], work.k, work.n)
            for _ in range(copies)
        ]
        self._allocate(self.contexts[0], kind)
        data = np.ascontiguousarray(peer.stored(weight))
        for tensor in weights:
            assert data.nbytes == ggml.ggml_nbytes(tensor)
            ggml.ggml_backend_tensor_set(tensor, data.ctypes.data, 0, data.nbytes)
        x = ggml.ggml_new_tensor_2d(self.contexts[1], F32, work.k, work.m)
        products = [ggml.ggml_mul_mat(self.contexts[1], tensor, x) for tensor in weights]
        self._allocate(self.contexts[1], plain)
        self.graph = ggml.ggml_new_graph(self.contexts[1])
        for y in products:
            ggml.ggml_build_forward_expand(self.graph, y)
        self.x = self._floats(x, (work.m, work.k))
        self.outputs = [self._floats(y, (work.m, work.n)) for y in products]

    def _allocate(self, context: int, kind: int) -> None:
        buffer = self.ggml.ggml_backend_alloc_ctx_tensors_from_buft(context, kind)
        if not buffer:
            raise MemoryError("ggml could not allocate a buffer")
        self.buffers.append(buffer)

    def _floats(self, tensor: int, shape: tuple[int, int]) -> NDArray[np.float32]:
        address = self.ggml.ggml_get_data(tensor)
        pointer = ctypes.cast(address, ctypes.POINTER(c_float))
        return np.ctypeslib.as_array(pointer, shape)

    def run(self, x: NDArray[np.float32]) -> Sequence[NDArray[np.float32]]:
        self.x[...] = x
        status = self.ggml.ggml_backend_graph_compute(self.backend, self.graph)
        if status != 0:
            raise RuntimeError(f"ggml_backend_graph_compute: status {status}")
        return self.outputs

    def __del__(self) -> None:
        if self.backend is None:
            return
        for buffer in self.buffers:
            self.ggml.ggml_backend_buffer_free(buffer)
        for context in self.contexts:
            self.ggml.ggml_free(context)
        self.ggml.ggml_backend_free(self.backend)


def quantized(form: str, values: NDArray[np.float32]) -> NDArray[np.uint8]:
    ggml, (rows, columns) = library(), values.shape
    traits = ggml.ggml_get_type_traits(TYPES[form]).contents
    out = np.empty((rows, columns // BLOCK, traits.type_size), dtype=np.uint8)
    values = np.ascontiguousarray(values)
    ggml.ggml_quantize_chunk(
        TYPES[form], values.ctypes.data, out.ctypes.data, 0, rows, columns, None
    )
    return out


def dequantized(form: str, stored: NDArray[np.uint8], work: Work) -> NDArray[np.float32]:
    out = np.empty((work.n, work.k), dtype=np.float32)
    traits = library().ggml_get_type_traits(TYPES[form]).contents
    traits.to_float(stored.ctypes.data, out.ctypes.data, out.size)
    return out


def _halves(values: NDArray[np.float32]) -> NDArray[np.uint8]:  # [N, G] to [N, G, 2] bytes
    return np.ascontiguousarray(values, dtype=np.float16)[..., None].view(np.uint8)


CANDIDATES = [
    Ggml("q4_0", repack=False),
    Ggml("q4_0", repack=True),
    Ggml("q4_1", repack=False),
    Ggml("q8_0", repack=False),
    Ggml("iq4_nl", repack=True),
    Ggml("mxfp4", repack=True),
]
