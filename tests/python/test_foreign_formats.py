# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of other libraries: every weight of tests/formats/fixtures, which their own packers
made, is read bit for bit; whole models load and run packed; what would change them is refused."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_support import GPTQ, gptq_layer, words, write_checkpoint
from model_support import llama
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import woq
from woq.core import native
from woq.formats.foreign.methods import FOREIGN_METHODS, foreign_format

FIXTURES = Path(__file__).parents[1] / "formats" / "fixtures"
WIDTHS = {native.dtype_traits(name).bits for name in native.dtype_names()}


def cases(*methods):
    for path in sorted(FIXTURES.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name, text in sorted((file.metadata() or {}).items()):
                config = json.loads(text)
                if isinstance(config, dict) and config.get("quant_method") in methods:
                    tensors = {
                        key.removeprefix(f"{name}."): file.get_tensor(key)
                        for key in file.keys()  # noqa: SIM118 (not a dict)
                        if key.startswith(f"{name}.")
                    }
                    yield pytest.param(config, tensors, id=f"{path.stem}-{name}")


CASES = list(cases(*FOREIGN_METHODS))


def test_the_fixtures_have_every_method():
    found = {case.values[0]["quant_method"] for case in CASES}
    # ModelOpt has no packer for CPUs: test_foreign_fp4.py. Of gpt-oss's MXFP4 transformers is the
    # owner: test_foreign_experts.py.
    assert found == FOREIGN_METHODS.keys() - {"intel/auto-round", "modelopt", "mxfp4"}


def has_a_dtype(config, expected):
    """Whether the hub holds the codes: integers of a width that is a dtype, or one of bitsandbytes'
    tables, whose blocks end with the rows; groups that run along rows."""
    if config["quant_method"] == "bitsandbytes":
        return config["load_in_8bit"] or expected.shape[1] % 64 == 0
    if config["quant_method"] == "hqq":
        said = config["quant_config"]["weight_quant_params"]
        return said["nbits"] in WIDTHS and said["axis"] == 1
    groups = config.get("config_groups")
    if groups is None:
        return config["bits"] in WIDTHS
    weights = [group["weights"] for group in groups.values()]
    return all(w["type"] == "float" or w["num_bits"] in WIDTHS for w in weights)


@pytest.mark.parametrize(("config", "tensors"), CASES)
def test_a_weight_is_read_bit_for_bit(config, tensors):
    expected = tensors.pop("expected").numpy()
    rows, cols = expected.shape
    if not has_a_dtype(config, expected):
        message = r"bits have no dtype|woq reads|do not divide rows of"
        with pytest.raises(woq.Unsupported, match=message):
            foreign_format(config).read(tensors, rows, cols)
        return
    form = foreign_format(config)
    matrix, rule = form.read(tensors, rows, cols)
    assert tensors.keys() <= form.tensors | {"bias"}
    assert rule
    # bitsandbytes multiplies its int8 codes by SCB, then by 1 / 127: once more than woq rounds.
    ulps = 2 if config.get("load_in_8bit") else 0
    np.testing.assert_array_max_ulp(matrix.dequantize(), expected, ulps)


@pytest.fixture
def checkpoint(tmp_path):
    """A tiny Llama whose linear layers are GPTQ's, and the float model that it stands for."""
    torch.manual_seed(0)
    model = llama(vocab_size=96)
    return write_checkpoint(tmp_path, model, gptq_layer, GPTQ), model


IDS = torch.arange(12)[None]


def change(folder, **settings):
    path = folder / "config.json"
    values = json.loads(path.read_text())
    values["quantization_config"] |= settings
    path.write_text(json.dumps(values))


def test_a_model_runs_packed(checkpoint, caplog):
    folder, model = checkpoint
    with caplog.at_level(logging.INFO, "woq"):
        loaded = woq.AutoModelForCausalLM.from_pretrained(folder)
    layers = [m for m in loaded.modules() if isinstance(m, woq.WeightOnlyLinear)]
    assert len(layers) == 14
    assert "14 layers: symmetric: every stored zero point is 7" in caplog.text
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            torch.testing.assert_close(
                loaded.get_submodule(name).dequantize(torch.float32), module.weight, rtol=0, atol=0
            )
    with torch.no_grad():
        torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-5)


def test_the_page_is_run(checkpoint):
    folder, _ = checkpoint
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    hub_id = "Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4"
    assert sum(hub_id in code for code in blocks) == 2
    for code in blocks:
        if hub_id in code:
            names: dict[str, object] = {}
            exec(code.replace(hub_id, str(folder)), names)
            assert any(isinstance(m, woq.WeightOnlyLinear) for m in names["model"].modules())


def test_it_is_a_woq_model_from_then_on(checkpoint, tmp_path_factory):
    folder, _ = checkpoint
    loaded = woq.AutoModelForCausalLM.from_pretrained(folder)
    config = loaded.config.quantization_config
    assert (config.weight_dtype, config.group_size, config.scale_dtype) == ("int4_clip", 32, "fp16")
    saved = tmp_path_factory.mktemp("saved")
    loaded.save_pretrained(saved)
    again = woq.AutoModelForCausalLM.from_pretrained(saved)
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, loaded(IDS).logits)


