# SPDX-License-Identifier: Apache-2.0
"""GPTQ, AWQ and TEQ on whole models: what the Python side asks of the core, and what is saved.
(The arithmetic is tested beside the core.)"""

from __future__ import annotations

import copy

import pytest
import torch
from model_support import gpt2, llama, logits, seed, t5

pytest.importorskip("transformers")

from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

import woq
from woq import AwqConfig, GPTQConfig, RtnConfig, TeqConfig, _woq

pytestmark = pytest.mark.skipif(
    not hasattr(_woq, "quantize_gptq"), reason="this build of the core has no GPTQ"
)

DATA = torch.randint(0, 128, (24, 32), generator=torch.Generator().manual_seed(5))
COMMON = {"dataset": DATA, "nsamples": 16, "seqlen": 32, "batch_size": 4, "group_size": 16}
CONFIGS = {
    "gptq": lambda **k: GPTQConfig(**COMMON, **k),
    "gptq-asym": lambda **k: GPTQConfig(sym=False, **COMMON, **k),
    "gptq-nf4": lambda **k: GPTQConfig(weight_dtype="nf4", **COMMON, **k),
    "gptq-desc": lambda **k: GPTQConfig(desc_act=True, **COMMON, **k),
    "gptq-static": lambda **k: GPTQConfig(desc_act=True, static_groups=True, **COMMON, **k),
    "gptq-aware": lambda **k: GPTQConfig(act_group_aware=True, **COMMON, **k),
    "gptq-sequential": lambda **k: GPTQConfig(true_sequential=True, **COMMON, **k),
    "awq": lambda **k: AwqConfig(**COMMON, **k),
    "awq-sym": lambda **k: AwqConfig(zero_point=False, **COMMON, **k),
    "awq-clip": lambda **k: AwqConfig(mse_range=False, **COMMON, **k),
    "awq-plain": lambda **k: AwqConfig(mse_range=False, apply_clip=False, **COMMON, **k),
    "teq": lambda **k: TeqConfig(iters=20, **COMMON, **k),
    "teq-plain": lambda **k: TeqConfig(iters=20, mse_range=False, **COMMON, **k),
}


@pytest.fixture(autouse=True)
def _seed(request):
    seed(request)


def layers(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, woq.WeightOnlyLinear)}


def planted(make=llama):
    """A small model with outlier channels in its embeddings."""
    model = make()
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        embedding[:, ::16] *= 8
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_no_layer_gets_worse(name):
    """On the calibration data, by the layers' own outputs."""
    model = woq.quantize(planted(), CONFIGS[name]())
    layers = model.woq_report.layers
    assert len(layers) == 14
    assert all(layer.loss is not None for layer in layers)
    better = [layer.loss <= layer.start_loss * (1 + 1e-6) for layer in layers]
    assert sum(better) >= 13
    assert sum(layer.loss for layer in layers) < sum(layer.start_loss for layer in layers)
    assert logits(model).isfinite().all()


@pytest.mark.parametrize("name", ["gptq", "gptq-asym", "awq", "awq-clip", "teq", "teq-plain"])
def test_the_model_gets_better(name):
    ids = torch.randint(0, 128, (8, 32))
    config = CONFIGS[name]()
    plain = RtnConfig(weight_dtype=config.weight_dtype, sym=config.sym, group_size=16)
    errors = {"tuned": 0.0, "plain": 0.0}
    for number in range(3):
        torch.manual_seed(number)
        model = planted()
        with torch.no_grad():
            expected = model.model(ids).last_hidden_state
            for key, each in (("tuned", config), ("plain", plain)):
                got = woq.quantize(copy.deepcopy(model), each).model(ids).last_hidden_state
                errors[key] += float((got - expected).square().mean())
    assert errors["tuned"] < errors["plain"]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_save_and_reload(name, kind, tmp_path):
    model = {"llama": llama, "t5": t5}[kind]()
    auto = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    config = CONFIGS[name](quantize_lm_head=True)
    model = woq.quantize(model, config)
    stored = {(layer.has_g_idx, layer.has_act_scales) for layer in layers(model).values()}
    assert stored == {(config.stores_g_idx, config.stores_act_scales)}
    woq.save_pretrained(model, tmp_path)
    again = auto.from_pretrained(tmp_path)
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("name", CONFIGS)
def test_resumed(name, tmp_path):
    model = gpt2()
    whole = woq.quantize(copy.deepcopy(model), CONFIGS[name](work_dir=tmp_path))
    again = woq.quantize(model, CONFIGS[name](work_dir=tmp_path))
    assert torch.equal(logits(again), logits(whole))


def test_a_layer_that_no_token_reaches_saves_like_the_others(tmp_path):
    from test_driver import Experts

    for name in ("gptq-desc", "awq"):
        model = llama()
        model.model.layers[1].mlp = Experts(64)
        woq.quantize(model, CONFIGS[name]())
        assert [layer.name for layer in model.woq_report.fallbacks] == [
            "model.layers.1.mlp.experts.1"
        ]
        schemes = {str(layer.scheme) for layer in layers(model).values()}
        assert len(schemes) == 1
        assert logits(model).isfinite().all()


def test_deterministic_for_any_number_of_threads():
    threads = torch.get_num_threads()
    # 256 x 256 elements are worth two threads of the core: 2^15 for each.
    model = planted(lambda: llama(hidden_size=256, intermediate_size=256, num_hidden_layers=1))
    found = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(woq.quantize(copy.deepcopy(model), CONFIGS["gptq"]()))
    finally:
        torch.set_num_threads(threads)
    # torch's products in front of the first Hessian may differ in the last bit.
    one, other = ([m.dequantize() for m in layers(each).values()] for each in found)
    same = [float((a == b).float().mean()) for a, b in zip(one, other, strict=True)]
    assert sum(same) / len(same) > 0.99
