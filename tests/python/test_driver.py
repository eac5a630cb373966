# SPDX-License-Identifier: Apache-2.0
"""Calibration block by block: which blocks, on what inputs, resumed, interrupted, never reached."""

from __future__ import annotations

import copy
import errno
import json
import logging
import os

import pytest
import torch
from model_support import gpt2, llama, logits, mixtral, seed, t5
from torch import nn

pytest.importorskip("transformers")

from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

import woq
from woq import (
    AutoRoundConfig,
    InvalidArgument,
    Unsupported,
    WeightOnlyLinear,
    WeightOnlyQuantConfig,
)
from woq.algorithms import autoround
from woq.algorithms.rtn import round_to_nearest
from woq.algorithms.shared.finished import Finished
from woq.core import native
from woq.hf.quantizer import WoqHfQuantizer
from woq.modules.targets import select
from woq.observe import walk
from woq.observe.activations import Activations
from woq.observe.block import for_calibration, product_dtype
from woq.observe.recorder import capture, segments
from woq.quantizing.work_dir import WorkDir

DATA = torch.randint(0, 128, (24, 16), generator=torch.Generator().manual_seed(5))
MODELS = {"llama": llama, "gpt2": gpt2, "t5": t5, "mixtral": mixtral}


@pytest.fixture(autouse=True)
def _seed(request):
    seed(request)


def config(**fields):
    settings = {"dataset": DATA, "nsamples": 10, "seqlen": 16, "batch_size": 4, "iters": 3}
    return AutoRoundConfig(**{**settings, "group_size": 16, "lr": 0.02, **fields})


def layers(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, WeightOnlyLinear)}


def weights(model):
    return {name: layer.dequantize() for name, layer in layers(model).items()}


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def bert():
    from transformers import BertConfig, BertForMaskedLM

    settings = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2}
    settings |= {"num_attention_heads": 2, "intermediate_size": 48}
    return BertForMaskedLM(BertConfig(**settings)).eval()


