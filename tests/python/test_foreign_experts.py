# SPDX-License-Identifier: Apache-2.0
"""Mixtures of experts: gpt-oss's MXFP4, read as transformers and numpy read it, and the layers of
each expert in other libraries' checkpoints of Mixtral and Qwen; run packed."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_support import (
    AWQ,
    COMPRESSED,
    E2M1,
    GPTQ,
    HQQ,
    awq_layer,
    compressed_layer,
    gptq_layer,
    hqq_layer,
)
from model_support import logits, mixtral
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import woq
from woq import InvalidArgument, WeightOnlyLinear
from woq.formats.foreign.methods import foreign_format
from woq.modules.experts import SplitExperts, fused_experts, linear_experts

EXPERTS, HIDDEN, INNER = 4, 64, 96
SETTINGS = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}


def mxfp4_tensors(rng: np.random.Generator, rows: int, cols: int) -> tuple[np.ndarray, np.ndarray]:
    """Random blocks and scales of all experts; every code occurs."""
    blocks = rng.integers(0, 256, (EXPERTS, rows, cols // 32, 16)).astype(np.uint8)
    scales = rng.integers(116, 124, (EXPERTS, rows, cols // 32)).astype(np.uint8)
    return blocks, scales


def weight_of(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """float32 [experts, rows, cols], by the definition of the format."""
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1)  # the even column is the low nibble
    values = E2M1[codes.reshape(*blocks.shape[:-1], 32)]
    values = values * np.exp2(scales.astype(np.float32) - 127)[..., None]
    return values.reshape(*blocks.shape[:2], -1).astype(np.float32)


def write_gpt_oss(folder: Path, shards: int = 1) -> GptOssForCausalLM:
    """A tiny gpt-oss checkpoint as OpenAI's are, and the float model that it means."""
    torch.manual_seed(0)
    config = GptOssConfig(
        vocab_size=128,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=EXPERTS,
        num_experts_per_tok=2,
        sliding_window=8,
        initializer_range=0.1,
    )
    model = GptOssForCausalLM(config).eval()
    rng = np.random.default_rng(0)
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    for i, layer in enumerate(model.model.layers):
        experts = layer.mlp.experts
        for product, rows, cols in (
            ("gate_up_proj", 2 * INNER, HIDDEN),
            ("down_proj", HIDDEN, INNER),
        ):
            blocks, scales = map(torch.from_numpy, mxfp4_tensors(rng, rows, cols))
            bias = torch.randn(EXPERTS, rows) * 0.1
            name = f"model.layers.{i}.mlp.experts.{product}"
            del tensors[name]
            tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales, f"{name}_bias": bias}
            dense = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
            getattr(experts, product).data.copy_(dense)
            getattr(experts, f"{product}_bias").data.copy_(bias)
    config.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": SETTINGS}))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return model


@pytest.fixture(scope="module")
def gpt_oss(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GptOssForCausalLM]:
    folder = tmp_path_factory.mktemp("gpt-oss")
    return folder, write_gpt_oss(folder)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    # Only sums are in another order: 1e-5 is about 100 units in the last place of logits near 1.
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max())


def test_the_codes_are_read_as_their_owners_read_them() -> None:
    rows, cols = 48, 160
    blocks, scales = mxfp4_tensors(np.random.default_rng(0), rows, cols)
    scales[0, :3] = [[0], [1], [252]]  # the ends of the range: subnormal, and 6 * 2^125
    form = foreign_format(SETTINGS)
    expected = weight_of(blocks, scales)
    theirs = convert_moe_packed_tensors(
        torch.from_numpy(blocks), torch.from_numpy(scales), dtype=torch.float32
    )
    for expert in range(EXPERTS):
        tensors = {
            "blocks": torch.from_numpy(blocks[expert]),
            "scales": torch.from_numpy(scales[expert]),
        }
        matrix, _ = form.read(tensors, rows, cols)
        found = matrix.dequantize()
        assert found.tobytes() == expected[expert].tobytes()
        # transformers' has the columns first.
        assert np.array_equal(found, theirs[expert].T.numpy())
    # It can fail: the other order of nibbles is another weight.
    swapped = {
        "blocks": tensors["blocks"] << 4 | tensors["blocks"] >> 4,
        "scales": tensors["scales"],
    }
    assert not np.array_equal(form.read(swapped, rows, cols)[0].dequantize(), found)


