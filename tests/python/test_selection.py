# SPDX-License-Identifier: Apache-2.0
"""Which layers of a model are quantized: the same wherever it is, and what is said of others."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import torch
from model_support import llama, seed
from torch import nn
from torch.nn.utils import parametrizations

import woq
from woq import Unsupported, WeightOnlyLinear, WeightOnlyQuantConfig
from woq.modules import bypassed
from woq.modules.targets import passed_over, select

CONFIG = WeightOnlyQuantConfig("int8", group_size=16)


@pytest.fixture(autouse=True)
def _seed(request):
    seed(request)


def quantized(model):
    return [name for name, module in model.named_modules() if isinstance(module, WeightOnlyLinear)]


def warnings_of(caplog, model, config=CONFIG):
    caplog.clear()
    with caplog.at_level(logging.WARNING, "woq"):
        woq.quantize(model, config)
    return [record.getMessage() for record in caplog.records]


# -- subclasses -----------------------------------------------------------------------------------


class Named(nn.Linear):
    """Changes nothing."""


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class WithScale(nn.Linear):
    """Somebody else reads the scale."""

    def __init__(self, *args):
        super().__init__(*args)
        self.scale = nn.Parameter(torch.ones(1))


def test_a_subclass_that_computes_the_same_is_quantized(caplog):
    model = nn.Sequential(Named(32, 32), nn.ReLU(), Named(32, 16))
    assert not warnings_of(caplog, model)
    assert quantized(model) == ["0", "2"]


@pytest.mark.parametrize("make", [Doubled, WithScale])
def test_one_that_may_not_is_left_alone(make, caplog):
    model = nn.Sequential(make(32, 32), nn.Linear(32, 128))
    before = model[0].weight
    assert not warnings_of(caplog, model)
    assert quantized(model) == ["1"]
    assert model[0].weight is before
    (left,) = [entry for entry in model.woq_report.left if entry.name == "0.weight"]
    assert left.reason == f"{make.__name__} may compute something else than a linear layer"


def test_a_weight_that_is_computed_is_left_alone():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(32, 32)), nn.Linear(32, 32))
    woq.quantize(model, CONFIG)
    assert quantized(model) == ["1"]


def test_falcon(caplog):
    from transformers import FalconConfig, FalconForCausalLM

    model = FalconForCausalLM(
        FalconConfig(
            vocab_size=96,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            ffn_hidden_size=128,
        )
    ).eval()
    tokens = torch.arange(9)[None]
    with torch.no_grad():
        expected = model(tokens).logits
    assert not warnings_of(caplog, model)
    assert len(quantized(model)) == 8
    with torch.no_grad():
        # 8 bits are off by a 254th of a group's range.
        assert (model(tokens).logits - expected).abs().max() < 0.02 * expected.abs().max()


# -- warnings -------------------------------------------------------------------------------------


def test_nothing_is_said_where_all_is_well(caplog):
    assert not warnings_of(caplog, llama())
    asked = WeightOnlyQuantConfig("int8", modules_to_not_convert=["mlp", "self_attn.q_proj"])
    assert not warnings_of(caplog, llama(), asked)


def test_a_model_of_which_nothing_is_quantized(caplog):
    (message,) = warnings_of(caplog, nn.Sequential(nn.Conv2d(3, 3, 3), Doubled(32, 32)))
    assert "nothing was quantized" in message
    assert "1.weight: Doubled may compute something else than a linear layer" in message
    assert "0.weight: Conv2d is no linear layer" in message
    (message,) = warnings_of(caplog, nn.ReLU())
    assert message.startswith("nothing was quantized")


def test_a_model_of_which_little_is_quantized(caplog):
    from transformers import XLNetConfig, XLNetModel

    model = XLNetModel(XLNetConfig(vocab_size=32, d_model=64, n_layer=1, n_head=2, d_inner=64))
    (message,) = warnings_of(caplog, model)
    entries = [entry for entry in model.woq_report.left if "rel_attn" in entry.name]
    count = sum(entry.parameters for entry in entries if len(entry.shape) == 3)
    done = model.woq_report.quantized_parameters
    assert done == 64 * 64  # of the two linear layers the last one counts as the head
    share = int(re.match(r"(\d+) %", message)[1])
    assert share == pytest.approx(100 * count / (count + done), abs=2)
    assert "XLNetRelativeAttention is no linear layer" in message


# -- ties -----------------------------------------------------------------------------------------


def albert():
    from transformers import AlbertConfig, AlbertForMaskedLM

    return AlbertForMaskedLM(
        AlbertConfig(
            vocab_size=96,
            embedding_size=32,
            hidden_size=64,
            intermediate_size=96,
            num_attention_heads=4,
            num_hidden_layers=3,
        )
    ).eval()


class LinearBeforeTheHead(nn.Module):
    """As Gemma 3n has it: a linear layer, then the output embedding, which may be tied."""

    def __init__(self, tied):
        super().__init__()
        self.embedding = nn.Embedding(48, 32)
        self.last = nn.Linear(32, 32)
        self.head = nn.Linear(32, 48, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def get_output_embeddings(self):
        return self.head


def test_ties_make_no_difference():
    for config in (CONFIG, WeightOnlyQuantConfig("int8", group_size=16, quantize_lm_head=True)):
        free, tied = (
            [target.name for target in select(LinearBeforeTheHead(tied), config)]
            for tied in (False, True)
        )
        assert free == tied == (["last", "head"] if config.quantize_lm_head else ["last"])


def test_a_tied_model_reads_back(tmp_path):
    tokens = torch.arange(9)[None]
    albert().save_pretrained(tmp_path / "float")
    kind = type(albert())
    loading = kind.from_pretrained(tmp_path / "float", quantization_config=CONFIG)
    memory = woq.quantize(kind.from_pretrained(tmp_path / "float"), CONFIG)
    assert quantized(memory) == quantized(loading)
    assert "predictions.dense" in quantized(memory)
    for number, model in enumerate((memory, loading)):
        woq.save_pretrained(model, tmp_path / f"{number}")
        again = kind.from_pretrained(tmp_path / f"{number}")
        with torch.no_grad():
            assert torch.equal(again(tokens).logits, model(tokens).logits)


def test_the_last_module_stays_the_last(tmp_path):
    """A second call selects nothing more, though quantized layers have no parameters."""
    model = woq.quantize(LinearBeforeTheHead(True), CONFIG)
    assert [target.name for target in select(model, CONFIG)] == []


# -- layers whose weight is read ------------------------------------------------------------------


def mamba():
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=96, hidden_size=64, num_hidden_layers=2, state_size=8)
    return MambaForCausalLM(config).eval()


def rwkv():
    from transformers import RwkvConfig, RwkvForCausalLM

    config = RwkvConfig(
        vocab_size=96, hidden_size=64, num_hidden_layers=2, context_length=32, rescale_every=1
    )
    return RwkvForCausalLM(config).eval()


def jamba():
    from transformers import JambaConfig, JambaForCausalLM

    return JambaForCausalLM(
        JambaConfig(
            vocab_size=96,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            attn_layer_period=2,
            attn_layer_offset=1,
            expert_layer_period=2,
            expert_layer_offset=1,
            num_experts=4,
            num_experts_per_tok=2,
            mamba_d_state=8,
            pad_token_id=0,
        )
    ).eval()


READERS = {
    mamba: {"dt_proj"},
    rwkv: {"attention.output", "feed_forward.value"},
    jamba: set(),  # its layer is called, once the config is marked as a quantized model's
}


@pytest.mark.parametrize("algorithm", ["RTN", "GPTQ"])
@pytest.mark.parametrize("make", READERS, ids=lambda make: make.__name__)
def test_models_that_read_weights_run(make, algorithm):
    model = make()
    options = {} if algorithm == "RTN" else {"nsamples": 3, "seqlen": 24}
    config = WeightOnlyQuantConfig(
        "int4_clip",
        algorithm=algorithm,
        algorithm_args=options,
        dataset=None if algorithm == "RTN" else [torch.randint(3, 90, (200,))],
    )
    left = passed_over(model, config)
    assert len(left) == 2 * len(READERS[make])  # of two blocks
    assert all(name.endswith(tuple(READERS[make])) for name in left)
    woq.quantize(model, config)
    assert not model.woq_report.fallbacks
    if make is jamba:
        assert any(name.endswith("mamba.dt_proj") for name in quantized(model))
    with torch.no_grad():
        assert model(torch.arange(3, 12)[None]).logits.isfinite().all()


def test_the_mark_of_a_quantized_model_is_taken_off_a_float_one():
    model = jamba()
    woq.collect_imatrix(model, [torch.randint(3, 90, (200,))], nsamples=2, seqlen=24)
    assert not hasattr(model.config, "_is_quantized")


def test_the_table_is_of_what_transformers_has():
    """Each class of the table that this transformers has reads the weights that the table says."""
    import transformers

    found = {}
    for path in Path(transformers.__file__).parent.glob("models/*/modeling_*.py"):
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r"^class (\w+)\(", text, re.MULTILINE):
            if name in bypassed._READ:
                found.setdefault(name, []).append(text)
    assert found.keys() >= {"MambaMixer", "RwkvSelfAttention", "TDNNLayer", "WavLMAttention"}
    for name, texts in found.items():
        for text in texts:
            for child in bypassed._READ[name]:
                assert re.search(rf"\.{child}\.weight\b", text), f"{name}.{child}"


class Reads(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(16, 16)

    def forward(self, x):
        return torch.cat([x @ self.inner.weight.t(), x])


def test_others_are_named():
    model = woq.quantize(nn.Sequential(nn.Linear(16, 16), Reads()), CONFIG)
    expected = r"t was called on the weight of 1\.inner, .*'inner' in modules_to_not_convert"
    with pytest.raises(Unsupported, match=expected):
        model(torch.ones(2, 16))
    model = nn.Sequential(nn.Linear(16, 16), Reads())
    skipping = WeightOnlyQuantConfig("int8", group_size=16, modules_to_not_convert=["inner"])
    woq.quantize(model, skipping)(torch.ones(2, 16))
    with pytest.raises(Unsupported, match=r"cat was called on the weight of 0,"):
        torch.cat([model[0].weight, model[0].weight])


# -- adapters -------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["RTN", "GPTQ"])
def test_adapters_stay(algorithm):
    peft = pytest.importorskip("peft")
    base = llama()
    settings = peft.LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["down_proj"]
    )
    model = peft.get_peft_model(base, settings)
    trained = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    config = WeightOnlyQuantConfig(
        "nf4",
        algorithm=algorithm,
        algorithm_args={} if algorithm == "RTN" else {"nsamples": 4, "seqlen": 16},
        dataset=None if algorithm == "RTN" else [torch.randint(0, 128, (200,))],
    )
    woq.quantize(model, config)
    kept = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert kept.keys() == trained.keys()
    assert all(torch.equal(kept[name], trained[name]) for name in kept)
    names = quantized(model)
    assert len(names) == 14  # each layer once: its base, or what an adapter takes the place of
    assert sum(name.endswith(".base_layer") for name in names) == 4
    assert sum(name.endswith(".original_module") for name in names) == 2