def gemma():
    """Two kinds of attention: masks and position embeddings differ from block to block."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    return Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=128,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            sliding_window=4,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            max_position_embeddings=64,
        )
    ).eval()


# -- blocks ---------------------------------------------------------------------------------------

BLOCKS = {
    "llama": (llama, [["model.layers.0", "model.layers.1"]]),
    "gpt2": (gpt2, [["transformer.h.0", "transformer.h.1"]]),
    "t5": (t5, [["encoder.block.0", "encoder.block.1"], ["decoder.block.0", "decoder.block.1"]]),
    "bert": (bert, [["bert.encoder.layer.0", "bert.encoder.layer.1"]]),
    "gemma": (gemma, [["model.layers.0", "model.layers.1", "model.layers.2"]]),
}


def batch_for(model):
    batch = {"input_ids": DATA[:4]}
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = DATA[4:8, :9]
    return batch


@pytest.mark.parametrize(("make", "expected"), BLOCKS.values(), ids=BLOCKS)
def test_blocks_are_found(make, expected):
    model = make()
    targets = select(model, WeightOnlyQuantConfig())
    with for_calibration(model):
        found = segments(model, batch_for(model), targets)
    assert [[name for name, _ in segment.blocks] for segment in found] == expected


@pytest.mark.parametrize(("make", "expected"), BLOCKS.values(), ids=BLOCKS)
def test_replay_is_the_model(make, expected):
    """Blocks called on their own give what they give inside the model."""
    model = make()
    targets = select(model, WeightOnlyQuantConfig())
    batches = [batch_for(model), {k: v.flip(0) for k, v in batch_for(model).items()}]
    batches.append({k: (v + 1) % 128 for k, v in batches[0].items()})
    outputs: dict[str, list[torch.Tensor]] = {}
    with for_calibration(model), torch.no_grad():
        for segment in segments(model, batches[0], targets):
            handles = []
            for name, block in segment.blocks:
                collected = outputs.setdefault(name, [])

                def keep(module, args, out, collected=collected):
                    collected.append((out if torch.is_tensor(out) else out[0]).clone())

                handles.append(block.register_forward_hook(keep))
            for batch in batches:
                model(**batch)
            for handle in handles:
                handle.remove()
            calls, hidden = capture(model, batches, segment, 1 << 30)
            for name, block in segment.blocks:
                for index, call in enumerate(calls[name]):
                    args, kwargs = call.arguments(hidden[index])
                    out = block(*args, **kwargs)
                    hidden.replace(index, out if torch.is_tensor(out) else out[0])
                    torch.testing.assert_close(hidden[index], outputs[name][index])


def test_equal_arguments_are_kept_once():
    model = llama()
    targets = select(model, WeightOnlyQuantConfig())
    runs = []
    handle = model.model.layers[1].register_forward_hook(lambda *args: runs.append(1))
    with for_calibration(model):
        (segment,) = segments(model, {"input_ids": DATA[:1]}, targets)
        runs.clear()
        batches = [{"input_ids": DATA[:22][i : i + 4]} for i in range(0, 22, 4)]
        calls, inputs = capture(model, batches, segment, 1 << 30)
    handle.remove()
    assert len(inputs) == len(calls["model.layers.1"]) == 6
    first, *_, last = calls["model.layers.0"]
    assert first.kwargs["position_embeddings"][0] is last.kwargs["position_embeddings"][0]
    # Two whole batches, and the last one, which is smaller.
    assert len(runs) == 3


def test_for_calibration_restores_everything():
    model = llama()
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    grads = [parameter.requires_grad for parameter in model.parameters()]
    with for_calibration(model):
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert not model.config.use_cache
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == grads
    assert model.config.use_cache


# -- activations ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_activations_in_a_file(tmp_path, monkeypatch, dtype):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    values = [torch.randn(3, 5).to(dtype) for _ in range(4)]
    store = Activations(2 * values[0].numel() * values[0].element_size())
    for value in values:
        store.append(value)
    assert store.offloaded
    assert len(list(tmp_path.rglob("woq-activations-*/*"))) == 2
    assert all(torch.equal(store[i], value) for i, value in enumerate(values))
    copied = store.copy()
    for i in range(4):
        store.replace(i, values[i] * 2)
    assert all(torch.equal(store[i], value * 2) for i, value in enumerate(values))
    assert all(torch.equal(copied[i], value) for i, value in enumerate(values))
    store.close()
    copied.close()
    assert not list(tmp_path.iterdir())


def test_offloading_makes_no_difference(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = llama()
    one = weights(woq.quantize(copy.deepcopy(model), config()))
    other = weights(woq.quantize(model, config(activation_memory=1)))
    assert same(one, other)
    assert not list(tmp_path.glob("woq-activations-*"))


@pytest.mark.parametrize("fitting", [0, 1, 3, 4], ids="file{}".format)
def test_a_full_disk_leaves_no_files(tmp_path, monkeypatch, fitting):
    """Three batches: the first three files are the inputs, the next three their references."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    real, made = torch.from_file, []

    def from_file(*arguments, **keywords):
        if len(made) == fitting:
            raise OSError(errno.ENOSPC, "No space left on device")
        made.append(arguments)
        return real(*arguments, **keywords)

    monkeypatch.setattr(torch, "from_file", from_file)
    # The exception is held: with it goes what would delete the files by itself.
    with pytest.raises(OSError, match="No space left") as held:
        woq.quantize(llama(), config(activation_memory=1))
    assert not list(tmp_path.glob("woq-activations-*"))
    assert held.value.errno == errno.ENOSPC


# -- inputs of the quantized prefix ---------------------------------------------------------------


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "fp32"])
@pytest.mark.parametrize("make", [llama, gemma, t5], ids=lambda make: make.__name__)
def test_inputs_and_references(make, fast, monkeypatch):
    """The inputs are the quantized model's hidden states, the references the float model's."""
    seen = {}
    # In bfloat16, where the CPU has it, some six values are rounded to 2^-8 one after the other.
    tolerance = 6 * 2**-8 if fast else 1e-4
    if not fast:
        monkeypatch.setattr(walk, "product_dtype", lambda *_: None)

    def quantize_block(block, settings):
        assert [t.name.startswith(block.name + ".") for t in block.targets]
        seen[block.name] = (
            [block.inputs[i].clone() for i in range(len(block))],
            [block.references[i].clone() for i in range(len(block))],
        )
        for target in block.targets:
            weight = target.module.weight.detach()
            yield Finished(target, round_to_nearest(weight, settings, target))

    monkeypatch.setitem(vars(autoround.ALGORITHM), "quantize_block", quantize_block)
    model = make()
    floats = copy.deepcopy(model)
    woq.quantize(model, config(nsamples=4, batch_size=4))
    options = config(nsamples=4, batch_size=4).algorithm_args
    from woq.observe.samples import calibration_batches

    (batch,) = calibration_batches(floats, DATA, None, options)
    apart = []
    for each, place in ((floats, 1), (model, 0)):
        with torch.no_grad():
            out = each(**batch, output_hidden_states=True)
        if model.config.is_encoder_decoder:
            # The decoder's float outputs are for the quantized encoder's states.
            states = {"encoder.block": out.encoder_hidden_states}
            if place == 0:
                states["decoder.block"] = out.decoder_hidden_states
        else:
            states = {"model.layers": out.hidden_states}
        for stack, hidden in states.items():
            # The last one has been through the final norm.
            for number in range(len(hidden) - 2 + (1 - place)):
                expected = hidden[number + place]
                got = seen[f"{stack}.{number}"][place][0]
                assert (got - expected).norm() / expected.norm() < tolerance, (stack, number)
                if place == 0 and number:
                    other = seen[f"{stack}.{number - 1}"][1][0]  # the float model's
                    apart.append(float((other - expected).norm() / expected.norm()))
    # So it matters which of the two models they are of.
    assert min(apart) > 2 * tolerance


