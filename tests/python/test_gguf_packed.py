# SPDX-License-Identifier: Apache-2.0
"""GGUF files that run packed: small models of every known architecture, SmolLM2's file and
Gemma's."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from gguf_support import MODELS, build, gemma_file, gguf, smollm2_file, write
from model_support import last_json, logits, run_python
from torch import nn
from transformers import AutoModelForCausalLM

import woq
from woq import InvalidArgument, WeightOnlyEmbedding, WeightOnlyLinear
from woq.core import native
from woq.formats.gguf_models import plan_of

MIB = 1 << 20


def load(path: Path, **keywords: object):
    return woq.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, **keywords)


@pytest.mark.parametrize("kind", MODELS)
def test_architectures(kind: str, tmp_path: Path) -> None:
    model = build(kind)
    write(model, tmp_path / "x.gguf", kind)
    packed = load(tmp_path / "x.gguf")
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            other = packed.get_submodule(name)
            assert isinstance(other, WeightOnlyLinear | WeightOnlyEmbedding), name
            assert torch.equal(other.dequantize(), module.weight), name
    # Only sums are in another order: 1e-5 is about 100 units in the last place of logits near 1.
    expected = logits(model)
    assert torch.allclose(logits(packed), expected, rtol=1e-5, atol=1e-5 * expected.abs().max())
    assert packed.config.eos_token_id == 2
    # float32 keeps 7 digits of theta and the factors.
    rope = packed.config.rope_parameters
    if kind.startswith("llama"):
        assert rope == pytest.approx(model.config.rope_parameters)
    else:
        assert rope == model.config.rope_parameters
    if model.config.tie_word_embeddings:
        assert packed.model.embed_tokens.layer is packed.lm_head
    # It is one of woq's models: saved and read as such.
    woq.save_pretrained(packed, tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(again), logits(packed))
    base = woq.AutoModel.from_pretrained(tmp_path, gguf_file="x.gguf")
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(base(ids).last_hidden_state, packed.model(ids).last_hidden_state)


KINDS = """Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS MXFP4 NVFP4 TQ1_0
    TQ2_0""".split()


@pytest.mark.parametrize("quantized", KINDS)
def test_types(quantized: str, tmp_path: Path) -> None:
    model = build("llama_256")
    write(model, tmp_path / "x.gguf", "llama", quantized)
    packed = load(tmp_path / "x.gguf")
    expected = logits(model)
    assert torch.allclose(logits(packed), expected, rtol=1e-5, atol=1e-5 * expected.abs().max())
    woq.save_pretrained(packed, tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            for other in (packed, again):
                assert torch.equal(other.get_submodule(name).dequantize(), module.weight), name
    assert torch.equal(logits(again), logits(packed))


def test_itrex_spelling_and_requantization(tmp_path: Path) -> None:
    write(build("llama"), tmp_path / "x.gguf", "llama")
    packed = woq.AutoModelForCausalLM.from_pretrained(tmp_path, model_file="x.gguf")
    assert packed.model.layers[0].mlp.up_proj.scheme.dtype == "int8"
    again = load(tmp_path / "x.gguf", quantization_config=woq.WeightOnlyQuantConfig("nf4"))
    assert again.model.layers[0].mlp.up_proj.scheme.dtype == "nf4"
    fast = load(
        tmp_path / "x.gguf", quantization_config=woq.WeightOnlyQuantConfig(compute_dtype="int8")
    )
    assert fast.lm_head.computes_in == "int8"
    assert fast.lm_head.quantized().tensors()["qweight"].tobytes() == (
        packed.lm_head.quantized().tensors()["qweight"].tobytes()
    )
    half = load(tmp_path / "x.gguf", dtype=torch.bfloat16)
    assert half.model.embed_tokens(torch.tensor([1])).dtype == torch.bfloat16
    with pytest.raises(woq.Unsupported, match="CPU"):
        load(tmp_path / "x.gguf", device_map="cuda")


def test_what_is_not_known_goes_the_old_way(tmp_path: Path, caplog) -> None:
    write(build("llama"), tmp_path / "x.gguf", "llama", **{"rope.scaling.attn_factor": 8})
    with caplog.at_level(logging.WARNING, "woq"):
        model = load(tmp_path / "x.gguf")
    assert "not run packed: it sets rope.scaling.attn_factor" in caplog.text
    assert type(model.lm_head) is nn.Linear
    # A config has its whole meaning there, as for any float model.
    config = woq.WeightOnlyQuantConfig(compute_dtype="int8")
    model = load(tmp_path / "x.gguf", quantization_config=config)
    assert model.model.layers[0].mlp.up_proj.scheme.dtype == config.weight_dtype


def test_the_reason_for_another_architecture(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(str(tmp_path / "x.gguf"), "gpt2")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    known = r"its architecture is 'gpt2'; woq's own reader knows llama, qwen2, qwen3, gemma3"
    with pytest.raises(woq.Unsupported, match=known):
        plan_of(native.GgufModel(str(tmp_path / "x.gguf")))


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = build("llama")
    model.model.layers[1].mlp.up_proj.weight = nn.Parameter(torch.randn(64, 64))
    write(model, tmp_path / "shape.gguf", "llama")
    with pytest.raises(
        InvalidArgument, match=r"layers\.1\.mlp\.up_proj, blk\.1\.ffn_up\.weight.*64"
    ):
        load(tmp_path / "shape.gguf")
    model = build("llama")
    del model.model.layers[1].input_layernorm
    write(model, tmp_path / "missing.gguf", "llama")
    with pytest.raises(InvalidArgument, match=r"lacks.*layers\.1\.input_layernorm\.weight"):
        load(tmp_path / "missing.gguf")


@pytest.fixture(scope="module")
def smollm2() -> Path:
    return smollm2_file()


def test_every_tensor_of_smollm2(smollm2: Path) -> None:
    tensors = native.GgufModel(str(smollm2)).tensors
    matrices = 0
    for name, (kind, shape, data) in tensors.items():
        if not native.is_gguf_matrix(kind):
            continue
        matrices += 1
        expected = gguf.quants.dequantize(
            data.reshape(shape[0], -1), gguf.GGMLQuantizationType[kind]
        )
        found = native.read_gguf_matrix(kind, data, *shape).dequantize()
        assert found.tobytes() == expected.tobytes(), name
    assert matrices == 30 * 7 + 1


MEASURE = """
import json, torch
import woq, woq.hf.gguf
from transformers import LlamaConfig, LlamaForCausalLM

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))

