# SPDX-License-Identifier: Apache-2.0
"""`torch.ops.woq.linear`: the product of `WeightOnlyLinear` as an operation that torch's compilers
and autograd know, with its gradient, and the short way past the dispatcher.

`torch.ops.woq.embedding` is the same for the rows that `WeightOnlyEmbedding` gathers, without one.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Any, Protocol

import torch

from ..core import native

__all__ = ["gather", "multiply", "needs_dispatcher", "new_handle"]

_ACTIVATION_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Rows of W that the backward pass dequantizes at a time: 4 MiB of floats, about an L2 cache.
_PANEL_ELEMENTS = 1 << 20


class Layer(Protocol):
    """What the operation needs of `WeightOnlyLinear`."""

    name: str
    _core: native.Linear

    def quantized(self) -> native.QuantizedMatrix: ...


# The custom op finds its layer by a number that it gets as an int64 tensor. A tensor, not an int:
# torch.compile makes a graph input of a tensor, so that one graph serves all layers of the same
# shape; an int would be a constant of the graph, and the ninth decoder layer compiled on its own
# would exceed the recompilation limit. Weak references: the op must not keep a deleted layer alive.
_layers: weakref.WeakValueDictionary[int, Layer] = weakref.WeakValueDictionary()
_numbers = itertools.count(1)


def new_handle(layer: Layer) -> torch.Tensor:
    """A tensor by which `torch.ops.woq.linear` finds `layer` as long as it lives."""
    number = next(_numbers)
    _layers[number] = layer
    return torch.tensor(number)


def needs_dispatcher(x: torch.Tensor) -> bool:
    """Whether torch has to see this call: compilers, autograd, tracing, tensor subclasses.

    Everything else takes the short way, because the dispatcher costs more than a small layer.
    """
    return (
        torch.compiler.is_compiling()
        or type(x) is not torch.Tensor
        or (x.requires_grad and torch.is_grad_enabled())
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or torch.jit.is_tracing()
    )


def multiply(core: native.Linear, x: torch.Tensor, name: str) -> torch.Tensor:
    """x W^T + bias for x [..., K] by the core; `name` is the layer's, for messages."""
    shape = x.shape
    if not shape or shape[-1] != core.in_features:
        raise native.InvalidArgument(
            f"{name or 'WeightOnlyLinear'}: expected an input of shape (..., {core.in_features}), "
            f"got {tuple(shape)}"
        )
    if x.dtype not in _ACTIVATION_DTYPES:
        raise native.InvalidArgument(
            f"{name or 'WeightOnlyLinear'}: the input has dtype {x.dtype}; "
            "float32, bfloat16 and float16 are supported"
        )
    if not x.is_cpu:
        raise native.Unsupported(
            f"{name or 'WeightOnlyLinear'}: the input is on {x.device}, not on the CPU"
        )
    rows = x if len(shape) == 2 else x.reshape(-1, shape[-1])  # [M, K]
    # The kernels read rows of adjacent elements that do not overlap.
    stride, inner = rows.stride()
    if inner != 1 or stride < shape[-1]:
        rows = rows.contiguous()
    out = torch.empty((*shape[:-1], core.out_features), dtype=x.dtype)
    if out.numel():
        flat = out if len(shape) == 2 else out.view(-1, core.out_features)
        core.forward(rows, flat, torch.get_num_threads())
    return out


def gather(core: native.Linear, ids: torch.Tensor, dtype: torch.dtype, name: str) -> torch.Tensor:
    """Rows ids[...] of the weight, [..., K] in `dtype`; `name` is the embedding's."""
    if ids.dtype not in (torch.int64, torch.int32):
        raise native.InvalidArgument(
            f"{name or 'WeightOnlyEmbedding'}: ids have dtype {ids.dtype}; int64 and int32 are "
            "supported"
        )
    if not ids.is_cpu:
        raise native.Unsupported(
            f"{name or 'WeightOnlyEmbedding'}: the ids are on {ids.device}, not on the CPU"
        )
    out = torch.empty((*ids.shape, core.in_features), dtype=dtype)
    if out.numel():
        flat = ids.reshape(-1).to(torch.int64).contiguous()
        try:
            core.gather(flat, out.view(-1, core.in_features), torch.get_num_threads())
        except native.InvalidArgument as error:
            raise native.InvalidArgument(f"{name or 'WeightOnlyEmbedding'}: {error}") from None
    return out


def _layer(handle: torch.Tensor) -> Layer:
    layer = _layers.get(int(handle))
    if layer is None:
        raise native.Unsupported(
            f"torch.ops.woq.linear: layer {int(handle)} does not exist (any more) in this process; "
            "a traced or exported graph runs only where its layers live"
        )
    return layer


def _op_linear(x: torch.Tensor, handle: torch.Tensor, out_features: int) -> torch.Tensor:
    layer = _layer(handle)
    return multiply(layer._core, x.detach(), layer.name)


def _op_embedding(
    ids: torch.Tensor, handle: torch.Tensor, features: int, dtype: torch.dtype
) -> torch.Tensor:
    layer = _layer(handle)
    return gather(layer._core, ids, dtype, layer.name)


def _fake_embedding(
    ids: torch.Tensor, handle: torch.Tensor, features: int, dtype: torch.dtype
) -> torch.Tensor:
    return ids.new_empty((*ids.shape, features), dtype=dtype)


def _fake_linear(x: torch.Tensor, handle: torch.Tensor, out_features: int) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], out_features))


def _op_linear_grad(grad: torch.Tensor, handle: torch.Tensor, in_features: int) -> torch.Tensor:
    """grad W, with W [N, K] dequantized one panel of rows at a time."""
    matrix = _layer(handle).quantized()
    n, k = matrix.rows, matrix.cols
    rows = grad.detach().reshape(-1, n).float()  # [M, N]
    result = torch.zeros(rows.shape[0], k)
    step = max(1, _PANEL_ELEMENTS // max(1, k))
    for start in range(0, n, step):
        stop = min(n, start + step)
        panel = torch.from_numpy(matrix.dequantize_rows(start, stop, torch.get_num_threads()))
        result.addmm_(rows[:, start:stop], panel)
    return result.to(grad.dtype).view(*grad.shape[:-1], k)


def _fake_linear_grad(grad: torch.Tensor, handle: torch.Tensor, in_features: int) -> torch.Tensor:
    return grad.new_empty((*grad.shape[:-1], in_features))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, handle, _ = inputs
    ctx.save_for_backward(handle)
    ctx.in_features = x.shape[-1]


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
    (handle,) = ctx.saved_tensors
    return torch.ops.woq.linear_grad(grad, handle, ctx.in_features), None, None


# `torch.library.custom_op` would wrap each call in checks of its own; the plain registration does
# what is needed at a fraction of the time.
_library = torch.library.Library("woq", "DEF")
_library.define("linear(Tensor x, Tensor handle, int out_features) -> Tensor")
_library.define("linear_grad(Tensor grad, Tensor handle, int in_features) -> Tensor")
_library.define("embedding(Tensor ids, Tensor handle, int features, ScalarType dtype) -> Tensor")
_library.impl("linear", _op_linear, "CPU")
_library.impl("embedding", _op_embedding, "CPU")
_library.impl("linear_grad", _op_linear_grad, "CPU")
torch.library.register_fake("woq::linear", _fake_linear, lib=_library)
torch.library.register_fake("woq::embedding", _fake_embedding, lib=_library)
torch.library.register_fake("woq::linear_grad", _fake_linear_grad, lib=_library)
torch.library.register_autograd(
    "woq::linear", _backward, setup_context=_setup_context, lib=_library
)
