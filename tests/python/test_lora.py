# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters beside quantized layers, by peft as it is: train, save, load, go on, merge."""

from __future__ import annotations

import copy

import pytest
import torch
from model_support import gpt2, llama, logits, seed, t5

pytest.importorskip("peft")

from peft import (
    AdaLoraConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    VeraConfig,
    get_peft_model,
    prepare_model_for_kbit_training,
)
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import woq
from woq import InvalidArgument, Unsupported, WeightOnlyLinear, WeightOnlyQuantConfig
from woq.demo import DemoError, find_smollm2

NAMES = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"], "t5": ["q", "wo"]}
MODELS = {"llama": llama, "gpt2": gpt2, "t5": t5}


@pytest.fixture(autouse=True)
def _seed(request):
    seed(request)


def quantized(kind="llama", **settings):
    return woq.quantize(MODELS[kind](), WeightOnlyQuantConfig("nf4", **settings))


def with_lora(model, targets="all-linear", **settings):
    return get_peft_model(model, LoraConfig(r=4, target_modules=targets, **settings))


def adapter(model):
    return {name: p.detach() for name, p in model.named_parameters() if "lora_" in name}


def scramble(model):
    """Adapters do nothing at first: their second matrix is zero."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)


def loss_of(model, ids):
    arguments = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    return model(input_ids=ids, labels=ids, **arguments).loss


def train(model, optimizer, batches):
    losses = []
    for ids in batches:
        loss = loss_of(model, ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("targets", ["all-linear", "names"])
@pytest.mark.parametrize("kind", MODELS)
def test_gradients_are_those_of_the_dequantized_model(kind, targets):
    base = quantized(kind)
    before = logits(base)
    layers = {name for name, m in base.named_modules() if isinstance(m, WeightOnlyLinear)}
    if targets == "names":
        layers = {name for name in layers if name.rpartition(".")[2] in NAMES[kind]}
    model = with_lora(
        prepare_model_for_kbit_training(base), targets if targets == "all-linear" else NAMES[kind]
    )
    wrapped = {
        name.removeprefix("base_model.model.").removesuffix(".base_layer")
        for name, module in model.named_modules()
        if isinstance(module, WeightOnlyLinear) and name.endswith(".base_layer")
    }
    assert wrapped == layers
    assert all(("lora_" in name) == p.requires_grad for name, p in model.named_parameters())
    assert torch.equal(logits(model), before)
    scramble(model)
    other = copy.deepcopy(model)
    other.base_model.model.dequantize()
    assert not any(isinstance(module, WeightOnlyLinear) for module in other.modules())
    ids = torch.randint(3, 128, (2, 8))
    for each in (model, other):
        loss_of(each, ids).backward()
    grads = [dict(each.named_parameters()) for each in (model, other)]
    for name in adapter(model):
        ours, theirs = (parameters[name].grad for parameters in grads)
        assert theirs.norm() > 0
        # fp32 sums in another order, through a few layers.
        assert (ours - theirs).norm() < 1e-3 * theirs.norm(), name


def test_gradient_checkpointing_changes_nothing():
    model = with_lora(quantized())
    scramble(model)
    other = copy.deepcopy(model)
    other.base_model.model.gradient_checkpointing_enable()
    ids = torch.randint(3, 128, (2, 8))
    for each in (model, other):
        each.train()
        loss_of(each, ids).backward()
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert (one.grad is None) == (two.grad is None)
        assert one.grad is None or torch.equal(one.grad, two.grad)


def test_disabled_adapters_give_the_base_model():
    base = quantized()
    expected = logits(base)
    model = with_lora(base)
    scramble(model)
    assert not torch.equal(logits(model), expected)
    with model.disable_adapter():
        assert torch.equal(logits(model), expected)
    assert torch.equal(logits(model.unload()), expected)


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("kind", MODELS)
def test_merging(kind, safe, tmp_path):
    base = quantized(kind)
    model = with_lora(base, NAMES[kind])
    scramble(model)
    expected = logits(model)
    # Into codes nothing can be added; nothing has changed when that is said.
    with pytest.raises(Unsupported, match=r"as merging an adapter does, call model.dequantize\(\)"):
        model.merge_adapter(safe_merge=safe)
    assert torch.equal(logits(model), expected)
    model.dequantize()
    merged = model.merge_and_unload(safe_merge=safe)
    # GPT-2's layers are Conv1D again, with weights the other way round, two of them square.
    fresh = dict(MODELS[kind]().named_modules())
    for name, module in merged.named_modules():
        assert type(module) is type(fresh[name])
    # The same weights in fp32, summed in another order.
    assert (logits(merged) - expected).abs().max() < 1e-3 * expected.abs().max()
    again = woq.quantize(merged, WeightOnlyQuantConfig("int8"))
    woq.save_pretrained(again, tmp_path / "merged")
    loaded = type(again).from_pretrained(tmp_path / "merged")
    assert torch.equal(logits(loaded), logits(again))


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(target_modules=["q_proj"], use_rslora=True),
        AdaLoraConfig(target_modules=["q_proj"], total_step=10),
        IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
        LoHaConfig(target_modules=["q_proj"]),
        LoKrConfig(target_modules=["q_proj"]),
        OFTConfig(target_modules=["q_proj"], oft_block_size=8),
        VeraConfig(target_modules=["q_proj"]),
    ],
    ids=["rslora", "adalora", "ia3", "loha", "lokr", "oft", "vera"],
)
def test_other_methods_train(config):
    model = get_peft_model(quantized(), config)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    batch = torch.randint(3, 128, (2, 12))
    losses = train(model, torch.optim.AdamW(trained, lr=2e-2), [batch] * 4)
    assert losses[-1] < losses[0]


def test_trainer(tmp_path):
    model = with_lora(quantized())
    samples = [{"input_ids": ids, "labels": ids} for ids in torch.randint(3, 128, (4, 12))]
    settings = TrainingArguments(
        tmp_path, max_steps=3, per_device_train_batch_size=2, report_to=[], use_cpu=True
    )
    before = {name: value.clone() for name, value in adapter(model).items()}
    Trainer(model, settings, train_dataset=samples).train()
    assert any(not torch.equal(before[name], value) for name, value in adapter(model).items())
    saved = PeftModel.from_pretrained(quantized(), tmp_path / "checkpoint-3")
    assert all(torch.equal(adapter(saved)[name], value) for name, value in adapter(model).items())


@pytest.mark.parametrize(
    "settings",
    [{"use_dora": True}, {"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"}],
)
def test_methods_that_compute_with_the_weight_are_refused(settings):
    with pytest.raises(Unsupported, match="packed only"):
        with_lora(quantized(), **settings)


def test_saving_the_base_with_adapters_is_refused(tmp_path):
    base = quantized()
    model = with_lora(base)
    for each in (model, model.base_model.model):
        with pytest.raises(InvalidArgument, match="adapters are attached"):
            woq.save_pretrained(each, tmp_path / "base")
    woq.save_pretrained(model.unload(), tmp_path / "base")
    assert torch.equal(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "base")), logits(base)
    )


def test_transformers_own_adapters(tmp_path):
    """add_adapter and load_adapter, without a PeftModel; and a folder that names its base model."""
    woq.save_pretrained(quantized(), tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    base.add_adapter(LoraConfig(r=4, target_modules=["q_proj"]))
    scramble(base)
    base.save_pretrained(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    other = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    other.load_adapter(tmp_path / "adapter")
    assert torch.equal(logits(other), logits(base))
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(whole), logits(base))


def continued(folder, base, batches):
    """Train, save, load into the base model read again, and train on, beside one that just goes on.

    Returns the losses of both after the break.
    """
    half = len(batches) // 2
    model = with_lora(prepare_model_for_kbit_training(base), ["q_proj", "v_proj"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    first = train(model, optimizer, batches[:half])
    model.save_pretrained(folder / "adapter")
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    rest = train(model, optimizer, batches[half:])

    other = PeftModel.from_pretrained(
        prepare_model_for_kbit_training(AutoModelForCausalLM.from_pretrained(folder / "base")),
        folder / "adapter",
        is_trainable=True,
    )
    optimizer = torch.optim.AdamW(other.parameters(), lr=2e-3)
    optimizer.load_state_dict(torch.load(folder / "optimizer.pt"))
    assert train(other, optimizer, batches[half:]) == rest
    mine, theirs = adapter(model), adapter(other)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    return first, rest


@pytest.mark.parametrize("compute_dtype", ["fp32", "int8"])
def test_training_goes_on_after_loading(compute_dtype, tmp_path):
    base = quantized(compute_dtype=compute_dtype)
    woq.save_pretrained(base, tmp_path / "base")
    batch = torch.randint(3, 128, (2, 12))
    first, rest = continued(tmp_path, base, [batch] * 12)
    assert rest[-1] < first[0]


# peft's, which looks for the base model's config to learn whether its vocabulary has grown.
@pytest.mark.filterwarnings("ignore:Could not find a config file in")
def test_smollm2_learns_a_sentence(tmp_path):
    try:
        gguf = find_smollm2()
    except DemoError as error:
        pytest.skip(str(error))
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    base = woq.AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=WeightOnlyQuantConfig("nf4", compute_dtype="int8"),
    )
    woq.save_pretrained(base, tmp_path / "base")
    ids = tokenizer("Seventeen quiet otters repaired the old lighthouse.", return_tensors="pt")
    first, rest = continued(tmp_path, base, [ids["input_ids"]] * 4)
    assert rest[-1] < first[0] - 0.2
