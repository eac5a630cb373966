# SPDX-License-Identifier: Apache-2.0
"""The core's attention against torch's in double precision, and when it is used."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from woq import InvalidArgument, targets
from woq.core import native
from woq.observe.attention import FastAttention


@pytest.fixture
def everywhere(monkeypatch):
    """The core's attention taken on any CPU: it runs on all, and is fast with bfloat16 products."""
    monkeypatch.setattr(native, "has_bf16_products", lambda: True)


# A fixture that all of a test's examples share is meant here.
shared = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def inputs(batch, heads, kv_heads, queries, keys, head_dim, seed=0, spread=2.0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    q = normal(batch, heads, queries, head_dim) * spread
    k, v = normal(batch, kv_heads, keys, head_dim), normal(batch, kv_heads, keys, head_dim)
    return q.bfloat16(), k.bfloat16(), v.bfloat16()


def expected(q, k, v, causal, scale=None):
    """In double precision, and with |v|: what errors are relative to."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.double().repeat_interleave(groups, 1), v.double().repeat_interleave(groups, 1)
    arguments = {"is_causal": causal, "scale": scale}
    return tuple(
        functional.scaled_dot_product_attention(q.double(), k, values, **arguments)
        for values in (v, v.abs())
    )


def assert_close(got, q, k, v, causal, scale=None):
    exact, magnitude = expected(q, k, v, causal, scale)
    # The weights are rounded to bfloat16 (2^-8 each), so is the result; scores are fp32 sums of
    # exact products, off by head_dim 2^-24 of sum |q k|, which is below 2^-10 here.
    assert got.dtype == torch.bfloat16
    assert ((got.double() - exact).abs() <= 2.25 * 2**-8 * magnitude + 1e-30).all()


@pytest.mark.usefixtures("everywhere")
@settings(shared, deadline=None, max_examples=60)
@given(
    batch=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    together=st.integers(1, 3),
    queries=st.integers(1, 70),
    keys=st.integers(1, 600),
    half_dim=st.integers(1, 40),
    causal=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_shape(batch, kv_heads, together, queries, keys, half_dim, causal, seed):
    keys = queries if causal else keys
    q, k, v = inputs(batch, kv_heads * together, kv_heads, queries, keys, 2 * half_dim, seed)
    with FastAttention(), torch.no_grad():
        got = functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    assert got.shape == q.shape
    assert_close(got, q, k, v, causal)


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("tokens", [255, 256, 257, 1030])
@pytest.mark.parametrize("layout", ["heads first", "tokens first", "tokens last", "odd rows"])
def test_long_rows_and_layouts(tokens, layout, monkeypatch):
    calls = counted(monkeypatch)
    q, k, v = inputs(1, 4, 2, tokens, tokens, 64)
    if layout == "tokens first":
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    elif layout == "tokens last":
        q, k, v = (x.transpose(2, 3).contiguous().transpose(2, 3) for x in (q, k, v))
    elif layout == "odd rows":
        wide = torch.zeros(1, tokens, 2 * 64 + 1, dtype=torch.bfloat16)
        wide[..., :128] = v.transpose(1, 2).flatten(2)
        v = wide[..., :128].unflatten(2, (2, 64)).transpose(1, 2)
    with FastAttention(), torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        got = functional.scaled_dot_product_attention(
            q.float(), k, v, is_causal=True, scale=0.3, enable_gqa=True
        )
    assert calls == [True]
    assert_close(got, q, k, v, True, 0.3)


@pytest.mark.usefixtures("everywhere")
def test_large_scores():
    """A running maximum, or exp() overflows; late keys that outweigh all before them."""
    q, k, v = inputs(1, 2, 2, 700, 700, 32, spread=100.0)
    k = k * torch.linspace(0.1, 3, 700)[:, None].bfloat16()
    with FastAttention(), torch.no_grad():
        got = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    exact, magnitude = expected(q, k, v, True)
    # Scores of thousands are off by some 32 x 2^-24 of it: 1e-3 in the exponent.
    assert ((got.double() - exact).abs() <= 0.02 * magnitude).all()


@pytest.mark.usefixtures("everywhere")
def test_same_for_any_number_of_threads():
    q, k, v = (x.transpose(1, 2).flatten(2).flatten(0, 1) for x in inputs(1, 4, 2, 150, 150, 64))
    results = []
    for threads in (1, 2, 3):
        out = torch.empty_like(q)
        native.attention(q, k, v, out, 1, 4, 2, 0.125, True, threads)
        results.append(out)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def counted(monkeypatch):
    calls = []
    original = native.attention
    monkeypatch.setattr(
        native,
        "attention",
        lambda *args, **kwargs: (calls.append(True), original(*args, **kwargs)),
    )
    return calls


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize(
    "case",
    [
        "mask",
        "dropout",
        "gradients",
        "odd head_dim",
        "causal",
        "value head_dim",
        "heads",
        "float32",
        "float64 in autocast",
        "three dimensions",
        "no tokens",
        "vmap",
    ],
)
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's, about vmap
def test_torch_does_the_rest(case, monkeypatch):
    """What the core doesn't take has torch's result, and no other."""
    calls = counted(monkeypatch)
    shape = (1, 4, 2, 9, 9, 7) if case == "odd head_dim" else (1, 4, 2, 9, 9, 8)
    q, k, v = inputs(*shape)
    options = {"enable_gqa": case != "heads"}
    if case == "mask":
        options["attn_mask"] = torch.zeros(9, 9, dtype=torch.bfloat16)
    elif case == "dropout":
        options["dropout_p"] = 1.0
    elif case == "gradients":
        q.requires_grad_(True)
    elif case == "causal":
        k, v = k[:, :, :5], v[:, :, :5]
        options["is_causal"] = True
    elif case == "value head_dim":
        v = v[..., :6]
    elif case == "float32":
        q, k, v = q.float(), k.float(), v.float()
    elif case == "float64 in autocast":
        q, k, v = q.double(), k.double(), v.double()
    elif case == "three dimensions":
        q, k, v = q[0], k[0, :1].expand(4, -1, -1), v[0, :1].expand(4, -1, -1)
        options = {}
    elif case == "no tokens":
        q = q[:, :, :0]
    attend = functional.scaled_dot_product_attention
    if case == "vmap":
        attend = torch.func.vmap(attend)
        q, k, v = (x.unsqueeze(0) for x in (q, k, v))

    def run():
        try:
            with torch.autocast("cpu", torch.bfloat16, enabled="autocast" in case):
                return attend(q, k, v, **options).detach()
        except RuntimeError as error:
            return str(error).split("\n")[0]

    plain = run()
    with FastAttention():
        got = run()
    assert not calls
    assert torch.equal(plain, got) if isinstance(plain, torch.Tensor) else plain == got


def test_capped_by_the_forced_target(monkeypatch):
    monkeypatch.setenv("WOQ_FORCE_TARGET", "ref")
    assert not native.has_bf16_products()
    q, k, v = inputs(1, 1, 1, 4, 4, 8)
    with FastAttention(), torch.no_grad():
        got = functional.scaled_dot_product_attention(q, k, v)
    assert torch.equal(got, functional.scaled_dot_product_attention(q, k, v))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"heads": 4, "kv_heads": 3}, "heads a multiple of kv_heads"),
        ({"heads": 3}, "16 columns, which is no multiple of 3 heads"),
        ({"batch": 4}, "6 rows, which is no multiple of a batch of 4"),
        ({"heads": 0}, "a batch and heads"),
        ({"q": np.zeros((6, 16), np.float32)}, "q must be bf16, not fp32"),
        ({"v": torch.zeros(5, 8, dtype=torch.bfloat16)}, r"v is \[5, 8\], expected \[6, 8\]"),
        ({"heads": 16, "kv_heads": 8}, "head_dim must be even"),
        ({"k": torch.zeros(4, 8, dtype=torch.bfloat16), "causal": True}, "as many keys as queries"),
    ],
)
def test_wrong_arguments(wrong, message):
    arguments = {
        "q": torch.zeros(6, 16, dtype=torch.bfloat16),
        "k": torch.zeros(6, 8, dtype=torch.bfloat16),
        "v": torch.zeros(6, 8, dtype=torch.bfloat16),
        "out": torch.empty(6, 16, dtype=torch.bfloat16),
        "batch": 1,
        "heads": 2,
        "kv_heads": 1,
        "scale": 1.0,
        "causal": False,
        **wrong,
    }
    with pytest.raises(InvalidArgument, match=message):
        native.attention(**arguments)


@pytest.mark.parametrize("target", ["ref", "avx2", "avx512"])
def test_every_target_gives_the_same(target, monkeypatch):
    q, k, v = (x.transpose(1, 2).flatten(2).flatten(0, 1) for x in inputs(1, 4, 2, 40, 40, 16))
    expected, got = torch.empty_like(q), torch.empty_like(q)
    native.attention(q, k, v, expected, 1, 4, 2, 0.25, True)
    if not next(t["available"] for t in targets() if t["name"] == target):
        pytest.skip(f"this CPU lacks {target}")
    monkeypatch.setenv("WOQ_FORCE_TARGET", target)
    assert native.cpu_info()["forced_target"] == target
    native.attention(q, k, v, got, 1, 4, 2, 0.25, True)
    assert torch.equal(got, expected)
