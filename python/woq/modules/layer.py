# SPDX-License-Identifier: Apache-2.0
"""`WeightOnlyLinear`: a linear layer whose weight lives in the packed form of the CPU's kernel.

y = x W^T + bias for x of shape (..., in_features), in the dtype of x (float32, bfloat16 or
float16). Only the packed weight is kept; `state_dict` unpacks it to the canonical tensors.
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
import itertools
import logging
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ..core import native
from ..formats.stored_tensors import (
    MARKER,
    check_marker,
    from_torch,
    marker,
    stored_specs,
    to_torch,
)
from .stand_in import stand_in

__all__ = ["Deferred", "WeightOnlyLinear", "deferred_state", "dense_products", "needs_dispatcher"]

logger = logging.getLogger("woq")

_ACTIVATION_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Rows of W that the backward pass dequantizes at a time: 4 MiB of floats, about an L2 cache.
_PANEL_ELEMENTS = 1 << 20

# The custom op finds its layer by a number that it gets as an int64 tensor. A tensor, not an int:
# torch.compile makes a graph input of a tensor, so that one graph serves all layers of the same
# shape; an int would be a constant of the graph, and the ninth decoder layer compiled on its own
# would exceed the recompilation limit. Weak references: the op must not keep a deleted layer alive.
_layers: weakref.WeakValueDictionary[int, WeightOnlyLinear] = weakref.WeakValueDictionary()
_numbers = itertools.count(1)


class Deferred:
    """Stand-ins in a state dict for tensors that are still packed."""

    def __init__(self) -> None:
        self._sources: dict[int, tuple[torch.Tensor, WeightOnlyLinear, str]] = {}

    def add(self, stand_in: torch.Tensor, layer: WeightOnlyLinear, key: str) -> None:
        # Holding the stand-in keeps its id from being given to another tensor.
        self._sources[id(stand_in)] = (stand_in, layer, key)

    def get(self, number: int) -> tuple[WeightOnlyLinear, str] | None:
        found = self._sources.get(number)
        return None if found is None else found[1:]


_deferred: contextvars.ContextVar[Deferred | None] = contextvars.ContextVar(
    "woq_deferred_state", default=None
)


@contextlib.contextmanager
def deferred_state() -> Iterator[Deferred]:
    """Within it, `state_dict()` gives stand-ins of the right shape and dtype for packed weights."""
    deferred = Deferred()
    token = _deferred.set(deferred)
    try:
        yield deferred
    finally:
        _deferred.reset(token)


class WeightOnlyLinear(nn.Module):
    """A linear layer with a quantized weight, on the CPU.

    Args:
        core: packed weight, bias and kernel.
        bias: the bias that `core` was made with, in the dtype in which it is to be saved.
        name: the module's name in its model, for messages.
        dtype: dtype of the float weight that this layer stands for.
        transposed: the float weight was stored as [in_features, out_features] (transformers'
            Conv1D).
    """

    bias: torch.Tensor | None

    def __init__(
        self,
        core: native.Linear,
        bias: torch.Tensor | None = None,
        *,
        name: str = "",
        dtype: torch.dtype = torch.float32,
        transposed: bool = False,
    ) -> None:
        super().__init__()
        if core.has_bias != (bias is not None):
            raise native.InvalidArgument(f"{name or 'layer'}: core and bias disagree about a bias")
        self.name = name
        self.transposed = transposed
        self._dtype = dtype
        self.register_buffer("bias", None if bias is None else bias.detach())
        self._adopt(core)
        logger.debug("%s: %s", name or "layer", core)

    @classmethod
    def from_quantized(
        cls,
        matrix: native.QuantizedMatrix,
        bias: torch.Tensor | None = None,
        *,
        compute_dtype: str = "fp32",
        name: str = "",
        dtype: torch.dtype = torch.float32,
        transposed: bool = False,
    ) -> WeightOnlyLinear:
        """Pack `matrix` [out_features, in_features] for this CPU."""
        core = _make_core(matrix, bias, compute_dtype, name)
        return cls(core, bias, name=name, dtype=dtype, transposed=transposed)

    def _adopt(self, core: native.Linear) -> None:
        self._core = core
        self.in_features = int(core.in_features)
        self.out_features = int(core.out_features)
        if "_handle" not in self.__dict__:
            number = next(_numbers)
            # Not a buffer: it is neither saved nor moved, and transformers re-creates the
            # non-persistent buffers of a model it loads.
            self._handle = torch.tensor(number)
            _layers[number] = self

    @property
    def scheme(self) -> native.QuantScheme:
        """Number format of the weight."""
        return self._core.scheme

    @property
    def has_g_idx(self) -> bool:
        """Whether the group of each column is stored (act-order)."""
        return self._core.has_g_idx

    @property
    def has_act_scales(self) -> bool:
        """Whether the input is multiplied by stored factors first."""
        return self._core.has_act_scales

    @property
    def compute_dtype(self) -> str:
        """fp32, bf16 or int8: what the kernel multiplies in."""
        return self._core.compute_dtype

    @property
    def requested_compute_dtype(self) -> str:
        """`compute_dtype`, or "auto" where the choice was left to the machine."""
        return self._core.requested_compute_dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weight and the bias."""
        return int(self._core.nbytes)

    @property
    def weight(self) -> torch.Tensor:
        """A stand-in with the shape, dtype and device of the float weight, and without its values.

        Model code asks `layer.weight.dtype` to cast activations. Computing with it is an error;
        the values are in `dequantize()`.
        """
        shape = (self.out_features, self.in_features)
        return stand_in(shape[::-1] if self.transposed else shape, self._dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if needs_dispatcher(x):
            return torch.ops.woq.linear(x, self._handle, self.out_features)
        return _forward(self._core, x, self.name)

    def quantized(self) -> native.QuantizedMatrix:
        """The canonical form of the weight, unpacked anew at each call."""
        return self._core.unpack()

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The float weight that this layer multiplies with, [out_features, in_features]."""
        return torch.from_numpy(self.quantized().dequantize()).to(dtype)

    def explain(self) -> dict[str, Any]:
        """Which kernel runs this layer, why, and what else was considered."""
        return {"name": self.name, **self._core.explain()}

    def extra_repr(self) -> str:
        core = self._core
        parts = [
            f"in_features={self.in_features}",
            f"out_features={self.out_features}",
            f"bias={self.bias is not None}",
            f"dtype={core.scheme.dtype}",
            f"group_size={core.scheme.group_size}",
            f"scheme={'asym' if core.scheme.asym else 'sym'}",
            f"compute={core.compute_dtype}",
            f"kernel={self.explain()['kernel']}",
        ]
        return ", ".join(parts)

    # -- state ------------------------------------------------------------------------------------

    def _specs(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return stored_specs(self.scheme, self.out_features, self.in_features, **self._extras())

    def _extras(self) -> dict[str, bool]:
        return {"has_g_idx": self.has_g_idx, "has_act_scales": self.has_act_scales}

    def stored_tensors(self) -> dict[str, torch.Tensor]:
        """The tensors of this layer in a checkpoint, except for the bias."""
        return {MARKER: marker(), **to_torch(self.quantized())}

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        deferred = _deferred.get()
        if deferred is None:
            stored = self.stored_tensors()
        else:
            stored = {MARKER: marker()}
            for key, (shape, dtype) in self._specs().items():
                # One element of memory whatever the shape.
                stored[key] = torch.empty((), dtype=dtype).expand(shape)
            for key, tensor in stored.items():
                deferred.add(tensor, self, key)
        for key, tensor in stored.items():
            destination[prefix + key] = tensor
        if self.bias is not None:
            destination[prefix + "bias"] = self.bias if keep_vars else self.bias.detach()

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        wanted = set(self._specs())
        if self.bias is not None:
            wanted.add("bias")
        absent = sorted(prefix + key for key in wanted if prefix + key not in state_dict)
        missing_keys.extend(absent)
        if strict:
            for key in state_dict:
                name = key.removeprefix(prefix)
                if key.startswith(prefix) and name not in wanted and name != MARKER:
                    unexpected_keys.append(key)
        if absent:
            return
        tensors = {key: state_dict[prefix + key] for key in wanted}
        bias = tensors.pop("bias", None)
        try:
            if prefix + MARKER in state_dict:
                check_marker(state_dict[prefix + MARKER])
            if bias is not None and self.bias is not None and bias.shape != self.bias.shape:
                raise native.InvalidArgument(
                    f"bias has shape {list(bias.shape)}, expected {list(self.bias.shape)}"
                )
            matrix = from_torch(
                tensors, self.out_features, self.in_features, self.scheme, **self._extras()
            )
            core = _make_core(matrix, bias, self.requested_compute_dtype, self.name)
        except (ValueError, TypeError) as error:
            error_msgs.append(f"{prefix.rstrip('.')}: {error}")
            return
        if bias is not None:
            self.bias = bias.detach().clone()
        self._adopt(core)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_core"], state["_handle"]
        matrix = self.quantized()
        state["_stored"] = {
            "tensors": {key: array.copy() for key, array in matrix.tensors().items()},
            "scheme": self.scheme,
            **self._extras(),
            "compute_dtype": self.requested_compute_dtype,
        }
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        stored = state.pop("_stored")
        super().__setstate__(state)
        compute_dtype = stored.pop("compute_dtype")
        matrix = native.QuantizedMatrix.from_tensors(
            rows=self.out_features, cols=self.in_features, **stored
        )
        self._adopt(_make_core(matrix, self.bias, compute_dtype, self.name))

    def __deepcopy__(self, memo: dict[int, Any]) -> WeightOnlyLinear:
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        for key, value in self.__dict__.items():
            if key not in ("_core", "_handle"):
                new.__dict__[key] = copy.deepcopy(value, memo)
        # The core never changes after it is made: copies share it, loading replaces it.
        new._adopt(self._core)
        return new

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        # `fn` is what .to(), .half(), .cuda() ... do to a tensor: ask it with an empty one.
        probe = fn(torch.empty(0, dtype=self._dtype))
        if probe.device.type != "cpu":
            raise native.Unsupported(
                f"{self.name or 'WeightOnlyLinear'} cannot move to {probe.device}: woq's kernels "
                "run on the CPU. Keep the model there, or call model.dequantize() first."
            )
        # The packed weight and the bias inside it have no other dtype to go to; what changes is
        # the dtype that model code reads from the stand-in weight.
        self._dtype = probe.dtype
        return self


@contextlib.contextmanager
def dense_products(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Within it, the layers in `module` that compute in floating point multiply by torch, with
    their dequantized weights in `dtype`: for forward passes over so many tokens that unpacking
    once is faster than in every product."""
    layers = [
        layer
        for layer in module.modules()
        if isinstance(layer, WeightOnlyLinear)
        and layer.compute_dtype != "int8"
        and "forward" not in layer.__dict__  # done further out
    ]
    try:
        for layer in layers:
            layer.forward = _Dense(layer, dtype)  # type: ignore[method-assign]
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


class _Dense:
    """The forward of a layer by torch; the weight is unpacked when it is called first."""

    def __init__(self, layer: WeightOnlyLinear, dtype: torch.dtype) -> None:
        self._layer = layer
        self._dtype = dtype
        self._weight: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._weight is None:
            self._weight = self._layer.dequantize(self._dtype)
        bias = self._layer.bias
        bias = None if bias is None else bias.to(self._dtype)
        return nn.functional.linear(x, self._weight, bias)


def _make_core(
    matrix: native.QuantizedMatrix, bias: torch.Tensor | None, compute_dtype: str, name: str
) -> native.Linear:
    values = None if bias is None else bias.detach().float().contiguous()
    return native.Linear(matrix, values, compute_dtype, name, torch.get_num_threads())


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


def _forward(core: native.Linear, x: torch.Tensor, name: str) -> torch.Tensor:
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


# -- torch.ops.woq.linear -------------------------------------------------------------------------


def _layer(handle: torch.Tensor) -> WeightOnlyLinear:
    layer = _layers.get(int(handle))
    if layer is None:
        raise native.Unsupported(
            f"torch.ops.woq.linear: layer {int(handle)} does not exist (any more) in this process; "
            "a traced or exported graph runs only where its layers live"
        )
    return layer


def _op_linear(x: torch.Tensor, handle: torch.Tensor, out_features: int) -> torch.Tensor:
    layer = _layer(handle)
    return _forward(layer._core, x.detach(), layer.name)


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
_library.impl("linear", _op_linear, "CPU")
_library.impl("linear_grad", _op_linear_grad, "CPU")
torch.library.register_fake("woq::linear", _fake_linear, lib=_library)
torch.library.register_fake("woq::linear_grad", _fake_linear_grad, lib=_library)
torch.library.register_autograd(
    "woq::linear", _backward, setup_context=_setup_context, lib=_library
)