@pytest.mark.parametrize("fast", [torch.bfloat16, None])
def test_where_products_are_bfloat16(fast, monkeypatch):
    monkeypatch.setattr(native, "has_bf16_products", lambda: fast is not None)
    block = llama().model.layers[0]
    assert product_dtype(block, ["nf4"], torch.float32) == fast
    assert product_dtype(block, ["nf4", "int8"], torch.float32) is None
    # Without parameters of its own.
    assert product_dtype(nn.Identity(), ["nf4"], torch.float16) is None
    assert product_dtype(copy.deepcopy(block).half(), ["nf4"], torch.float32) is None
    quantized = woq.quantize(llama(), WeightOnlyQuantConfig(weight_dtype="int8"))
    assert product_dtype(quantized.model.layers[0], ["nf4"], torch.float32) is None


@pytest.mark.parametrize("resumed", [False, True])
def test_eight_bits_are_calibrated_in_full_precision(resumed, monkeypatch):
    """Also behind blocks that have no layer to quantize, or none left."""
    seen = []
    original = walk.product_dtype
    monkeypatch.setattr(
        walk, "product_dtype", lambda *args: seen.append(original(*args)) or seen[-1]
    )
    settings = {"algorithm": "GPTQ", "weight_dtype": "int8", "group_size": 16, "dataset": DATA}
    settings["algorithm_args"] = {"nsamples": 4, "seqlen": 16}
    model = llama()
    if resumed:
        part = WeightOnlyQuantConfig(weight_dtype="int8", group_size=16)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            layer = woq.quantize(
                nn.Sequential(getattr(model.model.layers[0].self_attn, name)), part
            )
            setattr(model.model.layers[0].self_attn, name, layer[0])
        settings["modules_to_not_convert"] = ["model.layers.0.mlp"]
    else:
        settings["modules_to_not_convert"] = ["model.layers.0"]
    woq.quantize(model, WeightOnlyQuantConfig(**settings))
    assert len(seen) >= 2
    assert set(seen) == {None}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("algorithm", ["GPTQ", "AWQ", "TEQ", "AUTOROUND"])
@pytest.mark.parametrize("make", [llama, gpt2], ids=lambda make: make.__name__)
def test_models_of_half_precision(make, algorithm, dtype):
    """float16 has no products in bfloat16: their sums are float32, which its norms don't take."""
    steps = {"iters": 2} if algorithm in ("TEQ", "AUTOROUND") else {}
    model = make(dtype=dtype)
    with torch.no_grad():
        expected = model(DATA[:2]).logits.float()
    model = woq.quantize(
        model,
        WeightOnlyQuantConfig(
            algorithm=algorithm,
            algorithm_args={"nsamples": 6, "seqlen": 16, "batch_size": 4, **steps},
            group_size=16,
            dataset=DATA,
        ),
    )
    assert model.woq_report.complete
    assert not model.woq_report.fallbacks
    with torch.no_grad():
        found = model(DATA[:2]).logits.float()
    # 4 bits in groups of 16 change weights by a tenth of their size or less, which adds up over two
    # blocks; a layer whose weights are scrambled would change the output by its own size.
    assert 0 < (found - expected).norm() < 0.5 * expected.norm()