def test_the_compute_dtype_is_the_users(checkpoint):
    folder, _ = checkpoint
    config = woq.WeightOnlyQuantConfig(compute_dtype="int8")
    loaded = woq.AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)
    layer = loaded.model.layers[0].mlp.up_proj
    assert layer.requested_compute_dtype == "int8"
    with pytest.raises(woq.InvalidArgument, match="is quantized already"):
        woq.AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=woq.WeightOnlyQuantConfig("nf4")
        )


def rewrite(folder, edit):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, {"format": "pt"})


Q_PROJ = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop(f"{Q_PROJ}.qzeros"), "q_proj, of GPTQ .* 'qzeros' is missing"),
        (
            lambda t: t.update({f"{Q_PROJ}.scales": t[f"{Q_PROJ}.scales"][:, :-1].contiguous()}),
            r"'scales' has shape \[2, 63\], expected \[2, 64\]",
        ),
        (
            lambda t: t.update({f"{Q_PROJ}.scales": t[f"{Q_PROJ}.scales"] * float("nan")}),
            "q_proj.*does not fit",
        ),
        (
            lambda t: t.update({f"{Q_PROJ}.qweight": t[f"{Q_PROJ}.qweight"].float()}),
            "'qweight' is float32, expected int32",
        ),
        (
            lambda t: t.update({f"{Q_PROJ}.g_idx": torch.full((64,), 5, dtype=torch.int32)}),
            r"g_idx\[0\] is 5, but there are 2 groups",
        ),
        (
            lambda t: t.update({f"{Q_PROJ}.rotation": torch.ones(3)}),
            "tensors that the format does not know: rotation",
        ),
        (
            lambda t: t.update({"model.layers.0.mlp.act_fn.scales": torch.ones(96)}),
            "no place in the model: model.layers.0.mlp.act_fn.scales",
        ),
        (lambda t: t.pop("model.norm.weight"), "lacks tensors of the model: model.norm.weight"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(checkpoint, edit, message):
    folder, _ = checkpoint
    rewrite(folder, edit)
    with pytest.raises(woq.InvalidArgument, match=message):
        woq.AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"checkpoint_format": "marlin"}, "woq reads gptq, gptq_v2, gptq_p and gemm"),
        ({"rotation": "hadamard"}, "its weights are rotated"),
        ({"pack_dtype": "int64"}, "pack_dtype 'int64'"),
        ({"quant_method": "awq", "version": "gemv"}, "woq reads 'gemm'"),
        ({"quant_method": "auto-round", "packing_format": "auto_round:fp8"}, "packing_format"),
        ({"quant_method": "compressed-tensors", "format": "marlin-24"}, "format marlin-24"),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "pack-quantized",
                "transform_config": {"a": 1},
            },
            "its weights are rotated",
        ),
    ],
)
def test_forms_that_are_not_read_are_refused_by_name(checkpoint, settings, message):
    folder, _ = checkpoint
    change(folder, **settings)
    with pytest.raises(woq.Unsupported, match=message):
        woq.AutoModelForCausalLM.from_pretrained(folder)


def test_settings_without_tensors_are_refused(checkpoint):
    folder, model = checkpoint
    save_file(
        {k: v.clone() for k, v in model.state_dict().items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(woq.InvalidArgument, match="none of the model's 15 linear layers"):
        woq.AutoModelForCausalLM.from_pretrained(folder)


def test_mixed_widths_and_act_order_load_and_save(checkpoint, tmp_path_factory):
    folder, _ = checkpoint
    rng = np.random.default_rng(1)
    order = rng.permutation(64).astype(np.int32) // 32
    scales = rng.uniform(0.001, 0.01, (2, 64)).astype(np.float32)
    codes = rng.integers(0, 256, (64, 64))

    def edit(tensors):
        tensors[f"{Q_PROJ}.qweight"] = torch.from_numpy(
            np.stack([words(row, 8) for row in codes], axis=1)
        )
        tensors[f"{Q_PROJ}.qzeros"] = torch.from_numpy(
            np.stack([words(np.full(64, 99), 8) for _ in range(2)])
        )
        tensors[f"{Q_PROJ}.scales"] = torch.from_numpy(scales).to(torch.bfloat16)
        tensors[f"{Q_PROJ}.g_idx"] = torch.from_numpy(order)

    rewrite(folder, edit)
    loaded = woq.AutoModelForCausalLM.from_pretrained(folder)
    kept = torch.from_numpy(scales).to(torch.bfloat16).float().numpy()
    expected = kept.T[:, order] * (codes - 100).astype(np.float32)
    weight = loaded.get_submodule(Q_PROJ).dequantize(torch.float32)
    np.testing.assert_array_equal(weight.numpy(), expected)
    saved = tmp_path_factory.mktemp("saved")
    loaded.save_pretrained(saved)
    again = woq.AutoModelForCausalLM.from_pretrained(saved)
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, loaded(IDS).logits)