LlamaForCausalLM(LlamaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=32))  # imports
before = anonymous()
model = woq.AutoModelForCausalLM.from_pretrained({folder!r}, gguf_file={name!r})
after = anonymous()
ids = torch.arange(5, 60)[None]
with torch.no_grad():
    found = model(ids).logits
    expected = model.dequantize()(ids).logits
print(json.dumps([after - before, (found - expected).abs().max().item(),
                  expected.abs().max().item()]))
"""


def test_memory_and_logits_of_smollm2(smollm2: Path) -> None:
    code = MEASURE.format(folder=str(smollm2.parent), name=smollm2.name)
    grown, difference, largest = last_json(run_python(code))
    size = smollm2.stat().st_size
    tensors = native.GgufModel(str(smollm2)).tensors.values()
    limit = 1.15 * size + max(data.nbytes for _, _, data in tensors)
    assert grown <= limit, f"{grown / MIB:.0f} MiB, allowed {limit / MIB:.0f}"
    # Sums of 576 and 1536 products in another order, through 30 blocks: rounding errors of 2^-24
    # grow with the root of the number of terms (40) and of blocks (5.5), and by what norms and
    # softmax pass on, here a factor of 10 at most.
    assert difference <= largest * 2**-24 * 40 * 5.5 * 10


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gemma_file(tmp_path_factory.mktemp("gemma"))


@pytest.mark.slow
def test_gemma_in_q4_k_m(gemma: Path) -> None:
    kinds = set()
    for name, (kind, shape, data) in native.GgufModel(str(gemma)).tensors.items():
        if native.is_gguf_matrix(kind):
            kinds.add(kind)
            expected = gguf.quants.dequantize(
                data.reshape(shape[0], -1), gguf.GGMLQuantizationType[kind]
            )
            found = native.read_gguf_matrix(kind, data, *shape).dequantize()
            assert found.tobytes() == expected.tobytes(), name
    assert kinds == {"Q8_0", "Q5_0", "Q4_K", "Q6_K"}
    code = MEASURE.format(folder=str(gemma.parent), name=gemma.name)
    grown, difference, largest = last_json(run_python(code))
    limit = 1.15 * gemma.stat().st_size + 180 * 10**6  # the embedding, in Q8_0
    assert grown <= limit, f"{grown / MIB:.0f} MiB, allowed {limit / MIB:.0f}"
    # As for SmolLM2: 2,048 terms, 18 blocks.
    assert difference <= largest * 2**-24 * 45 * 4.3 * 10
