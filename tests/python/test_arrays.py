# SPDX-License-Identifier: Apache-2.0
"""Tensors whose memory is not what their shape says: refused by name, wherever the core is given
one. A crash would end the test process, so that each is its own proof."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import woq
from woq import InvalidArgument
from woq.core import native

NF4 = native.QuantScheme("nf4", 32)
# A fake tensor warns when it is asked for its address, and will refuse to answer one day.
pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")


def freed(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """As FSDP and offloading leave a weight between two uses."""
    tensor = torch.zeros(*shape, dtype=dtype)
    tensor.untyped_storage().resize_(0)
    return tensor


def cut(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """One byte too few."""
    tensor = torch.zeros(*shape, dtype=dtype)
    tensor.untyped_storage().resize_(tensor.untyped_storage().nbytes() - 1)
    return tensor


def zero(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """As forward-mode differentiation makes them."""
    return torch._efficientzerotensor(shape, dtype=dtype)


def fake(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    with FakeTensorMode():
        return torch.zeros(*shape, dtype=dtype)


def functional(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch._to_functional_tensor(torch.zeros(*shape, dtype=dtype))


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(*shape, dtype=dtype, device="meta")


def good(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full(shape, 0.5).to(dtype)


def hessian() -> native.Hessian:
    result = native.Hessian(64)
    result.add(torch.eye(64))
    return result


def linear(bias=None) -> native.Linear:
    return native.Linear(native.quantize_rtn(good(48, 64), NF4), bias)


def rounding(make, which: str) -> None:
    """The functions that AutoRound tunes with, one of their arrays made by `make`."""
    shapes = {"weight": (8, 64), "offsets": (8, 64), "scales": (8, 2)}
    arrays = {name: (make if name == which else good)(*shape) for name, shape in shapes.items()}
    out = (make if which == "out" else good)(8, 64)
    native.rounded_weight(*arrays.values(), None, NF4, out=out)


# A name for each place at which the core is given an array.
PLACES = {
    "input": lambda make: linear().forward(make(3, 64), good(3, 48)),
    "output": lambda make: linear().forward(good(3, 64), make(3, 48)),
    "bias": lambda make: linear(make(48)),
    "shared input": lambda make: native.forward_shared(make(3, 64), [(linear(), good(3, 48))]),
    "shared output": lambda make: native.forward_shared(good(3, 64), [(linear(), make(3, 48))]),
    "residual": lambda make: native.forward_shared(
        good(3, 64), [(linear(), good(3, 48), make(3, 48))]
    ),
    "up": lambda make: native.forward_shared(
        good(3, 64), [(linear(), good(3, 48), None, make(3, 48))]
    ),
    "gated input": lambda make: native.forward_gated(make(3, 64), linear(), linear(), good(3, 48)),
    "gated output": lambda make: native.forward_gated(good(3, 64), linear(), linear(), make(3, 48)),
    "attention": lambda make: native.attention(
        good(6, 16, dtype=torch.bfloat16),
        make(6, 8, dtype=torch.bfloat16),
        good(6, 8, dtype=torch.bfloat16),
        good(6, 16, dtype=torch.bfloat16),
        1, 2, 1, 1.0,
    ),
    "rtn": lambda make: native.quantize_rtn(make(48, 64), NF4),
    "importance": lambda make: native.quantize_rtn(good(48, 64), NF4, importance=make(64)),
    "gptq": lambda make: native.quantize_gptq(make(48, 64), hessian(), NF4),
    "in_flight": lambda make: native.quantize_gptq(
        good(48, 64), hessian(), NF4, in_flight=make(48, 64)
    ),
    "ranges": lambda make: native.quantize_gptq(
        good(48, 64), hessian(), NF4, ranges=make(48, 64)
    ),
    "awq": lambda make: native.awq_scales([make(48, 64)], hessian(), NF4),
    "clip": lambda make: native.awq_clip(make(48, 64), hessian(), NF4),
    "teq": lambda make: native.teq_scales([make(48, 64)], hessian(), NF4),
    "hqq": lambda make: native.quantize_hqq(
        make(48, 64), native.QuantScheme("int4_clip", 32, zeros="float")
    ),
    "layer_error": lambda make: native.layer_error(good(48, 64), make(48, 64), hessian()),
    "error_metrics": lambda make: native.error_metrics(
        make(48, 64), native.quantize_rtn(good(48, 64), NF4)
    ),
    "hessian": lambda make: native.Hessian(64).add(make(3, 64)),
    "cross": lambda make: native.CrossMoment(64).add(good(3, 64), make(3, 64)),
    "multipliers": lambda make: hessian().scaled(make(64)),
    "codes": lambda make: native.QuantizedMatrix.from_codes(
        make(48, 64, dtype=torch.uint8), good(48, 2), None, NF4
    ),
    "scales": lambda make: native.QuantizedMatrix.from_codes(
        torch.zeros(48, 64, dtype=torch.uint8), make(48, 2), None, NF4
    ),
    "act_scales": lambda make: native.quantize_rtn(good(48, 64), NF4).with_act_scales(make(64)),
    "g_idx": lambda make: native.quantize_rtn(
        good(48, 64), native.QuantScheme("nf4", -1)
    ).with_g_idx(make(64, dtype=torch.int32)),
    "stored tensor": lambda make: native.QuantizedMatrix.from_tensors(
        {"qweight": make(48, 32, dtype=torch.uint8), "scales": good(48, 2)},
        rows=48, cols=64, scheme=NF4,
    ),
    "rounding weight": lambda make: rounding(make, "weight"),
    "rounding offsets": lambda make: rounding(make, "offsets"),
    "rounding scales": lambda make: rounding(make, "scales"),
    "rounding out": lambda make: rounding(make, "out"),
    "layer": lambda make: woq.WeightOnlyLinear(linear())(make(3, 64)),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_values_in_memory_are_taken(place: str) -> None:
    """So that the refusals below are not about something else."""
    PLACES[place](good)


@pytest.mark.parametrize(
    "make", [freed, cut, zero, fake, functional], ids=lambda make: make.__name__
)
@pytest.mark.parametrize("place", PLACES)
def test_no_values_in_memory_is_refused(place: str, make) -> None:
    if place == "layer" and make in (fake, functional):
        pytest.skip("goes through torch's dispatcher")
    with pytest.raises(InvalidArgument, match="has no values in memory"):
        PLACES[place](make)


@pytest.mark.parametrize("place", [place for place in PLACES if place != "layer"])
def test_meta_tensors_are_refused(place: str) -> None:
    with pytest.raises(InvalidArgument, match="load the model's weights first"):
        PLACES[place](meta)


@pytest.mark.parametrize("make", [freed, cut, fake], ids=lambda make: make.__name__)
def test_models_without_memory_stay_as_they_are(make) -> None:
    model = nn.Sequential(nn.Linear(64, 48))
    model[0].weight = nn.Parameter(make(48, 64), requires_grad=False)
    with pytest.raises(InvalidArgument, match=r"shape \[48, 64\] that has no values in memory"):
        woq.quantize(model, woq.WeightOnlyQuantConfig(weight_dtype="nf4"))
    assert type(model[0]) is nn.Linear


def test_bytes_are_counted_from_the_offset() -> None:
    """A view into a larger storage needs what lies before it, too."""
    whole = torch.rand(10, 64)
    view = whole[4:7]
    out = torch.empty(3, 48)
    linear().forward(view, out)
    whole.untyped_storage().resize_(4 * 64 * 7)
    linear().forward(view, out)
    whole.untyped_storage().resize_(4 * 64 * 7 - 4)
    with pytest.raises(InvalidArgument, match="needs 1792 bytes of a storage of 1788"):
        linear().forward(view, out)
    linear().forward(whole[:0], torch.empty(0, 48))
    linear().forward(freed(0, 64), torch.empty(0, 48))


def test_a_negated_view_is_refused() -> None:
    """Its memory holds the numbers with the other sign."""
    x = torch.randn(3, 64, dtype=torch.complex64).conj().imag
    assert x.is_neg()
    with pytest.raises(InvalidArgument, match=r"resolve_neg\(\)"):
        linear().forward(x[:, :64], torch.empty(3, 48))


@pytest.mark.parametrize("make", [torch.empty, np.empty], ids=["torch", "numpy"])
def test_overlapping_outputs_are_refused(make) -> None:
    out = make((1, 48), dtype=(torch if make is torch.empty else np).float32)
    out = (
        out.expand(3, 48)
        if isinstance(out, torch.Tensor)
        else np.lib.stride_tricks.as_strided(out, (3, 48), (0, 4))
    )
    with pytest.raises(InvalidArgument, match="rows that overlap"):
        linear().forward(good(3, 64), out)


@pytest.mark.parametrize("wrong", [None, 3, "layer", np.zeros(3)])
def test_what_is_no_layer(wrong: object) -> None:
    out = torch.empty(3, 48)
    with pytest.raises(InvalidArgument, match=f"layer is a {type(wrong).__name__}; expected"):
        native.forward_shared(good(3, 64), [(wrong, out)])
    for gate, up in ((wrong, linear()), (linear(), wrong)):
        with pytest.raises(TypeError, match="incompatible function arguments"):
            native.forward_gated(good(3, 64), gate, up, out)


def native_properties() -> list[tuple[type, str]]:
    return [
        (owner, name)
        for owner in vars(native).values()
        if isinstance(owner, type) and owner.__module__ == "woq._woq"
        for name, member in vars(owner).items()
        if isinstance(member, property)
    ]


def test_properties_of_none_are_errors() -> None:
    properties = native_properties()
    assert len(properties) > 20
    for owner, name in properties:
        getter = vars(owner)[name].fget
        with pytest.raises(TypeError, match=re.escape("incompatible function arguments")):
            getter(None)
