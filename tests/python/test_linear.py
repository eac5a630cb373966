# SPDX-License-Identifier: Apache-2.0
"""WeightOnlyLinear: results, input forms, gradients, state, devices, torch.compile."""

from __future__ import annotations

import copy
import io
import json
import logging
import pickle

import numpy as np
import pytest
import torch
from model_support import seed
from torch import nn

import woq
from woq import InvalidArgument, Unsupported, WeightOnlyLinear
from woq.core import native
from woq.core.native import dtype_names
from woq.formats.stored_tensors import StoredForm
from woq.modules.layer import dense_products

ACTIVATIONS = (torch.float32, torch.bfloat16, torch.float16)
EPS = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
SCHEMES = [(dtype, False) for dtype in dtype_names()] + [("int8", True), ("int4_clip", True)]


@pytest.fixture(autouse=True)
def _seed(request):
    seed(request)


def make(n=24, k=40, *, bias=True, dtype="nf4", group_size=16, compute="fp32", **scheme):
    weight = torch.randn(n, k)
    matrix = woq.quantize_rtn(weight, dtype=dtype, group_size=group_size, **scheme)
    values = torch.randn(n) if bias else None
    return WeightOnlyLinear.from_quantized(matrix, values, compute_dtype=compute, name="fc")


def make_marker(dtype, rows, cols):
    """The marker of a layer of `make`, of another dtype or size; core has no dtype nf5."""
    scheme = native.QuantScheme("nf4", 16)
    text = str(StoredForm(scheme, rows, cols)).replace("nf4", dtype).encode()
    return torch.tensor(list((b"\2" + text).ljust(256, b"\0")), dtype=torch.uint8)


def bound(layer, x):
    """Rounding of a K-term sum in float32, of the inputs' and of the output's dtype.

    c * K * eps * sum |x||w| + |bias|: the kernels sum in an order of their own.
    """
    weight = layer.dequantize().double().abs()
    scale = x.double().abs() @ weight.T
    if layer.bias is not None:
        scale = scale + layer.bias.double().abs()
    k = layer.in_features
    return scale * (2 * k * EPS[torch.float32] + 2 * EPS[x.dtype])


def reference(layer, x):
    y = x.double() @ layer.dequantize().double().T
    return y if layer.bias is None else y + layer.bias.double()


def assert_close(layer, x):
    y = layer(x)
    assert y.dtype == x.dtype
    assert y.shape == (*x.shape[:-1], layer.out_features)
    error = (y.double() - reference(layer, x)).abs()
    limit = bound(layer, x)
    worst = (error - limit).argmax() if error.numel() else 0
    assert (error <= limit).all(), f"at {int(worst)}: {error.max():.3e} > {limit.max():.3e}"


@pytest.mark.parametrize("activations", ACTIVATIONS, ids=str)
@pytest.mark.parametrize(("dtype", "asym"), SCHEMES)
def test_matches_the_dequantized_product(dtype, asym, activations):
    layer = make(dtype=dtype, asym=asym)
    assert_close(layer, torch.randn(5, 40).to(activations))


@pytest.mark.parametrize("shape", [(40,), (1, 40), (3, 40), (2, 3, 40), (2, 1, 3, 40)], ids=str)
def test_leading_dimensions(shape):
    assert_close(make(), torch.randn(shape))


@pytest.mark.parametrize(
    "x",
    [
        lambda: torch.randn(40, 5).t(),
        lambda: torch.randn(5, 80)[:, ::2],
        lambda: torch.randn(5, 80)[:, 20:60],
        lambda: torch.randn(3, 5, 40).transpose(0, 1),
        lambda: torch.randn(1, 40).expand(5, 40),
        lambda: torch.randn(5, 1).expand(5, 40),
        lambda: torch.randn(10, 40)[::2],
        lambda: torch.complex(torch.randn(5, 40), torch.randn(5, 40)).conj().imag,
    ],
    ids=[
        "transposed",
        "strided",
        "sliced",
        "permuted",
        "rows",
        "columns",
        "every-other",
        "negated",
    ],
)
def test_any_strides(x):
    assert_close(make(), x())


