# SPDX-License-Identifier: Apache-2.0
"""Calibration of what a forward pass calls more than once: a layer that its block calls twice, a
block that the model does."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from model_support import llama, seed
from torch import nn

pytest.importorskip("transformers")

import woq
from woq import WeightOnlyLinear, WeightOnlyQuantConfig
from woq.algorithms import autoround
from woq.algorithms.rtn import round_to_nearest
from woq.algorithms.shared.finished import Finished

DATA = torch.randint(0, 128, (24, 16), generator=torch.Generator().manual_seed(5))


@pytest.fixture(autouse=True)
def _seed(request):
    seed(request)


def layers(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, WeightOnlyLinear)}


class Twice(nn.Module):
    """An MLP whose gate is called on two inputs, one of which is that of `up_proj`, too."""

    def __init__(self, mlp):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj

    def forward(self, x):
        x = x + 0.1 * self.gate_proj(torch.tanh(x))
        return self.down_proj(torch.relu(self.gate_proj(x)) * self.up_proj(x))


def llama_that_calls_twice():
    model = llama(intermediate_size=64)
    for layer in model.model.layers:
        layer.mlp = Twice(layer.mlp)
    return model


@pytest.mark.parametrize("algorithm", ["GPTQ", "AWQ", "TEQ", "AUTOROUND", "AWQ+GPTQ"])
def test_a_layer_that_is_called_twice(algorithm):
    model = llama_that_calls_twice()
    floats = copy.deepcopy(model)
    options = {"nsamples": len(DATA), "seqlen": 16}  # all of it
    woq.quantize(
        model,
        WeightOnlyQuantConfig(
            "int4_clip", group_size=16, algorithm=algorithm, algorithm_args=options, dataset=DATA
        ),
    )
    assert not model.woq_report.fallbacks
    if algorithm == "AUTOROUND":
        return  # its loss is the block's
    # The error that the report has of a layer is that of its outputs in both calls.
    for layer in model.woq_report.layers:
        if not layer.name.startswith("model.layers.0.mlp"):
            continue
        rows = []
        handle = floats.get_submodule(layer.name).register_forward_pre_hook(
            lambda module, args, rows=rows: rows.append(args[0].flatten(0, -2))
        )
        with torch.no_grad():
            floats(DATA)
        handle.remove()
        assert len(rows) == (2 if layer.name.endswith("gate_proj") else 1)
        x = torch.cat(rows)
        weight = floats.get_submodule(layer.name).weight.detach()
        error = x @ (weight - layers(model)[layer.name].dequantize()).t()
        measured = error.square().sum() / (x @ weight.t()).square().sum()
        # bfloat16 products (2^-8) in the calibration, none here.
        assert layer.loss == pytest.approx(float(measured), rel=0.1)


def test_groups_of_a_layer_that_is_called_twice():
    found = []

    def quantize_block(block, settings):
        found.append([[t.name.rpartition(".")[2] for t in group] for group in block.groups()])
        for target in block.targets:
            weight = target.module.weight.detach()
            yield Finished(target, round_to_nearest(weight, settings, target))

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vars(autoround.ALGORITHM), "quantize_block", quantize_block)
        woq.quantize(
            llama_that_calls_twice(),
            WeightOnlyQuantConfig(
                algorithm="AUTOROUND",
                algorithm_args={"nsamples": 4, "seqlen": 16},
                dataset=DATA,
            ),
        )
    block = [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj"], ["up_proj"], ["down_proj"]]
    assert found == [block] * 2


def albert():
    from transformers import AlbertConfig, AlbertForMaskedLM

    settings = {"vocab_size": 128, "embedding_size": 32, "hidden_size": 64, "num_hidden_layers": 3}
    settings |= {"intermediate_size": 96, "num_attention_heads": 4}
    return AlbertForMaskedLM(AlbertConfig(**settings)).eval()


@pytest.mark.parametrize("algorithm", ["GPTQ", "AWQ", "TEQ"])
def test_a_block_that_is_called_more_than_once(algorithm):
    """ALBERT has one block, and calls it for each of its layers."""
    model = albert()
    inner = "albert.encoder.albert_layer_groups.0."
    with torch.no_grad():
        expected = model(DATA).logits
    options = {"nsamples": 12, "seqlen": 32}
    settings = {"weight_dtype": "int4_clip", "group_size": 32, "dataset": DATA}
    plain = woq.quantize(copy.deepcopy(model), WeightOnlyQuantConfig("int4_clip", group_size=32))
    woq.quantize(
        model, WeightOnlyQuantConfig(algorithm=algorithm, algorithm_args=options, **settings)
    )
    entries = [layer for layer in model.woq_report.layers if layer.name.startswith(inner)]
    assert len(entries) == 6
    assert all(layer.algorithm == algorithm and layer.loss is not None for layer in entries)
    with torch.no_grad():
        error = (model(DATA).logits - expected).norm()
        rounded = (plain(DATA).logits - expected).norm()
    assert error < rounded


@pytest.mark.parametrize(
    ("algorithm", "option"), [("AUTOROUND", {"iters": 1}), ("GPTQ", {"gptaq_alpha": 0.25})]
)
def test_it_is_said_where_such_a_block_is_not_calibrated(algorithm, option, caplog):
    model = albert()
    options = {"nsamples": 4, "seqlen": 16, **option}
    with caplog.at_level(logging.WARNING, "woq"):
        woq.quantize(
            model,
            WeightOnlyQuantConfig(
                "int4_clip", algorithm=algorithm, algorithm_args=options, dataset=DATA
            ),
        )
    reason = f"its block is called more than once in a pass, for which {algorithm} would need"
    assert caplog.text.count(reason) == 6
