# SPDX-License-Identifier: Apache-2.0
"""AWQ's multipliers in the layers before (fold_scales): found without a table of architectures,
and nothing but roundings changes."""

from __future__ import annotations

import pytest
import torch
import transformers
from model_support import gpt2, llama, logits, mixtral, seed
from torch import nn

import woq
from woq.algorithms.shared.folding import find_producer
from woq.modules.targets import select
from woq.observe.block import for_calibration
from woq.observe.samples import calibration_batches
from woq.observe.walk import walk

OPTIONS = {"nsamples": 4, "seqlen": 32, "batch_size": 2, "seed": 3}


@pytest.fixture(autouse=True)
def _seed(request):
    seed(request)


def gemma():
    config = transformers.GemmaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, head_dim=16,
    )  # fmt: skip
    model = transformers.GemmaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def phi():
    """Attention and MLP side by side, after one norm."""
    config = transformers.PhiConfig(
        vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4,
    )  # fmt: skip
    return transformers.PhiForCausalLM(config).eval()


def found(model):
    """For each group of the first block, by the last names of its layers: the producer."""
    config = woq.AwqConfig()
    targets = select(model, config)
    batches = calibration_batches(model, [torch.arange(128).repeat(2)], None, OPTIONS)
    producers = {}

    def visit(block):
        for group in block.groups():
            names = " ".join(target.name.rpartition(".")[2] for target in group)
            producers.setdefault(names, find_producer(block, group))

    with for_calibration(model):
        walk(model, batches, targets, visit, limit=1 << 30, dtypes={"int4_clip"})
    return producers


LAYERS = {
    "q_proj k_proj v_proj": "input_layernorm",
    "gate_proj up_proj": "post_attention_layernorm",
    "down_proj": "mlp.up_proj",
}
EXPECTED = {
    "llama": (llama, LAYERS | {"o_proj": None}),  # two heads share the values of one
    "llama, all heads": (
        lambda: llama(num_key_value_heads=4), LAYERS | {"o_proj": "self_attn.v_proj"},
    ),
    "gemma": (gemma, LAYERS | {"o_proj": "self_attn.v_proj"}),
    "gpt2": (gpt2, {"c_attn": "ln_1", "c_fc": "ln_2", "c_proj": None}),
    # The router of the experts has the norm's output, too.
    "mixtral": (mixtral, {"q_proj k_proj v_proj": "input_layernorm", "o_proj": None}),
    "phi": (
        phi, {"q_proj k_proj v_proj fc1": "input_layernorm", "dense": "self_attn.v_proj",
              "fc2": None},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_producers(name):
    make, expected = EXPECTED[name]
    producers = found(make())
    assert {n: p and p.name for n, p in producers.items() if n in expected} == expected
    offsets = {p.offset for p in producers.values() if p is not None and "norm" in p.name}
    assert offsets <= ({1.0} if name == "gemma" else {0.0})


@pytest.mark.parametrize("make", [gemma, gpt2, phi, lambda: llama(num_key_value_heads=4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_computes_the_same(make, dtype):
    model = make().to(dtype)
    expected = logits(model)
    for _ in range(2):  # the first block, and again what is multiplied already
        groups = {}
        config = woq.AwqConfig()
        targets = select(model, config)
        batches = calibration_batches(model, [torch.arange(128).repeat(2)], None, OPTIONS)

        def visit(block, groups=groups):
            for group in block.groups():
                producer = find_producer(block, group)
                if producer is None:
                    continue
                factors = torch.rand(group[0].shape[1]) + 0.5
                producer.multiply(factors)
                for target in group:
                    weight = target.module.weight
                    with torch.no_grad():
                        weight /= (factors[:, None] if target.transposed else factors).to(dtype)
                groups[target.name] = producer

        with for_calibration(model):
            walk(model, batches, targets, visit, limit=1 << 30, dtypes={"int4_clip"})
        assert len(groups) >= 4
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(logits(model), expected, rtol=tolerance, atol=tolerance)


def awq(model, **options):
    torch.manual_seed(1)
    with torch.no_grad():  # channels of different sizes, for which AWQ is made
        for block in model.model.layers:
            block.input_layernorm.weight.mul_(torch.exp(torch.randn(64)))
            block.post_attention_layernorm.weight.mul_(torch.exp(torch.randn(64)))
            block.mlp.up_proj.weight.mul_(torch.exp(torch.randn(96))[:, None])
    expected = logits(model)
    data = [torch.randint(128, (400,))]
    config = woq.AwqConfig(dataset=data, seqlen=32, nsamples=8, group_size=32, **options)
    woq.quantize(model, config)
    return expected, model


def error(pair):
    expected, model = pair
    return float((logits(model) - expected).square().mean())


def test_nothing_is_stored_beside_the_weights(tmp_path):
    pair = awq(llama(), fold_scales=True)
    model = pair[1]
    layers = [m for m in model.modules() if isinstance(m, woq.WeightOnlyLinear)]
    assert len(layers) == 14
    assert not any(layer.has_act_scales for layer in layers)
    assert error(pair) < 0.9 * error(awq(llama(), fold_scales=True, n_grid=1, apply_clip=False))
    woq.save_pretrained(model, tmp_path)
    again = woq.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(again), logits(model))
    assert again.config.quantization_config.algorithm_args["fold_scales"] is True


def test_it_is_as_good_as_scales_beside_the_weights():
    """But for o_proj, whose inputs two heads share, and the rounding of up_proj's scales."""
    folded = error(awq(llama(num_key_value_heads=4), fold_scales=True))
    beside = error(awq(llama(num_key_value_heads=4)))
    assert folded == pytest.approx(beside, rel=0.05)


def test_the_option_is_not_stored_at_its_default():
    assert "fold_scales" not in woq.AwqConfig().to_dict()["algorithm_args"]
    stored = woq.AwqConfig(fold_scales=True).to_dict()
    assert stored["algorithm_args"]["fold_scales"] is True
    assert woq.WeightOnlyQuantConfig.from_dict(stored).algorithm_args["fold_scales"] is True


def test_a_work_dir_is_refused(tmp_path):
    config = woq.AwqConfig(fold_scales=True, dataset=[torch.arange(128)], work_dir=tmp_path)
    with pytest.raises(woq.InvalidArgument, match="fold_scales changes layers that a work_dir"):
        woq.quantize(llama(), config)


def test_export_takes_it(tmp_path):
    _, model = awq(llama(intermediate_size=96), fold_scales=True, scale_dtype="fp16")
    report = woq.export(model, tmp_path / "awq", format="awq", round_scales=True)
    assert report.possible
    loaded = woq.AutoModelForCausalLM.from_pretrained(tmp_path / "awq")
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-3, atol=1e-3)