def test_one_input_feature():
    layer = make(n=3, k=1)
    assert_close(layer, torch.randn(4, 1))
    assert_close(layer, torch.randn(4, 8)[:, 3:4])


@pytest.mark.parametrize("shape", [(0, 40), (2, 0, 40)], ids=str)
def test_empty_input(shape):
    assert make()(torch.empty(shape)).shape == (*shape[:-1], 24)


@pytest.mark.parametrize("shape", [(), (39,), (5, 41), (40, 5), (0,)], ids=str)
def test_wrong_shape(shape):
    with pytest.raises(InvalidArgument, match=r"fc: expected an input of shape \(\.\.\., 40\)"):
        make()(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.int8, torch.bool], ids=str)
def test_wrong_dtype(dtype):
    with pytest.raises(InvalidArgument, match=f"fc: the input has dtype {dtype}"):
        make()(torch.zeros(2, 40, dtype=dtype))


def test_wrong_device():
    with pytest.raises(Unsupported, match="fc: the input is on meta"):
        make()(torch.zeros(2, 40, device="meta"))


def test_core_and_bias_must_agree():
    matrix = woq.quantize_rtn(torch.randn(8, 16), dtype="int8")
    with pytest.raises(InvalidArgument, match="bias"):
        WeightOnlyLinear(woq.Linear(matrix), torch.zeros(8))
    with pytest.raises(InvalidArgument, match="bias"):
        WeightOnlyLinear.from_quantized(matrix, torch.zeros(7))


def test_bias_in_half_precision():
    matrix = woq.quantize_rtn(torch.randn(8, 16), dtype="int8")
    layer = WeightOnlyLinear.from_quantized(matrix, torch.randn(8).bfloat16())
    assert layer.bias.dtype == torch.bfloat16
    assert_close(layer, torch.randn(3, 16))


# -- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("activations", ACTIVATIONS, ids=str)
@pytest.mark.parametrize(
    ("dtype", "scheme"),
    [
        ("nf4", {}),
        ("int8", {"asym": True}),
        ("int4_fullrange", {"double_quant": True}),
        ("int4_clip", {"scale_dtype": "bf16"}),
    ],
    ids=str,
)
def test_input_gradient(dtype, scheme, activations, monkeypatch):
    # Small panels, so that their seams are exercised.
    monkeypatch.setattr("woq.modules.torch_op._PANEL_ELEMENTS", 5 * 40)
    layer = make(dtype=dtype, **scheme)
    x = torch.randn(2, 3, 40).to(activations).requires_grad_()
    y = layer(x)
    assert y.grad_fn is not None
    grad = torch.randn_like(y)
    y.backward(grad)
    weight = layer.dequantize().double()
    expected = grad.double() @ weight
    limit = (grad.double().abs() @ weight.abs()) * (48 * EPS[torch.float32] + EPS[activations])
    assert x.grad.dtype == activations
    assert ((x.grad.double() - expected).abs() <= limit).all()


def test_gradient_reaches_earlier_layers():
    first, layer = nn.Linear(7, 40), make()
    layer(first(torch.randn(3, 7))).sum().backward()
    assert first.weight.grad.abs().sum() > 0


def test_gradient_is_the_same_through_a_gradient_free_path():
    layer = make()
    x = torch.randn(3, 40)
    assert torch.equal(layer(x), layer(x.clone().requires_grad_()).detach())


def test_no_grad_and_inference_mode():
    layer = make()
    x = torch.randn(3, 40, requires_grad=True)
    with torch.no_grad():
        assert not layer(x).requires_grad
    with torch.inference_mode():
        assert layer(x).is_inference()


def test_checkpointing():
    from torch.utils.checkpoint import checkpoint

    layer = make()
    x = torch.randn(3, 40, requires_grad=True)
    checkpoint(layer, x, use_reentrant=False).sum().backward()
    direct = x.detach().clone().requires_grad_()
    layer(direct).sum().backward()
    assert torch.equal(x.grad, direct.grad)


