# SPDX-License-Identifier: Apache-2.0
"""WeightOnlyQuantPipeline as LangChain sees it, and how it is made."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import woq
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models.llms import BaseLLM
from langchain_core.load import dumps, load
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import PromptTemplate
from transformers import PreTrainedTokenizerFast, pipeline
from woq.generation import TextGenerator

from langchain_woq import WeightOnlyQuantPipeline, __version__

PROMPTS = ["the quick brown", "a", "need several bytes each, and then some more of them"]


@pytest.fixture
def generator(model: Any, tokenizer: PreTrainedTokenizerFast) -> TextGenerator:
    return TextGenerator(model, tokenizer, {"max_new_tokens": 16})


@pytest.fixture
def llm(generator: TextGenerator) -> WeightOnlyQuantPipeline:
    return WeightOnlyQuantPipeline(pipeline=generator, model_id="tiny")


def answer(generator: TextGenerator, prompt: str, **kwargs: Any) -> str:
    return generator.generate([prompt], **kwargs)[0][0].text


class Recorder(BaseCallbackHandler):
    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.results: list[Any] = []
        self.errors: list[BaseException] = []

    def on_llm_new_token(self, token: str, **kwargs: Any) -> None:
        self.tokens.append(token)

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        self.results.append(response)

    def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
        self.errors.append(error)


def test_invoke_and_chain(llm: WeightOnlyQuantPipeline, generator: TextGenerator) -> None:
    assert llm.invoke(PROMPTS[0]) == answer(generator, PROMPTS[0])
    chain = PromptTemplate.from_template("the {adjective} brown") | llm | StrOutputParser()
    assert chain.invoke({"adjective": "quick"}) == answer(generator, "the quick brown")


def test_bind_stop(llm: WeightOnlyQuantPipeline, generator: TextGenerator) -> None:
    whole = answer(generator, PROMPTS[0])
    stop = whole[5:8]
    bound = PromptTemplate.from_template("{text}") | llm.bind(stop=[stop])
    expected = whole[: whole.index(stop)]
    assert bound.invoke({"text": PROMPTS[0]}) == expected
    assert bound.batch([{"text": PROMPTS[0]}] * 2) == [expected] * 2
    assert "".join(bound.stream({"text": PROMPTS[0]})) == expected
    # What a regular expression would choke on is just text.
    assert llm.bind(stop=["([", "*"]).invoke("a") == answer(generator, "a", stop=["([", "*"])


def test_batch_is_one_call(
    llm: WeightOnlyQuantPipeline, widths: Callable[[Any], list[tuple[int, ...]]]
) -> None:
    single = [llm.invoke(prompt) for prompt in PROMPTS]
    shapes = widths(llm.pipeline.model)
    assert llm.batch(PROMPTS) == single
    assert [shape[0] for shape in shapes] == [3]
    shapes.clear()
    chain = PromptTemplate.from_template("{text}") | llm
    assert chain.batch([{"text": prompt} for prompt in PROMPTS]) == single
    assert [shape[0] for shape in shapes] == [3]
    shapes.clear()
    assert llm.batch(PROMPTS, config={"max_concurrency": 2}) == single
    assert [shape[0] for shape in shapes] == [2, 1]
    assert llm.batch([]) == []


def test_batch_size_limits_a_batch(
    generator: TextGenerator, widths: Callable[[Any], list[tuple[int, ...]]]
) -> None:
    shapes = widths(generator.model)
    WeightOnlyQuantPipeline(pipeline=generator, batch_size=1).batch(PROMPTS)
    assert [shape[0] for shape in shapes] == [1, 1, 1]


def test_call_arguments_win(llm: WeightOnlyQuantPipeline) -> None:
    result = llm.bind(max_new_tokens=3).invoke("a")
    assert llm.invoke("a").startswith(result)
    assert llm.generate(["a"], max_new_tokens=3).llm_output["token_usage"]["completion_tokens"] == 3
    with pytest.raises(ValueError, match="did you mean 'max_new_tokens'"):
        llm.invoke("a", max_newtokens=3)


def test_usage_and_finish_reason(llm: WeightOnlyQuantPipeline, generator: TextGenerator) -> None:
    result = llm.generate(PROMPTS)
    completions = [group[0] for group in generator.generate(PROMPTS)]
    prompt_tokens = sum(c.prompt_tokens for c in completions)
    completion_tokens = sum(c.completion_tokens for c in completions)
    assert result.llm_output == {
        "model_name": "tiny",
        "token_usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }
    for group, completion in zip(result.generations, completions, strict=True):
        assert group[0].generation_info == {
            "finish_reason": completion.finish_reason,
            "prompt_tokens": completion.prompt_tokens,
            "completion_tokens": completion.completion_tokens,
        }


def test_stream_and_callbacks(llm: WeightOnlyQuantPipeline) -> None:
    recorder = Recorder()
    chunks = list(llm.stream(PROMPTS[0], config={"callbacks": [recorder]}))
    assert "".join(chunks) == llm.invoke(PROMPTS[0])
    assert recorder.tokens == [chunk for chunk in chunks if chunk]
    assert len(recorder.tokens) > 3
    info = recorder.results[0].generations[0][0].generation_info
    assert info["finish_reason"] == "length"
    assert info["completion_tokens"] == 16


def test_an_empty_answer_is_no_error(llm: WeightOnlyQuantPipeline) -> None:
    first = llm.invoke("a")[0]
    assert llm.invoke("a", stop=[first]) == ""
    assert "".join(llm.stream("a", stop=[first])) == ""


def test_errors_reach_callbacks_and_caller(
    llm: WeightOnlyQuantPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise FloatingPointError("layer 3 is broken")

    monkeypatch.setattr(llm.pipeline.model, "forward", fail)
    recorder = Recorder()
    for run in (
        lambda: llm.invoke("a", config={"callbacks": [recorder]}),
        lambda: list(llm.stream("a", config={"callbacks": [recorder]})),
    ):
        with pytest.raises(FloatingPointError, match="layer 3"):
            run()
    assert len(recorder.errors) == 2


def test_async_forms(llm: WeightOnlyQuantPipeline) -> None:
    async def run() -> tuple[str, list[str], list[str]]:
        streamed = [chunk async for chunk in llm.astream(PROMPTS[0])]
        return await llm.ainvoke(PROMPTS[0]), await llm.abatch(PROMPTS), streamed

    one, many, streamed = asyncio.run(run())
    assert one == llm.invoke(PROMPTS[0])
    assert many == llm.batch(PROMPTS)
    assert "".join(streamed) == one


def test_over_a_transformers_pipeline(causal: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    greedy = pipeline(
        "text-generation",
        model=causal,
        tokenizer=tokenizer,
        device="cpu",
        max_new_tokens=7,
        do_sample=False,
    )
    llm = WeightOnlyQuantPipeline(pipeline=greedy)
    expected = greedy(PROMPTS[0], return_full_text=False)[0]["generated_text"]
    assert llm.invoke(PROMPTS[0]) == expected
    assert llm.generate(["a"]).generations[0][0].generation_info is not None
    assert llm.asdict()["pipeline_kwargs"]["max_new_tokens"] == 7
    # pipeline_kwargs win over the pipeline's own, calls over both.
    llm = WeightOnlyQuantPipeline(pipeline=greedy, pipeline_kwargs={"max_new_tokens": 2})
    tokens = [
        llm.generate(["a"], **kwargs).generations[0][0].generation_info["completion_tokens"]
        for kwargs in ({}, {"max_new_tokens": 4})
    ]
    assert tokens == [2, 4]


def test_defaults_of_a_transformers_pipeline_hold(
    causal: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    llm = WeightOnlyQuantPipeline(
        pipeline=pipeline("text-generation", model=causal, tokenizer=tokenizer, device="cpu")
    )
    options = llm.asdict()["pipeline_kwargs"]
    assert options["max_new_tokens"] == 256
    assert options["do_sample"] is True


def test_wrong_pipelines_are_refused(causal: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    for wrong, missing in ((None, "model and tokenizer"), ("x", "model and tokenizer")):
        with pytest.raises(ValueError, match=f"without {missing}.*from_model_id"):
            WeightOnlyQuantPipeline(pipeline=wrong)
    with pytest.raises(ValueError, match="without model and tokenizer"):
        WeightOnlyQuantPipeline()
    with pytest.raises(ValueError, match="max_new_tokn"):
        WeightOnlyQuantPipeline(
            pipeline=TextGenerator(causal, tokenizer), pipeline_kwargs={"max_new_tokn": 3}
        )
    with pytest.raises(ValueError, match="batch_size"):
        WeightOnlyQuantPipeline(pipeline=TextGenerator(causal, tokenizer), batch_size=0)
    with pytest.raises(ValueError, match="Extra inputs"):
        WeightOnlyQuantPipeline(pipeline=TextGenerator(causal, tokenizer), max_new_tokn=3)


def test_identity(llm: WeightOnlyQuantPipeline) -> None:
    assert isinstance(llm, BaseLLM)
    assert llm._llm_type == "weight_only_quantization"
    assert llm.asdict() == {
        "model_id": "tiny",
        "model_kwargs": None,
        "pipeline_kwargs": {"max_new_tokens": 16},
        "quantization_config": None,
        "_type": "weight_only_quantization",
    }
    assert llm.metadata is not None
    assert llm.metadata["lc_versions"]["langchain-woq"] == __version__
    assert llm.get_num_tokens("the quick") == len(llm.pipeline.tokenizer("the quick")["input_ids"])


@pytest.mark.parametrize("name", ["device", "device_map"])
@pytest.mark.parametrize("value", [0, "cuda", "cuda:0", "xpu:0", {"": "cuda:0"}, {"lm_head": 1}])
def test_devices_other_than_the_cpu_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}=.*woq computes on the CPU"):
        WeightOnlyQuantPipeline.from_model_id("nowhere", "text-generation", **{name: value})


def test_from_model_id_refuses_before_it_loads() -> None:
    load = WeightOnlyQuantPipeline.from_model_id
    with pytest.raises(ValueError, match="unknown task 'summarisation'; known are 'text-gen"):
        load("nowhere", "summarisation")
    with pytest.raises(ValueError, match="did you mean 'max_new_tokens'"):
        load("nowhere", "text-generation", pipeline_kwargs={"max_new_tokenz": 3})
    with pytest.raises(ValueError, match="load_in_4bit and load_in_8bit exclude each other"):
        load("nowhere", "text-generation", load_in_4bit=True, load_in_8bit=True)


def test_over_a_woq_pipeline(model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    task = "summarization" if model.config.is_encoder_decoder else "text-generation"
    pipe = woq.pipeline(task, model, tokenizer, max_new_tokens=6)
    llm = WeightOnlyQuantPipeline(pipeline=pipe, pipeline_kwargs={"max_new_tokens": 9})
    assert llm.invoke("a") == answer(pipe.generator, "a", max_new_tokens=9)
    assert llm.pipeline.task == task


@pytest.mark.parametrize("task", ["summarization", "translation", "translation_en_to_de"])
def test_tasks_have_the_models_prefix(
    t5: Any, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, task: str
) -> None:
    t5.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["task_specific_params"] = {task: {"prefix": "fox: ", "max_length": 7}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tokenizer.save_pretrained(tmp_path)
    llm = WeightOnlyQuantPipeline.from_model_id(str(tmp_path), task)
    plain = TextGenerator(t5, tokenizer, {"max_length": 7})
    assert llm.invoke("a") == answer(plain, "fox: a")
    assert llm.batch(["a", "b"])[1] == answer(plain, "fox: b")


def test_seed_and_logprobs(llm: WeightOnlyQuantPipeline, generator: TextGenerator) -> None:
    hot = {"temperature": 50.0, "top_k": 0, "seed": 5}
    assert llm.invoke("a", **hot) == answer(generator, "a", **hot) != llm.invoke("a")
    assert "".join(llm.stream("a", **hot)) == llm.invoke("a", **hot)
    info = llm.generate(["a"], logprobs=1).generations[0][0].generation_info
    assert len(info["logprobs"]["content"]) == info["completion_tokens"]


@pytest.mark.parametrize("form", ["ainvoke", "abatch", "astream"])
def test_cancelling_ends_the_generation(llm: WeightOnlyQuantPipeline, form: str) -> None:
    def pause(input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        time.sleep(0.005)
        return torch.zeros(len(input_ids), dtype=torch.bool)

    long = {"max_new_tokens": 400, "eos_token_id": None, "stopping_criteria": [pause]}

    async def work() -> None:
        if form == "astream":
            async for _ in llm.astream("a", **long):
                pass
        else:
            await getattr(llm, form)(["a", "b"] if form == "abatch" else "a", **long)

    async def run() -> int:
        task = asyncio.create_task(work())
        turns = 0
        while turns < 30:
            await asyncio.sleep(0.01)
            turns += 1
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return turns

    assert asyncio.run(run()) == 30
    deadline = time.monotonic() + 30
    while [t for t in threading.enumerate() if t.name.startswith("woq-")]:
        assert time.monotonic() < deadline, "the generation goes on"
        time.sleep(0.01)


def test_serialisation(causal: Any, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    causal.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    llm = WeightOnlyQuantPipeline.from_model_id(
        str(tmp_path),
        quantization_config=woq.WeightOnlyQuantConfig(weight_dtype="int8"),
        pipeline_kwargs={"max_new_tokens": 5},
        batch_size=3,
    )
    again = load(
        json.loads(dumps(llm)),
        valid_namespaces=["langchain_woq"],
        allowed_objects=[WeightOnlyQuantPipeline],
    )
    assert isinstance(again, WeightOnlyQuantPipeline)
    assert again.asdict() == llm.asdict()
    assert again.batch_size == 3
    assert again.invoke("a") == llm.invoke("a")
    in_memory = WeightOnlyQuantPipeline(pipeline=TextGenerator(causal, tokenizer))
    assert json.loads(dumps(in_memory))["type"] == "not_implemented"