def test_it_runs_packed(gpt_oss, tmp_path: Path) -> None:
    folder, dense = gpt_oss
    model = woq.AutoModelForCausalLM.from_pretrained(folder)
    for layer, reference in zip(model.model.layers, dense.model.layers, strict=True):
        for product in ("gate_up_proj", "down_proj"):
            packed = getattr(layer.mlp.experts, product)
            assert len(packed) == EXPERTS
            for expert, each in enumerate(packed):
                assert isinstance(each, WeightOnlyLinear)
                weight = getattr(reference.mlp.experts, product)[expert].T
                assert torch.equal(each.dequantize(), weight)
    assert_close(logits(model), logits(dense))
    # It is one of woq's models: saved, read, dequantized, run in integers.
    for save in (model.save_pretrained, lambda path: woq.save_pretrained(model, path)):
        save(tmp_path / "saved")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
        assert torch.equal(logits(again), logits(model))
    # Without a head its modules have shorter names, those that stay floats, too.
    base = woq.AutoModel.from_pretrained(tmp_path / "saved")
    assert isinstance(base.layers[1].mlp.experts.down_proj[3], WeightOnlyLinear)
    base.save_pretrained(tmp_path / "base")
    again = woq.AutoModel.from_pretrained(tmp_path / "base")
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        expected = model.model(ids).last_hidden_state
        assert torch.equal(base(ids).last_hidden_state, expected)
        assert torch.equal(again(ids).last_hidden_state, expected)
    fast = woq.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=woq.WeightOnlyQuantConfig(compute_dtype="int8")
    )
    assert fast.model.layers[0].mlp.experts.down_proj[0].computes_in == "int8"
    expected = logits(model)
    assert (logits(fast) - expected).abs().max() < 0.1 * expected.abs().max()
    with woq.install():
        plain = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(plain), expected)
    assert_close(logits(model.dequantize()), logits(dense))


def test_rows_of_an_expert_are_together() -> None:
    """Against the fused modules of transformers, with experts that get no row."""
    torch.manual_seed(0)
    qwen2 = Qwen2MoeConfig(
        hidden_size=32, moe_intermediate_size=48, num_experts=4, num_hidden_layers=1
    )
    for fused in (
        mixtral().model.layers[0].mlp.experts,
        qwen3_moe().model.layers[0].mlp.experts,
        Qwen2MoeForCausalLM(qwen2).model.layers[0].mlp.experts,
        small_gpt_oss_experts(),
    ):
        with torch.no_grad():
            for parameter in fused.parameters():
                parameter.normal_(0, 0.1)
        known = fused_experts(fused)
        split = linear_experts(known).to_empty(device="cpu")
        for product in ("gate_up_proj", "down_proj"):
            weights = getattr(fused, product)
            for expert, layer in enumerate(getattr(split, product)):
                weight = weights[expert]
                layer.weight.data = weight.T if weight.shape != layer.weight.shape else weight
                if known.has_bias:
                    layer.bias.data = getattr(fused, f"{product}_bias")[expert]
        x = torch.randn(9, known.shapes["down_proj"][0])
        chosen = torch.tensor([[0, 2], [2, 3], [0, 3]] * 3)  # none is 1
        shares = torch.rand(9, 2)
        with torch.no_grad():
            assert_close(split(x, chosen, shares), fused(x, chosen, shares))


def small_gpt_oss_experts() -> nn.Module:
    config = GptOssConfig(
        hidden_size=32, intermediate_size=48, num_local_experts=4, num_hidden_layers=1
    )
    return GptOssForCausalLM(config).model.layers[0].mlp.experts