# -- state ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "scheme", "names"),
    [
        ("nf4", {}, {"qweight", "scales"}),
        ("int8", {"asym": True}, {"qweight", "scales", "zero_points"}),
        ("int4_clip", {"scale_dtype": "bf16"}, {"qweight", "scales"}),
        ("int4_clip", {"scale_dtype": "fp16"}, {"qweight", "scales"}),
        ("nf4", {"double_quant": True}, {"qweight", "scales", "scales_absmax", "scales_offset"}),
        (
            "int4_fullrange",
            {"double_quant": True},
            {"qweight", "scales", "scales_absmax", "scales_offset", "scales_sign"},
        ),
    ],
    ids=str,
)
def test_state_dict_round_trip(dtype, scheme, names):
    layer, other = make(dtype=dtype, **scheme), make(dtype=dtype, **scheme)
    state = layer.state_dict()
    assert set(state) == {*names, "bias", "weight"}
    assert state["weight"].shape == (256,)
    assert state["weight"][0] == 2
    form = json.loads(bytes(state["weight"][1:].tolist()).rstrip(b"\0"))
    assert form.pop("scheme") == layer.scheme.to_dict()
    assert form == {"rows": 24, "cols": 40, "has_g_idx": False, "has_act_scales": False}
    stored = layer.quantized().tensors()
    for name in names:
        bits = state[name].view(torch.uint8).numpy() if name == "scales" else state[name].numpy()
        assert bits.tobytes() == np.ascontiguousarray(stored[name]).tobytes(), name
    x = torch.randn(3, 40)
    assert not torch.equal(layer(x), other(x))
    other.load_state_dict(state)
    assert torch.equal(layer(x), other(x))


def test_state_dict_survives_safetensors(tmp_path):
    from safetensors.torch import load_file, save_file

    layer, other = make(scale_dtype="bf16"), make(scale_dtype="bf16")
    save_file(layer.state_dict(), tmp_path / "layer.safetensors")
    other.load_state_dict(load_file(tmp_path / "layer.safetensors"))
    x = torch.randn(3, 40)
    assert torch.equal(layer(x), other(x))


def test_state_of_version_1_and_without_a_marker():
    layer, x = make(), torch.randn(3, 40)
    state = layer.state_dict()
    state["weight"] = torch.ones(1, dtype=torch.uint8)
    other, another = make(), make()
    other.load_state_dict(state)
    assert torch.equal(layer(x), other(x))
    del state["weight"]
    another.load_state_dict(state)
    assert torch.equal(layer(x), another(x))


def test_load_reports_everything_that_is_wrong():
    layer = make()
    state = layer.state_dict()
    before = layer(torch.ones(40))
    del state["scales"], state["qweight"]
    state["stranger"] = torch.zeros(1)
    with pytest.raises(RuntimeError) as error:
        layer.load_state_dict(state)
    assert "qweight" in str(error.value)
    assert "scales" in str(error.value)
    assert "stranger" in str(error.value)
    assert torch.equal(layer(torch.ones(40)), before)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("qweight", torch.zeros(24, 19, dtype=torch.uint8)),
        ("qweight", torch.zeros(24, 20, dtype=torch.int8)),
        ("scales", torch.zeros(24, 3, dtype=torch.float64)),
        ("scales", torch.full((24, 3), torch.nan)),
        ("bias", torch.zeros(23)),
        ("weight", torch.zeros(24, 40)),
        ("weight", torch.tensor([9], dtype=torch.uint8)),
        ("weight", torch.tensor([2], dtype=torch.uint8)),
        ("weight", torch.full((256,), 2, dtype=torch.uint8)),
        ("weight", make_marker("fp4_e2m1", 24, 40)),
        ("weight", make_marker("nf4", 24, 41)),
        ("weight", make_marker("nf5", 24, 40)),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.dtype}{list(value.shape)}",
)
def test_load_refuses_bad_tensors(name, value):
    layer = make()
    before = layer(torch.ones(40))
    with pytest.raises(RuntimeError):
        layer.load_state_dict({**layer.state_dict(), name: value})
    assert torch.equal(layer(torch.ones(40)), before)


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
def test_dense_products(compute):
    """By torch, with the weight that the layer stands for; afterwards by the layer's kernel."""
    layer = make(compute=compute)
    holder, x = nn.Sequential(layer), torch.randn(5, 40)
    kernel = layer(x)
    expected = nn.functional.linear(x, layer.dequantize(), layer.bias)
    with dense_products(holder, torch.float32):
        with dense_products(holder, torch.float32):
            assert torch.equal(holder(x), expected)
        assert torch.equal(holder(x), expected)
    assert torch.equal(layer(x), kernel)
    with pytest.raises(RuntimeError, match="dtype"), dense_products(holder, torch.bfloat16):
        holder(x)  # as torch has it, outside of autocast
    assert torch.equal(layer(x), kernel)


