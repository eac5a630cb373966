# SPDX-License-Identifier: Apache-2.0
"""woq.quantize on any torch model: what it replaces, what it reports, how it fails."""

from __future__ import annotations

import gc
import logging
import sys
import weakref

import pytest
import torch
from model_support import gpt2, llama, logits, mixtral, seed, t5
from torch import nn

import woq
from woq import InvalidArgument, Unsupported, WeightOnlyLinear, WeightOnlyQuantConfig


@pytest.fixture(autouse=True)
def _seed(request):
    seed(request)


def quantized_names(model):
    return [name for name, module in model.named_modules() if isinstance(module, WeightOnlyLinear)]


def perceptron():
    return nn.Sequential(
        nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 16, bias=False), nn.Linear(16, 4)
    )


def test_plain_torch_model():
    model = perceptron()
    x = torch.randn(5, 32)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert woq.quantize(model, WeightOnlyQuantConfig("int8", group_size=16)) is model
    assert quantized_names(model) == ["0", "2", "3"]
    for name in ("0", "2", "3"):
        matrix = woq.quantize_rtn(weights[f"{name}.weight"], dtype="int8", group_size=16)
        layer = model.get_submodule(name)
        assert torch.equal(layer.dequantize(), torch.from_numpy(matrix.dequantize()))
    assert torch.equal(model[0].bias, weights["0.bias"])
    assert model(x).shape == (5, 4)


def test_default_config():
    model = woq.quantize(perceptron())
    assert model[0].scheme["dtype"] == "int4_fullrange"


def test_report():
    model = perceptron()
    weight = model[0].weight.detach().clone()
    report = woq.quantize(model, WeightOnlyQuantConfig("nf4")).woq_report
    assert isinstance(report, woq.QuantizationReport)
    assert report.complete
    assert [layer.name for layer in report.layers] == ["0", "2", "3"]
    first = report.layers[0]
    assert (first.shape, first.weight_dtype, first.bytes_before) == ((48, 32), "nf4", 48 * 32 * 4)
    assert first.bytes_after == model[0].quantized().nbytes
    difference = (weight - model[0].dequantize()).double()
    assert first.mse == pytest.approx(float(difference.square().mean()), rel=1e-5)
    ratio = float(weight.double().square().sum() / difference.square().sum())
    assert first.sqnr_db == pytest.approx(10 * torch.tensor(ratio).log10().item(), rel=1e-5)
    assert report.quantized_parameters == 48 * 32 + 16 * 48 + 4 * 16
    assert report.total_parameters == report.quantized_parameters + 48 + 4
    assert 0.9 < report.share < 1
    assert report.worst in report.layers
    text = str(report)
    for part in ("3 layers quantized (3 x nf4)", "2,368 of 2,420", "lowest SQNR"):
        assert part in text


def test_nothing_to_quantize():
    model = woq.quantize(nn.Sequential(nn.ReLU()))
    assert "nothing was quantized" in str(model.woq_report)


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        (["model.layers.0"], {"model.layers.0"}),
        (["q_proj"], {"model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"}),
        ([r"model\.layers\.\d+\.mlp"], {"model.layers.0.mlp", "model.layers.1.mlp"}),
        # Up to a component's end: "layers.1" is not "layers.11", "mlp.gate" not "mlp.gate_proj".
        (["model.layers.1.mlp.gate"], set()),
    ],
    ids=str,
)
def test_modules_to_not_convert(patterns, left):
    from transformers.quantizers.quantizers_utils import should_convert_module

    # 5.0 took any prefix of a name for a match; woq's rule is the later one everywhere.
    if not left and not should_convert_module("mlp.gate_proj", ["mlp.gate"]):
        pytest.skip("this transformers matches differently")
    model = llama()
    linears = {n for n, m in model.named_modules() if type(m) is nn.Linear and n != "lm_head"}
    woq.quantize(model, WeightOnlyQuantConfig(modules_to_not_convert=patterns))
    done = set(quantized_names(model))
    assert done == {name for name in linears if should_convert_module(name, patterns)}
    for name in linears - done:
        assert any(name.startswith(prefix) for prefix in left), name
    assert bool(linears - done) == bool(left)


def test_output_embedding_is_left_alone():
    model = woq.quantize(llama(), WeightOnlyQuantConfig("nf4"))
    assert type(model.lm_head) is nn.Linear
    reasons = {entry.name: entry.reason for entry in model.woq_report.left}
    assert "quantize_lm_head" in reasons["lm_head.weight"]