def change(folder: Path, target: Path, make) -> Path:
    """The checkpoint with other tensors."""
    target.mkdir()
    (target / "config.json").write_text((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    make(tensors)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


AT = "model.layers.1.mlp.experts."


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: t.pop(f"{AT}down_proj_scales"), r"layers\.1.*'down_proj_scales' is missing"),
        (lambda t: t.pop(f"{AT}down_proj_bias"), r"layers\.1.*'down_proj_bias' is missing"),
        (
            lambda t: t.update({f"{AT}down_proj_blocks": t[f"{AT}down_proj_blocks"][:3].clone()}),
            r"shape \[3, 64, 3, 16\], and the model 4 experts",
        ),
        (
            lambda t: t.update(
                {f"{AT}down_proj_blocks": t[f"{AT}down_proj_blocks"][:, :32].clone()}
            ),
            r"shape \[32, 3, 16\], expected \[64, 3, 16\]",
        ),
        (
            lambda t: t.update({f"{AT}down_proj_rotation": torch.ones(3)}),
            "does not know: down_proj_rotation",
        ),
        (
            lambda t: t.update({f"{AT}down_proj_scales": torch.full((4, 64, 3), 255).byte()}),
            r"layers\.1",
        ),
    ],
)
def test_what_does_not_fit_is_refused(gpt_oss, tmp_path: Path, make, message: str) -> None:
    folder = change(gpt_oss[0], tmp_path / "changed", make)
    with pytest.raises(InvalidArgument, match=message):
        woq.AutoModelForCausalLM.from_pretrained(folder)


def test_experts_are_known_by_their_class() -> None:
    assert fused_experts(nn.Linear(3, 4)) is None
    assert isinstance(linear_experts(fused_experts(small_gpt_oss_experts())), SplitExperts)


def qwen3_moe() -> nn.Module:
    config = Qwen3MoeConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=96,
        moe_intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
    )
    return Qwen3MoeForCausalLM(config).eval()


MIXTURES = {
    "mixtral": (mixtral, "block_sparse_moe", ("w1", "w3", "w2")),
    "qwen3_moe": (qwen3_moe, "mlp", ("gate_proj", "up_proj", "down_proj")),
}


PACKERS = {
    "gptq": (gptq_layer, GPTQ),
    "awq": (awq_layer, AWQ),
    "compressed": (compressed_layer, COMPRESSED),
    "hqq": (hqq_layer, HQQ),
}


def write_mixture(folder: Path, kind: str, pack, settings) -> nn.Module:
    """A checkpoint as GPTQModel and AutoAWQ write them, with a layer for each matrix of an expert,
    and the float model that it means."""
    torch.manual_seed(0)
    make, block, names = MIXTURES[kind]
    model = make()
    rng = np.random.default_rng(0)
    tensors = {}
    for name, value in model.state_dict().items():
        stem, _, last = name.partition(".experts.")
        if not last:
            tensors[name.replace(".mlp.gate.", f".{block}.gate.")] = value.clone()
            continue
        for expert in range(4):
            parts = value[expert].chunk(2) if last == "gate_up_proj" else (value[expert],)
            for part, own in zip(parts, names[:2] if len(parts) == 2 else names[2:], strict=True):
                packed, weight = pack(rng, tuple(part.shape))
                part.copy_(torch.from_numpy(weight))
                start = f"{stem.replace('.mlp', f'.{block}')}.experts.{expert}.{own}"
                tensors |= {f"{start}.{key}": torch.from_numpy(t) for key, t in packed.items()}
    model.config.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": settings}))
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return model


@pytest.mark.parametrize("kind", MIXTURES)
@pytest.mark.parametrize("form", PACKERS)
def test_experts_that_are_layers_of_their_own(kind: str, form: str, tmp_path: Path) -> None:
    dense = write_mixture(tmp_path, kind, *PACKERS[form])
    model = woq.AutoModelForCausalLM.from_pretrained(tmp_path)
    experts = model.model.layers[1].mlp.experts
    assert isinstance(experts, SplitExperts)
    for expert in range(4):
        joined = torch.cat(
            [experts.gate_proj[expert].dequantize(), experts.up_proj[expert].dequantize()]
        )
        fused = dense.model.layers[1].mlp.experts
        assert torch.equal(joined, fused.gate_up_proj[expert])
        assert torch.equal(experts.down_proj[expert].dequantize(), fused.down_proj[expert])
    assert_close(logits(model), logits(dense))
    for save in (model.save_pretrained, lambda path: woq.save_pretrained(model, path)):
        save(tmp_path / "saved")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
        assert torch.equal(logits(again), logits(model))
    assert torch.equal(logits(copy.deepcopy(model)), logits(model))
    assert_close(logits(model.dequantize()), logits(dense))