def test_dense_products_leave_int8_compute_alone():
    layer = make(compute="int8")
    x = torch.randn(5, 40)
    kernel = layer(x)
    with dense_products(layer, torch.float32):
        assert torch.equal(layer(x), kernel)
    assert not torch.equal(kernel, nn.functional.linear(x, layer.dequantize(), layer.bias))


@pytest.mark.parametrize("clone", ["deepcopy", "copy", "pickle", "torch.save"])
def test_copies(clone):
    layer = make(double_quant=True)
    x = torch.randn(3, 40)
    expected = layer(x)
    if clone == "deepcopy":
        other = copy.deepcopy(layer)
    elif clone == "copy":
        other = copy.copy(layer)
    elif clone == "pickle":
        other = pickle.loads(pickle.dumps(layer))
    else:
        buffer = io.BytesIO()
        torch.save(layer, buffer)
        buffer.seek(0)
        other = torch.load(buffer, weights_only=False)
    assert torch.equal(other(x), expected)
    # A copy is its own layer: the op finds it, and loading into it leaves the original alone.
    assert torch.equal(other(x.clone().requires_grad_()).detach(), expected)
    other.load_state_dict(make(double_quant=True).state_dict())
    assert torch.equal(layer(x), expected)
    assert not torch.equal(other(x), expected)
    assert not torch.equal(other(x.clone().requires_grad_()).detach(), expected)


def test_only_the_packed_form_is_held():
    layer = make(n=256, k=512, group_size=32)
    tensors = {name for name, value in layer.__dict__.items() if hasattr(value, "nbytes")}
    held = sum(buffer.nbytes for buffer in layer.buffers())
    assert held == 256 * 4, "the bias is the only tensor"
    assert layer.nbytes <= 1.05 * layer.quantized().nbytes + held + 4096
    assert tensors == {"_handle", "_core"}


# -- devices and dtypes ---------------------------------------------------------------------------


def test_leaving_the_cpu_is_refused():
    layer = make()
    before = layer(torch.ones(40))
    with pytest.raises(Unsupported, match="fc cannot move to meta"):
        nn.Sequential(layer).to("meta")
    assert torch.equal(layer(torch.ones(40)), before)
    layer.to("cpu")


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
def test_casts_change_neither_weight_nor_bias(cast):
    layer = make()
    x = torch.randn(3, 40)
    before = layer(x)
    getattr(layer, cast)()
    assert torch.equal(layer(x), before)
    assert layer.bias.dtype == torch.float32
    # Model code reads the dtype it should cast its activations to from here.
    assert layer.weight.dtype == getattr(torch.zeros(1), cast)().dtype


def test_stand_in_weight_computes_nothing():
    layer = make()
    assert layer.weight.shape == (24, 40)
    assert layer.weight.device.type == "cpu"
    assert layer.weight.untyped_storage().nbytes() == 4
    assert "[24, 40]" in repr(layer.weight)
    assert not list(layer.parameters())
    for compute in (lambda w: w @ torch.ones(40), lambda w: w + 1, lambda w: w[0], lambda w: w.t()):
        with pytest.raises(Unsupported, match=r"layer\.dequantize"):
            compute(layer.weight)


def test_explain_and_repr():
    layer = make()
    choice = layer.explain()
    assert choice["name"] == "fc"
    assert choice["kernel"] in repr(layer)
    assert choice["reason"]
    assert "in_features=40, out_features=24, bias=True, dtype=nf4, group_size=16" in repr(layer)


def test_logging_tells_the_kernel(caplog):
    with caplog.at_level(logging.DEBUG, "woq"):
        layer = make()
    assert any(layer.explain()["kernel"] in record.getMessage() for record in caplog.records)


