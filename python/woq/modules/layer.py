# SPDX-License-Identifier: Apache-2.0
"""`WeightOnlyLinear`: a linear layer whose weight lives in the packed form of the CPU's kernel.

y = x W^T + bias for x of shape (..., in_features), in the dtype of x (float32, bfloat16 or
float16). Only the packed weight is kept; `state_dict` unpacks it to the canonical tensors.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ..core import native, transformers_private
from ..formats.stored_tensors import MARKER, StoredForm, to_torch
from .deferred_state import current_deferred
from .stand_in import stand_in
from .torch_op import multiply, needs_dispatcher, new_handle

__all__ = ["WeightOnlyLinear", "dense_products"]

logger = logging.getLogger("woq")


class WeightOnlyLinear(nn.Linear):
    """A linear layer with a quantized weight, on the CPU.

    It is an nn.Linear to whoever looks for linear layers, such as peft, which puts LoRA adapters
    beside them; its weight is no parameter, and whatever would compute with it is refused.

    Args:
        core: packed weight, bias and kernel.
        bias: the bias that `core` was made with, in the dtype in which it is to be saved.
        name: the module's name in its model, for messages.
        dtype: dtype of the float weight that this layer stands for.
        transposed: the float weight was stored as [in_features, out_features] (transformers'
            Conv1D).
    """

    bias: torch.Tensor | None
    # Whether its weight is an embedding's, too, which has it in state dicts.
    tied: bool = False

    def __init__(
        self,
        core: native.Linear,
        bias: torch.Tensor | None = None,
        *,
        name: str = "",
        dtype: torch.dtype = torch.float32,
        transposed: bool = False,
    ) -> None:
        nn.Module.__init__(self)  # nn.Linear's would make a float weight
        if core.has_bias != (bias is not None):
            raise native.InvalidArgument(f"{name or 'layer'}: core and bias disagree about a bias")
        self.name = name
        self.transposed = transposed
        self._dtype = dtype
        self.register_buffer("bias", _held(bias))
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
            # Not a buffer: it is neither saved nor moved, and transformers re-creates the
            # non-persistent buffers of a model it loads.
            self._handle = new_handle(self)

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
    def computes_in(self) -> str:
        """fp32, bf16 or int8: what the kernel multiplies in. Not called compute_dtype: peft takes
        an attribute of that name for the torch.dtype of its adapters."""
        return self._core.compute_dtype

    @property
    def requested_compute_dtype(self) -> str:
        """`computes_in`, or "auto" where the choice was left to the machine."""
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
        return stand_in(shape[::-1] if self.transposed else shape, self._dtype, self.name)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if needs_dispatcher(x):
            return torch.ops.woq.linear(x, self._handle, self.out_features)
        return multiply(self._core, x, self.name)

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
            f"scheme={core.scheme.word}",
            f"compute={core.compute_dtype}",
            f"kernel={self.explain()['kernel']}",
        ]
        return ", ".join(parts)

    # -- state ------------------------------------------------------------------------------------

    @property
    def stored_form(self) -> StoredForm:
        """What the tensors of this layer in a checkpoint are."""
        return StoredForm(
            self.scheme, self.out_features, self.in_features, self.has_g_idx, self.has_act_scales
        )

    def stored_tensors(self) -> dict[str, torch.Tensor]:
        """The tensors of this layer in a checkpoint, except for the bias."""
        return {MARKER: self.stored_form.marker(), **to_torch(self.quantized())}

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        if not self.tied:
            self.save_tensors(destination, prefix, keep_vars)

    def save_tensors(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """What `_save_to_state_dict` does, under the name of this layer or of its embedding."""
        deferred = current_deferred()
        if deferred is None:
            stored = self.stored_tensors()
        else:
            form = self.stored_form
            stored = {MARKER: form.marker()}
            for key, (shape, dtype) in form.specs().items():
                # One element of memory whatever the shape.
                stored[key] = torch.empty((), dtype=dtype).expand(shape)
            for key, tensor in stored.items():
                deferred.add(tensor, self, key)
        for key, tensor in stored.items():
            destination[prefix + key] = tensor
        if self.bias is not None:
            destination[prefix + "bias"] = self.bias if keep_vars else self.bias.detach()

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        if not self.tied:
            self.load_tensors(state_dict, prefix, *args)

    def load_tensors(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """What `_load_from_state_dict` does, under the name of this layer or of its embedding."""
        form = self.stored_form
        wanted = set(form.specs())
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
                form.check_marker(state_dict[prefix + MARKER])
            if bias is not None and self.bias is not None and bias.shape != self.bias.shape:
                raise native.InvalidArgument(
                    f"bias has shape {list(bias.shape)}, expected {list(self.bias.shape)}"
                )
            core = _make_core(form.matrix(tensors), bias, self.requested_compute_dtype, self.name)
        except (ValueError, TypeError) as error:
            error_msgs.append(f"{prefix.rstrip('.')}: {error}")
            return
        if bias is not None:
            self.bias = _held(bias.detach().clone())
        self._adopt(core)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_core"], state["_handle"]
        matrix = self.quantized()
        state["_stored"] = {
            "tensors": {key: array.copy() for key, array in matrix.tensors().items()},
            "scheme": self.scheme,
            "has_g_idx": self.has_g_idx,
            "has_act_scales": self.has_act_scales,
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
        and layer.computes_in != "int8"
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


def _held(bias: torch.Tensor | None) -> torch.Tensor | None:
    """The bias as a layer's buffer. transformers' initialisers leave it alone: those of a parent
    run when its children have a checkpoint's values, and would write over this one."""
    if bias is None:
        return None
    held = bias.detach()
    transformers_private.keep_values(held)
    return held


def _make_core(
    matrix: native.QuantizedMatrix, bias: torch.Tensor | None, compute_dtype: str, name: str
) -> native.Linear:
    values = None if bias is None else bias.detach().float().contiguous()
    return native.Linear(matrix, values, compute_dtype, name, torch.get_num_threads())