@pytest.mark.parametrize("kind", [*MODELS, "bert", "gemma"])
def test_any_architecture(kind):
    model = {**MODELS, "bert": bert, "gemma": gemma}[kind]()
    expected = {t.name for t in select(model, WeightOnlyQuantConfig())}
    woq.quantize(model, config())
    assert layers(model).keys() == expected
    assert model.woq_report.complete
    tuned = [layer for layer in model.woq_report.layers if layer.loss is not None]
    assert len(tuned) >= 0.8 * len(expected)
    if kind != "bert":
        assert logits(model).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16], ids=str)
def test_half_precision(dtype):
    model = woq.quantize(llama(dtype=dtype), config())
    assert logits(model).dtype == dtype
    assert all(layer.loss < layer.start_loss * 1.001 for layer in model.woq_report.layers)


def test_inside_no_grad_and_training():
    model = llama()
    torch.manual_seed(0)
    expected = weights(woq.quantize(copy.deepcopy(model), config()))
    model.train()
    with torch.inference_mode():
        woq.quantize(model, config())
    assert same(weights(model), expected)
    assert model.training
    assert model.config.use_cache


def test_shared_inputs_are_seen():
    model = llama()
    targets = select(model, WeightOnlyQuantConfig())
    found = []

    def quantize_block(block, settings):
        found.append([[t.name.rpartition(".")[2] for t in group] for group in block.groups()])
        for target in block.targets:
            weight = target.module.weight.detach()
            yield Finished(target, round_to_nearest(weight, settings, target))

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vars(autoround.ALGORITHM), "quantize_block", quantize_block)
        woq.quantize(model, config())
    assert len(targets) == 14
    assert (
        found
        == [[["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]]
        * 2
    )


# -- layers that are not reached ------------------------------------------------------------------


class Experts(nn.Module):
    """Two experts; no token goes to the second one."""

    def __init__(self, size):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(size, size) for _ in range(2))

    def forward(self, x):
        return self.experts[0](x)


def test_a_layer_that_no_token_reaches(caplog):
    model = llama()
    model.model.layers[1].mlp = Experts(64)
    idle = model.model.layers[1].mlp.experts[1].weight.detach().clone()
    with caplog.at_level(logging.WARNING, "woq"):
        woq.quantize(model, config())
    name = "model.layers.1.mlp.experts.1"
    entries = {layer.name: layer for layer in model.woq_report.layers}
    assert entries[name].algorithm == "RTN"
    assert entries[name].note == "no calibration token reached it"
    assert entries["model.layers.1.mlp.experts.0"].loss is not None
    assert model.woq_report.fallbacks == [entries[name]]
    assert name in caplog.text
    assert f"{name}: RTN, because no calibration token reached it" in str(model.woq_report)
    plain = woq.quantize_rtn(idle, dtype="int4_clip", group_size=16, mse_range=True)
    plain = plain.dequantize()
    assert torch.equal(layers(model)[name].dequantize(), torch.from_numpy(plain))


def test_the_head_is_rounded_to_nearest():
    model = woq.quantize(llama(), config(quantize_lm_head="int8"))
    entries = {layer.name: layer for layer in model.woq_report.layers}
    assert entries["lm_head"].algorithm == "RTN"
    assert "outside of the blocks" in entries["lm_head"].note
    assert layers(model)["lm_head"].scheme["dtype"] == "int8"


def test_a_model_without_blocks():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(128, 16)
            self.linear = nn.Linear(16, 16)

        def forward(self, input_ids):
            return self.linear(self.embedding(input_ids))

    model = woq.quantize(Flat(), config())
    assert [layer.algorithm for layer in model.woq_report.layers] == ["RTN"]


def test_inputs_that_are_all_zero():
    model = llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.zero_()
    woq.quantize(model, config())
    assert logits(model).isfinite().all()


# -- errors ---------------------------------------------------------------------------------------


def test_nan_in_a_weight_is_found_before_any_work():
    model = llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[7, 33] = float("nan")
    with pytest.raises(InvalidArgument, match=r"layers\.1\.mlp\.up_proj.*nan at row 7, column 33"):
        woq.quantize(model, config())
    assert not layers(model)


def test_nan_in_the_activations():
    model = llama()
    with torch.no_grad():
        model.model.embed_tokens.weight[DATA[0, 0]] = float("inf")
    with pytest.raises(InvalidArgument, match=r"input of model\.layers\.0 has NaN or infinite"):
        woq.quantize(model, config(nsamples=24))
    model = llama()
    with torch.no_grad():
        model.model.layers[0].post_attention_layernorm.weight[3] = float("nan")
    with pytest.raises(InvalidArgument, match=r"output of model\.layers\.0 has NaN"):
        woq.quantize(model, config())
    assert not layers(model)


def test_empty_data_leaves_the_model_alone():
    model = llama()
    with pytest.raises(InvalidArgument, match="empty"):
        woq.quantize(model, config(dataset=[]))
    assert not layers(model)
    assert not model.woq_report.complete


# -- interruption ---------------------------------------------------------------------------------


class Counter:
    """Counts the blocks that are tuned, and interrupts in the middle of one of them."""

    def __init__(self, monkeypatch, stop=None, after=0):
        self.names = []
        real = autoround.quantize_block

        def quantize_block(block, settings):
            self.names.append(block.name)
            for number, finished in enumerate(real(block, settings)):
                if len(self.names) == stop and number == after:
                    raise KeyboardInterrupt
                yield finished

        monkeypatch.setitem(vars(autoround.ALGORITHM), "quantize_block", quantize_block)


def test_ctrl_c_and_a_second_call(monkeypatch):
    model = llama()
    whole = logits(woq.quantize(copy.deepcopy(model), config(iters=0)))
    with monkeypatch.context() as patch:
        Counter(patch, stop=2, after=3)
        with pytest.raises(KeyboardInterrupt):
            woq.quantize(model, config(iters=0))
    assert len(layers(model)) == 7 + 3
    assert not model.woq_report.complete
    assert logits(model).isfinite().all()
    assert all(parameter.requires_grad for parameter in model.parameters())
    woq.quantize(model, config(iters=0))
    assert model.woq_report.complete
    assert torch.equal(logits(model), whole)


@pytest.mark.parametrize("after", [0, 3])
def test_a_run_goes_on_from_its_work_dir(tmp_path, monkeypatch, after, caplog):
    """In another process (here: another copy of the float model). A block that was under way is
    done again as a whole: else its other layers would be tuned beside fixed ones."""
    model = llama()
    third = copy.deepcopy(model)
    whole = weights(woq.quantize(copy.deepcopy(model), config()))
    settings = {"work_dir": tmp_path / "work"}
    with monkeypatch.context() as patch:
        Counter(patch, stop=2, after=after)
        with pytest.raises(KeyboardInterrupt):
            woq.quantize(copy.deepcopy(model), config(**settings))
    files = {path.stem for path in (tmp_path / "work").glob("*.safetensors")}
    assert len(files) == 7 + after
    counter = Counter(monkeypatch)
    with caplog.at_level(logging.INFO, "woq"):
        woq.quantize(model, config(**settings))
    assert f"has {7 + after} finished layers" in caplog.text
    assert counter.names == ["model.layers.1"]
    assert model.woq_report.complete
    got = weights(model)
    assert same(got, whole)
    entries = {layer.name: layer for layer in model.woq_report.layers}
    assert all(entries[name].loss is not None for name in files)

    # Everything is there now: nothing is tuned a third time.
    counter.names.clear()
    woq.quantize(third, config(**settings))
    assert counter.names == []
    assert same(weights(third), got)


@pytest.mark.parametrize("algorithm", ["GPTQ", "AWQ", "AUTOROUND"])
def test_a_full_disk_and_a_second_run(algorithm, tmp_path, monkeypatch):
    """The layers of the block that were stored before the disk was full are done again."""
    model = llama()
    second = copy.deepcopy(model)
    settings = {"algorithm": algorithm, "algorithm_args": {"nsamples": 8, "seqlen": 16}}
    settings |= {"weight_dtype": "int4_clip", "group_size": 16, "dataset": DATA}
    whole = weights(woq.quantize(copy.deepcopy(model), WeightOnlyQuantConfig(**settings)))
    save, saved = WorkDir.save, []

    def until_full(self, finished):
        if len(saved) == 7 + 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        saved.append(finished.target.name)
        save(self, finished)

    settings["work_dir"] = tmp_path / "work"
    with monkeypatch.context() as patch:
        patch.setattr(WorkDir, "save", until_full)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            woq.quantize(model, WeightOnlyQuantConfig(**settings))
    assert same(weights(woq.quantize(second, WeightOnlyQuantConfig(**settings))), whole)


def test_work_dir_of_another_run(tmp_path):
    model = llama()
    woq.quantize(copy.deepcopy(model), config(work_dir=tmp_path))
    with pytest.raises(InvalidArgument, match=r"another config \(group_size: 16, now 32\)"):
        woq.quantize(copy.deepcopy(model), config(work_dir=tmp_path, group_size=32))
    with pytest.raises(InvalidArgument, match="another calibration"):
        woq.quantize(copy.deepcopy(model), config(work_dir=tmp_path, dataset=DATA + 1 - DATA))
    with pytest.raises(InvalidArgument, match="another model"):
        woq.quantize(llama(), config(work_dir=tmp_path))
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    with pytest.raises(
        InvalidArgument, match=r"another weight than model\.layers\.0\.mlp\.up_proj"
    ):
        woq.quantize(copy.deepcopy(model), config(work_dir=tmp_path))


def test_a_damaged_file_is_done_again(tmp_path, caplog):
    model = llama()
    expected = weights(woq.quantize(copy.deepcopy(model), config(work_dir=tmp_path, iters=0)))
    damaged = sorted(tmp_path.glob("*.safetensors"))[5:8]  # of both blocks
    blocks = len({path.name.split(".")[2] for path in damaged})
    assert blocks == 2
    for path in damaged:
        path.write_bytes(path.read_bytes()[:50])
    with caplog.at_level(logging.WARNING, "woq"):
        woq.quantize(model, config(work_dir=tmp_path, iters=0))
    assert caplog.text.count("its block is done again") == blocks
    assert same(weights(model), expected)


# -- transformers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "tied", "t5"])
def test_from_pretrained_save_and_reload(kind, tmp_path):
    make = {"llama": llama, "tied": lambda: llama(tied=True), "t5": t5}[kind]
    model = make()
    auto = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    model.save_pretrained(tmp_path / "float")
    settings = config(quantize_lm_head="int8")
    loaded = auto.from_pretrained(tmp_path / "float", quantization_config=settings)
    woq.quantize(model, settings)
    assert same(weights(loaded), weights(model))
    expected = logits(loaded)
    for number, save in enumerate(
        (loaded.save_pretrained, lambda p: woq.save_pretrained(loaded, p))
    ):
        save(tmp_path / f"{number}")
        stored = json.loads((tmp_path / f"{number}" / "config.json").read_text())
        assert len(stored["quantization_config"].pop("digest")) == 64
        assert stored["quantization_config"] == settings.to_dict()
        assert stored["quantization_config"]["algorithm_args"]["iters"] == 3
        assert "dataset" not in stored["quantization_config"]
        again = auto.from_pretrained(tmp_path / f"{number}")
        assert torch.equal(logits(again), expected)
    assert loaded.config.quantization_config.dataset is None
    # What the quantizer says of the model is what the model says of itself.
    assert loaded.hf_quantizer.quantization_config is loaded.config.quantization_config


@pytest.mark.parametrize("cls", [AutoModelForCausalLM, woq.AutoModelForCausalLM])
def test_mistakes_in_the_data_show_before_weights_are_loaded(cls, tmp_path, caplog, monkeypatch):
    llama().save_pretrained(tmp_path)
    monkeypatch.setattr(
        WoqHfQuantizer, "_process_model_after_weight_loading", lambda *a, **k: pytest.fail("loaded")
    )
    for dataset, message in (
        ("nofile.txt", r"no file nofile\.txt"),
        ([], "is empty"),
        (["text"], "needs a tokenizer"),
        ("c4", r"'c4' is no file"),
    ):
        with pytest.raises((InvalidArgument, Unsupported), match=message):
            cls.from_pretrained(tmp_path, quantization_config=config(dataset=dataset))
    assert not caplog.records


def test_a_failure_after_loading_has_no_advice_for_a_model_that_is_not_there(tmp_path, caplog):
    model = llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    model.save_pretrained(tmp_path)
    with pytest.raises(InvalidArgument, match="holds nan"):
        AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config())
    assert "failed after 0 of 14 layers: there is no model." in caplog.text
    assert "Call quantize again" not in caplog.text


def test_the_tokenizer_beside_the_model(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    llama().save_pretrained(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path)
    model = woq.AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=config(dataset=["abcabcacb" * 50])
    )
    assert all(layer.loss is not None for layer in model.woq_report.layers)


def test_progress_shows_the_loss(capsys):
    pytest.importorskip("tqdm")
    woq.quantize(llama(), config(), progress=True)
    error = capsys.readouterr().err
    assert "14/14" in error
    assert "down_proj loss" in error