# -- compilers ------------------------------------------------------------------------------------


def test_op_passes_torchs_own_checks():
    layer = make()
    x = torch.randn(2, 3, 40, requires_grad=True)
    torch.library.opcheck(torch.ops.woq.linear.default, (x, layer._handle, layer.out_features))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_full_graph(backend):
    model = nn.Sequential(make(40, 40), nn.GELU(), make(24, 40)).eval()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for shape in ((3, 40), (2, 5, 40)):
        x = torch.randn(shape)
        with torch.no_grad():
            # GELU itself differs by an ulp or so between eager and inductor.
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)
    # The compiled graph sees weights that are loaded later.
    model[2].load_state_dict(make(24, 40).state_dict())
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)


def test_compiled_gradient():
    layer = make()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 40, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    compiled(x).square().sum().backward()
    layer(y).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


def test_one_graph_serves_many_layers():
    layers = [make(40, 40) for _ in range(12)]
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    x = torch.randn(3, 40)
    for layer in layers:
        with torch.no_grad():
            compiled = torch.compile(layer, fullgraph=True, backend=backend)
            assert torch.equal(compiled(x), layer(x))
    assert len(graphs) < 4, "every layer compiled its own graph"


def test_export():
    layer = make()
    program = torch.export.export(nn.Sequential(layer), (torch.randn(3, 40),))
    x = torch.randn(3, 40)
    assert torch.equal(program.module()(x), layer(x))


def test_deleted_layer_is_an_error():
    layer = make()
    handle = layer._handle
    del layer
    with pytest.raises(Unsupported, match="does not exist"):
        torch.ops.woq.linear(torch.ones(40), handle, 24)


def test_jit_trace_keeps_the_call():
    layer = make()
    traced = torch.jit.trace(layer, torch.randn(3, 40))
    x = torch.randn(3, 40)
    assert torch.equal(traced(x), layer(x))


@pytest.mark.parametrize(("dtype", "narrow"), [("nf4", True), ("int4_clip", True), ("int8", False)])
def test_automatic_compute_dtype(dtype, narrow, monkeypatch):
    weight = torch.randn(32, 64)
    matrix = woq.quantize_rtn(weight, dtype=dtype)
    layer = WeightOnlyLinear.from_quantized(matrix, compute_dtype="auto", name="fc")
    reason = layer.explain()["compute_reason"]
    assert layer.requested_compute_dtype == "auto"
    assert reason.startswith("auto: ")
    x = torch.randn(3, 64)
    same = WeightOnlyLinear.from_quantized(matrix, compute_dtype=layer.computes_in, name="fc")
    assert same.explain()["compute_reason"] == "asked for"
    assert torch.equal(layer(x), same(x))

    # The choice is the machine's: a copy on another one makes its own.
    monkeypatch.setenv("WOQ_FORCE_TARGET", "ref")
    elsewhere = pickle.loads(pickle.dumps(layer))
    assert elsewhere.requested_compute_dtype == "auto"
    assert elsewhere.computes_in == "fp32"
    if layer.explain()["target"] != "ref":
        assert (layer.computes_in == "int8") == narrow


# -- act-order and multipliers of the input -------------------------------------------------------