@pytest.mark.parametrize("tied", [False, True])
def test_quantize_lm_head(tied):
    model = llama(tied=tied)
    embedding = model.model.embed_tokens.weight
    before = embedding.detach().clone()
    head = model.lm_head.weight.detach().clone()
    woq.quantize(model, WeightOnlyQuantConfig("nf4", quantize_lm_head="int8"))
    assert model.lm_head.scheme["dtype"] == "int8"
    matrix = woq.quantize_rtn(head, dtype="int8")
    assert torch.equal(model.lm_head.dequantize(), torch.from_numpy(matrix.dequantize()))
    # Untied in memory: the input side keeps its values, and stays a parameter of its own.
    assert model.model.embed_tokens.weight is embedding
    assert torch.equal(embedding, before)
    model.tie_weights()
    assert isinstance(model.lm_head, WeightOnlyLinear)
    assert "lm_head.weight" not in model.all_tied_weights_keys


def test_lm_head_true_takes_the_weight_dtype():
    model = woq.quantize(llama(), WeightOnlyQuantConfig("int4_clip", quantize_lm_head=True))
    assert model.lm_head.scheme["dtype"] == "int4_clip"


def test_tied_linears_of_a_plain_model_are_left_alone():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16))
    model[2].weight = model[0].weight
    woq.quantize(model)
    assert quantized_names(model) == ["1"]


def test_conv1d():
    model = gpt2()
    weight = model.transformer.h[0].attn.c_attn.weight.detach().clone()
    expected = logits(model)
    woq.quantize(model, WeightOnlyQuantConfig("int8", group_size=16))
    layer = model.transformer.h[0].attn.c_attn
    assert isinstance(layer, WeightOnlyLinear)
    assert layer.weight.shape == weight.shape
    matrix = woq.quantize_rtn(weight.t().contiguous(), dtype="int8", group_size=16)
    assert torch.equal(layer.dequantize(), torch.from_numpy(matrix.dequantize()))
    assert (logits(model) - expected).abs().max() < 0.05 * expected.abs().max()


def test_t5_runs_in_half_precision():
    model = t5(dtype=torch.bfloat16)
    expected = logits(model).float()
    woq.quantize(model, WeightOnlyQuantConfig("int8", quantize_lm_head=True))
    assert any(name.endswith(".wo") for name in quantized_names(model))
    result = logits(model)
    assert result.dtype == torch.bfloat16
    # lm_head stays tied in name: T5 scales its logits by what the config says.
    assert (result.float() - expected).abs().max() < 0.1 * expected.abs().max()


def test_fused_experts_are_reported(caplog):
    model = mixtral()
    experts = {name: p for name, p in model.named_parameters() if p.dim() == 3}
    assert experts
    before = {name: p.detach().clone() for name, p in experts.items()}
    with caplog.at_level(logging.WARNING, "woq"):
        woq.quantize(model)
    left = {entry.name: entry for entry in model.woq_report.left}
    for name, parameter in experts.items():
        assert "fused expert" in left[name].reason
        assert torch.equal(parameter, before[name])
    (message,) = [record.getMessage() for record in caplog.records]
    share = sum(p.numel() for p in experts.values()) / model.woq_report.total_parameters
    assert f"{100 * share:.1f} %" in message
    logits(model)


def test_attention_modules_that_read_weights_directly_are_left_alone():
    model = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    x = torch.randn(2, 5, 32)
    with torch.no_grad():
        expected = model(x)
        woq.quantize(model, WeightOnlyQuantConfig("int8"))
        assert quantized_names(model) == ["linear1", "linear2"]
        assert (model(x) - expected).abs().max() < 0.05


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_models(dtype):
    model = llama(dtype=dtype)
    expected = logits(model).float()
    woq.quantize(model, WeightOnlyQuantConfig("int8"))
    result = logits(model)
    assert result.dtype == dtype
    assert (result.float() - expected).abs().max() < 0.05 * expected.abs().max()


def test_float_weights_are_released_one_by_one(monkeypatch):
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(4)))
    weights = [weakref.ref(layer.weight) for layer in model]
    alive = []
    real = woq.core.native.quantize_rtn

    def quantize_rtn(*args, **kwargs):
        gc.collect()
        alive.append(sum(ref() is not None for ref in weights))
        return real(*args, **kwargs)

    monkeypatch.setattr("woq.core.native.quantize_rtn", quantize_rtn)
    woq.quantize(model)
    assert alive == [4, 3, 2, 1]


# -- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nan_is_named(bad, dtype):
    model = llama(dtype=dtype)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[7, 33] = bad
    with pytest.raises(InvalidArgument) as error:
        woq.quantize(model)
    for part in ("model.layers.1.mlp.up_proj", "row 7", "33"):
        assert part in str(error.value)
    assert not model.woq_report.complete


