# SPDX-License-Identifier: Apache-2.0
"""from_model_id over models that woq quantizes: tiny ones, and SmolLM2 where it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from langchain_core.prompts import PromptTemplate
from transformers import PreTrainedTokenizerFast

from langchain_woq import WeightOnlyQuantPipeline

woq = pytest.importorskip("woq")

TASKS = {"causal": "text-generation", "t5": "text2text-generation"}


@pytest.fixture(params=list(TASKS))
def checkpoint(
    request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> tuple[str, str]:
    """Folder of an unquantized checkpoint, and its task."""
    request.getfixturevalue(request.param).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return str(tmp_path), TASKS[request.param]


def quantized_layers(llm: WeightOnlyQuantPipeline) -> list[Any]:
    return [m for m in llm.pipeline.model.modules() if isinstance(m, woq.WeightOnlyLinear)]


def test_quantize_while_loading_then_reload(checkpoint: tuple[str, str], tmp_path: Path) -> None:
    folder, task = checkpoint
    config = woq.WeightOnlyQuantConfig(weight_dtype="nf4")
    llm = WeightOnlyQuantPipeline.from_model_id(
        model_id=folder,
        task=task,
        device=-1,
        quantization_config=config,
        model_kwargs={"dtype": torch.float32},
        pipeline_kwargs={"max_new_tokens": 10},
    )
    layers = quantized_layers(llm)
    assert layers
    assert {layer.scheme["dtype"] for layer in layers} == {"nf4"}
    text = llm.invoke("the quick brown")
    assert text
    assert llm.batch(["the quick brown", "a"])[0] == text
    assert llm.asdict()["quantization_config"]["weight_dtype"] == "nf4"

    saved = tmp_path / "quantized"
    llm.pipeline.model.save_pretrained(saved)
    llm.pipeline.tokenizer.save_pretrained(saved)
    again = WeightOnlyQuantPipeline.from_model_id(
        str(saved), task, pipeline_kwargs={"max_new_tokens": 10}
    )
    assert len(quantized_layers(again)) == len(layers)
    assert again.invoke("the quick brown") == text


@pytest.mark.parametrize(("argument", "dtype"), [("load_in_4bit", "nf4"), ("load_in_8bit", "int8")])
def test_load_in_bits(checkpoint: tuple[str, str], argument: str, dtype: str) -> None:
    folder, task = checkpoint
    llm = WeightOnlyQuantPipeline.from_model_id(folder, task, **{argument: True})
    assert {layer.scheme["dtype"] for layer in quantized_layers(llm)} == {dtype}
    assert isinstance(llm.invoke("a", max_new_tokens=2), str)


def test_without_a_config_nothing_is_quantized(checkpoint: tuple[str, str]) -> None:
    folder, task = checkpoint
    llm = WeightOnlyQuantPipeline.from_model_id(folder, task)
    assert quantized_layers(llm) == []


def test_the_config_class_means_its_defaults(checkpoint: tuple[str, str]) -> None:
    """ITREX's documentation passes the class instead of an instance."""
    folder, task = checkpoint
    llm = WeightOnlyQuantPipeline.from_model_id(
        folder, task, quantization_config=woq.WeightOnlyQuantConfig
    )
    assert {layer.scheme["dtype"] for layer in quantized_layers(llm)} == {"int4_fullrange"}


def test_smollm2_answers(smollm2: Path) -> None:
    llm = WeightOnlyQuantPipeline.from_model_id(
        model_id=str(smollm2.parent),
        task="text-generation",
        quantization_config=woq.WeightOnlyQuantConfig(weight_dtype="nf4", quantize_lm_head="int8"),
        model_kwargs={"gguf_file": smollm2.name, "dtype": torch.float32},
        pipeline_kwargs={"max_new_tokens": 12},
    )
    template = llm.pipeline.tokenizer.apply_chat_template(
        [{"role": "user", "content": "{{ question }}"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    prompt = PromptTemplate.from_template(template, template_format="mustache")
    chain = prompt | llm
    question = {"question": "What is the capital of France?"}
    answer = chain.invoke(question)
    assert "Paris" in answer
    assert "".join(chain.stream(question)) == answer
    # "is" and " Paris" are separate tokens; the stop text crosses their border.
    stopped = (prompt | llm.bind(stop=["is Par"])).invoke(question)
    assert stopped == answer[: answer.index("is Par")]
    answers = chain.batch([question, {"question": "What is 1+1? Answer with one number."}])
    assert "Paris" in answers[0]
    assert answers[1]