def changed_inputs(n=24, k=40, dtype="int4_clip"):
    """A layer with scattered groups and a multiplied input."""
    matrix = woq.quantize_rtn(torch.randn(n, k), dtype=dtype, group_size=16)
    tensors = {key: torch.from_numpy(array.copy()) for key, array in matrix.tensors().items()}
    tensors["g_idx"] = (torch.arange(k, dtype=torch.int32) // 16)[torch.randperm(k)]
    tensors["act_scales"] = torch.rand(k) + 0.5
    return tensors, {
        "rows": n,
        "cols": k,
        "scheme": native.QuantScheme(dtype, 16),
        "has_g_idx": True,
        "has_act_scales": True,
    }


@pytest.mark.parametrize("dtype", dtype_names())
def test_scattered_groups_and_multiplied_inputs(dtype):
    tensors, arguments = changed_inputs(dtype=dtype)
    layer = WeightOnlyLinear.from_quantized(
        native.QuantizedMatrix.from_tensors(tensors, **arguments)
    )
    for rows in (1, 3, 20):
        assert_close(layer, torch.randn(rows, 40))
    # By hand: the group of each column decides its scale, and the multiplier belongs to W.
    codes = layer.quantized().codes()
    values = native.code_values(dtype)[codes] * layer.quantized().scales()[:, tensors["g_idx"]]
    expected = torch.from_numpy(values) * tensors["act_scales"]
    torch.testing.assert_close(layer.dequantize(), expected, rtol=1e-6, atol=0)


def test_scattered_groups_and_multiplied_inputs_are_kept():
    tensors, arguments = changed_inputs()
    layer = WeightOnlyLinear.from_quantized(
        native.QuantizedMatrix.from_tensors(tensors, **arguments)
    )
    assert layer.has_g_idx
    assert layer.has_act_scales
    x = torch.randn(3, 40)
    state = layer.state_dict()
    for key, value in tensors.items():
        assert torch.equal(state[key], value), key
    other_tensors, _ = changed_inputs()
    other = WeightOnlyLinear.from_quantized(
        native.QuantizedMatrix.from_tensors(other_tensors, **arguments)
    )
    other.load_state_dict(state)
    assert torch.equal(other(x), layer(x))
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), layer(x))
    x.requires_grad_()
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.ones(3, 24) @ layer.dequantize())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"g_idx": torch.zeros(40, dtype=torch.int32)}, "more than 16 columns into group 0"),
        ({"g_idx": torch.full((40,), 3, dtype=torch.int32)}, r"g_idx\[0\] is 3"),
        ({"g_idx": torch.zeros(39, dtype=torch.int32)}, "'g_idx' has shape"),
        ({"act_scales": torch.zeros(40)}, "'act_scales' holds 0 at column 0"),
        ({"act_scales": torch.full((40,), float("nan"))}, "'act_scales' holds nan"),
    ],
)
def test_wrong_groups_and_multipliers_are_named(change, message):
    tensors, arguments = changed_inputs()
    with pytest.raises(InvalidArgument, match=message):
        native.QuantizedMatrix.from_tensors({**tensors, **change}, **arguments)


def test_an_error_names_everything_that_is_wrong():
    tensors, arguments = changed_inputs()
    del tensors["qweight"]
    tensors["scales"] = tensors["scales"].half()
    tensors["g_idx"] = tensors["g_idx"][:7].clone()
    with pytest.raises(InvalidArgument) as raised:
        native.QuantizedMatrix.from_tensors(tensors, **arguments)
    message = str(raised.value)
    assert "3 things are wrong" in message
    assert "'qweight' is missing" in message
    assert "'scales' is float16, expected float32" in message
    assert "'g_idx' has shape [7], expected [40]" in message


# -- several layers over one input ----------------------------------------------------------------


def test_shared_and_gated_calls_give_what_single_calls_give():
    q, k = make(24, 40), make(8, 40, dtype="int8")
    gate, up = make(24, 40, compute="int8"), make(24, 40, compute="int8", dtype="int4_clip")
    x, residual = torch.randn(5, 40), torch.randn(5, 24)
    outs = [torch.empty(5, 24), torch.empty(5, 8), torch.empty(5, 24)]
    native.forward_shared(x, [(q._core, outs[0], residual), (k._core, outs[1])])
    assert torch.equal(outs[0], q(x) + residual)
    assert torch.equal(outs[1], k(x))
    native.forward_gated(x, gate._core, up._core, outs[2])
    torch.testing.assert_close(outs[2], nn.functional.silu(gate(x)) * up(x))


def test_shared_calls_say_what_is_wrong():
    layer, x = make(24, 40), torch.randn(5, 40)
    with pytest.raises(InvalidArgument, match="the residual is 5 x 23, expected 5 x 24"):
        native.forward_shared(x, [(layer._core, torch.empty(5, 24), torch.empty(5, 23))])
    with pytest.raises(InvalidArgument, match="got 1 items"):
        native.forward_shared(x, [(layer._core,)])
    with pytest.raises(InvalidArgument, match="the output is 5 x 24, expected 5 x 16"):
        native.forward_gated(x, make(16, 40)._core, layer._core, torch.empty(5, 24))