def interrupt_after(monkeypatch, count, error=KeyboardInterrupt):
    """Let woq.quantize quantize `count` layers, then be interrupted in the middle of the next."""
    real = woq.core.native.quantize_rtn
    calls = []

    def quantize_rtn(*args, **kwargs):
        calls.append(1)
        result = real(*args, **kwargs)
        if len(calls) == count + 1:
            raise error
        return result

    monkeypatch.setattr("woq.core.native.quantize_rtn", quantize_rtn)


def test_ctrl_c_leaves_a_working_model_that_can_be_finished(monkeypatch, caplog, tmp_path):
    torch.manual_seed(3)
    model = llama()
    with monkeypatch.context() as patch:
        interrupt_after(patch, 5)
        with pytest.raises(KeyboardInterrupt), caplog.at_level(logging.WARNING, "woq"):
            woq.quantize(model, WeightOnlyQuantConfig("nf4"))
    assert "interrupted after 5 of 14 layers" in caplog.text
    assert len(quantized_names(model)) == 5 == len(model.woq_report.layers)
    assert not model.woq_report.complete
    mixed = logits(model)

    # Saved as it is, it reads back as it is.
    from transformers import AutoModelForCausalLM

    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert quantized_names(again) == quantized_names(model)
    assert torch.equal(logits(again), mixed)

    woq.quantize(model, WeightOnlyQuantConfig("nf4"))
    assert model.woq_report.complete
    assert len(model.woq_report.layers) == 14
    torch.manual_seed(3)
    whole = woq.quantize(llama(), WeightOnlyQuantConfig("nf4"))
    assert torch.equal(logits(model), logits(whole))
    assert model.config.quantization_config == whole.config.quantization_config


def test_out_of_memory_is_no_different(monkeypatch):
    model = perceptron()
    interrupt_after(monkeypatch, 1, MemoryError("no memory"))
    with pytest.raises(MemoryError):
        woq.quantize(model)
    assert quantized_names(model) == ["0"]
    assert model(torch.randn(2, 32)).isfinite().all()


def test_a_second_config_does_not_mix():
    model = woq.quantize(perceptron(), WeightOnlyQuantConfig("nf4"))
    with pytest.raises(InvalidArgument, match="already quantized with other settings"):
        woq.quantize(model, WeightOnlyQuantConfig("int8"))
    woq.quantize(model, WeightOnlyQuantConfig("nf4"))


@pytest.mark.parametrize("model", [None, "gpt2", torch.zeros(3)], ids=["none", "str", "tensor"])
def test_not_a_model(model):
    with pytest.raises(InvalidArgument, match=r"torch\.nn\.Module"):
        woq.quantize(model)


@pytest.mark.parametrize("config", ["nf4", {"weight_dtype": "nf4"}, WeightOnlyQuantConfig], ids=str)
def test_not_a_config(config):
    with pytest.raises(InvalidArgument, match="WeightOnlyQuantConfig"):
        woq.quantize(perceptron(), config)


def test_config_is_validated_again():
    config = WeightOnlyQuantConfig()
    config.group_size = 33
    with pytest.raises(InvalidArgument, match="33"):
        woq.quantize(perceptron(), config)


def test_weights_elsewhere_are_refused():
    with pytest.raises(Unsupported, match=r"0\.weight is on meta"):
        woq.quantize(nn.Sequential(nn.Linear(4, 4, device="meta")))


def test_double_precision_is_refused_by_name():
    with pytest.raises(InvalidArgument, match="0"):
        woq.quantize(perceptron().double())


# -- progress -------------------------------------------------------------------------------------


def test_progress_bar(capsys):
    pytest.importorskip("tqdm")
    woq.quantize(perceptron(), progress=True)
    assert "3/3" in capsys.readouterr().err
    woq.quantize(perceptron(), progress=False)
    woq.quantize(perceptron())  # not a terminal
    assert capsys.readouterr() == ("", "")


def test_progress_without_tqdm(monkeypatch, caplog, capsys):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with caplog.at_level(logging.INFO, "woq"):
        woq.quantize(perceptron(), progress=True)
    assert "quantized 3 of 3 layers" in caplog.text
    assert capsys.readouterr() == ("", "")


def test_summary_is_logged(caplog):
    with caplog.at_level(logging.INFO, "woq"):
        model = woq.quantize(perceptron())
    assert "3 layers quantized" in caplog.text
    assert model[0].explain()["kernel"] in caplog.text
