# SPDX-License-Identifier: Apache-2.0
"""ChatWoq beyond the standard tests: batches, streams, callbacks, tools, serialisation."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import woq
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.exceptions import OutputParserException
from langchain_core.load import dumps, load
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from pydantic import BaseModel, Field
from tiny_models import build_causal

from langchain_woq import ChatWoq
from langchain_woq.batching import BatchGroup

QUESTIONS = ["the quick brown", "a", "need several bytes each, and then some more of them"]
HOT = {"temperature": 50.0, "top_k": 0}


@pytest.fixture
def chat(causal: Any, chat_tokenizer: Any) -> ChatWoq:
    return ChatWoq(model=causal, tokenizer=chat_tokenizer, max_tokens=12)


def pipe_of(chat: ChatWoq, **options: Any) -> Any:
    generator = chat._generator
    return woq.pipeline("text-generation", generator.model, generator.tokenizer, **options)


def answer(chat: ChatWoq, question: str, **options: Any) -> str:
    pipe = pipe_of(chat, max_new_tokens=12)
    messages = [{"role": "user", "content": question}]
    return str(pipe(messages, return_full_text=False, **options)[0]["generated_text"])


class Recorder(BaseCallbackHandler):
    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.ends: list[Any] = []
        self.starts = 0
        self.errors: list[BaseException] = []

    def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        self.starts += 1

    def on_llm_new_token(self, token: str, **kwargs: Any) -> None:
        self.tokens.append(token)

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        self.ends.append(response)

    def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
        self.errors.append(error)


# Answers


def test_answers_are_the_pipelines(chat: ChatWoq) -> None:
    for question in QUESTIONS:
        assert chat.invoke(question).content == answer(chat, question)
    sampled = chat.bind(seed=4, **HOT).invoke("a")
    assert sampled.content == answer(chat, "a", seed=4, **HOT)
    assert sampled.content != chat.invoke("a").content
    chain = ChatPromptTemplate.from_messages([("human", "{q}")]) | chat | StrOutputParser()
    assert chain.invoke({"q": QUESTIONS[0]}) == answer(chat, QUESTIONS[0])


def test_metadata(chat: ChatWoq) -> None:
    message = chat.invoke("a")
    prompt = chat._generator.tokenizer.apply_chat_template(
        [{"role": "user", "content": "a"}], add_generation_prompt=True, return_dict=False
    )
    assert message.usage_metadata == {
        "input_tokens": len(prompt),
        "output_tokens": 12,
        "total_tokens": len(prompt) + 12,
    }
    metadata = message.response_metadata
    assert metadata["finish_reason"] == "length"
    assert metadata["model_name"] == chat.model
    assert metadata["time_to_first_token"] > 0
    assert metadata["tokens_per_second"] > 0
    assert "logprobs" not in metadata
    assert chat.invoke("a", stop=[message.content[3:5]]).response_metadata["finish_reason"] == (
        "stop"
    )
    streamed = None
    for chunk in chat.stream("a"):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed.usage_metadata == message.usage_metadata
    assert streamed.response_metadata["finish_reason"] == "length"


@pytest.mark.parametrize("top", [None, 2])
def test_logprobs(chat: ChatWoq, top: int | None) -> None:
    message = chat.invoke("a", logprobs=True, top_logprobs=top)
    entries = message.response_metadata["logprobs"]["content"]
    assert len(entries) == 12
    assert all(entry["logprob"] <= 0 for entry in entries)
    assert {len(entry["top_logprobs"]) for entry in entries} == {top or 0}
    assert "".join(entry["token"] for entry in entries) == message.content
    streamed = list(chat.stream("a", logprobs=True, top_logprobs=top))[-1]
    assert streamed.response_metadata["logprobs"]["content"] == entries


def test_stop_in_all_forms(chat: ChatWoq) -> None:
    whole = chat.invoke("a").content
    stop = whole[4:7]
    expected = whole[: whole.index(stop)]
    assert chat.invoke("a", stop=[stop]).content == expected
    assert chat.bind(stop=stop).invoke("a").content == expected
    assert "".join(c.content for c in chat.stream("a", stop=[stop])) == expected
    assert chat.batch(["a", "a"], stop=[stop])[1].content == expected
    own = ChatWoq(model=chat.loaded_model, tokenizer=chat.tokenizer, max_tokens=12, stop=stop)
    assert own.invoke("a").content == expected
    assert own.invoke("a", stop=[]).content == whole


def test_several_answers(causal: Any, chat_tokenizer: Any) -> None:
    chat = ChatWoq(model=causal, tokenizer=chat_tokenizer, max_tokens=8, n=3, seed=1, **HOT)
    (generations,) = chat.generate([[HumanMessage("a")]]).generations
    texts = [generation.text for generation in generations]
    assert len(set(texts)) == 3
    assert texts[0] == chat.invoke("a").content


def test_timeout_ends_an_answer(chat: ChatWoq) -> None:
    message = chat.invoke("a", max_tokens=400, timeout=1e-9)
    assert message.usage_metadata["output_tokens"] == 1
    assert message.response_metadata["finish_reason"] == "length"


# Batches


def test_a_batch_is_one_call_of_the_model(
    chat: ChatWoq, widths: Callable[[Any], list[tuple[int, ...]]]
) -> None:
    single = [chat.invoke(question).content for question in QUESTIONS]
    shapes = widths(chat._generator.model)

    def rows() -> list[int]:
        counts = [shape[0] for shape in shapes]
        shapes.clear()
        return counts

    assert [m.content for m in chat.batch(QUESTIONS)] == single
    assert rows() == [3]
    assert [m.content for m in asyncio.run(chat.abatch(QUESTIONS))] == single
    assert rows() == [3]
    chain = ChatPromptTemplate.from_template("{q}") | chat.bind(stop=["zzz"])
    assert [m.content for m in chain.batch([{"q": q} for q in QUESTIONS])] == single
    assert rows() == [3]
    assert len(chat.batch(QUESTIONS, config={"max_concurrency": 2})) == 3
    assert rows() == [2, 1]
    small = ChatWoq(model=chat.loaded_model, tokenizer=chat.tokenizer, max_tokens=12, batch_size=1)
    assert len(small.batch(QUESTIONS)) == 3
    assert rows() == [1, 1, 1]
    assert chat.batch([]) == []


def test_a_batch_keeps_each_inputs_callbacks(chat: ChatWoq) -> None:
    recorders = [Recorder() for _ in QUESTIONS]
    configs = [{"callbacks": [recorder]} for recorder in recorders]
    messages = chat.batch(QUESTIONS, config=configs)
    for recorder, message in zip(recorders, messages, strict=True):
        assert recorder.starts == 1
        assert [end.generations[0][0].text for end in recorder.ends] == [message.content]


def test_a_bad_input_does_not_hold_up_the_others(chat: ChatWoq) -> None:
    image = [HumanMessage([{"type": "image_url", "image_url": {"url": "data:"}}])]
    for run in (chat.batch, lambda *a, **k: asyncio.run(chat.abatch(*a, **k))):
        good, bad, last = run(["a", image, QUESTIONS[0]], return_exceptions=True)
        assert good.content == chat.invoke("a").content
        assert isinstance(bad, ValueError)
        assert last.content == chat.invoke(QUESTIONS[0]).content
        with pytest.raises(ValueError, match="read text only"):
            run(["a", image])


def test_a_cached_answer_leaves_the_batch(
    causal: Any, chat_tokenizer: Any, widths: Callable[[Any], list[tuple[int, ...]]]
) -> None:
    chat = ChatWoq(model=causal, tokenizer=chat_tokenizer, max_tokens=5, cache=InMemoryCache())
    first = chat.invoke("a").content
    shapes = widths(causal)
    assert chat.batch(["a", QUESTIONS[0], "fox"])[0].content == first
    assert [shape[0] for shape in shapes] == [2]


def test_models_in_memory_do_not_share_cached_answers(causal: Any, chat_tokenizer: Any) -> None:
    cache = InMemoryCache()
    other = build_causal(chat_tokenizer, seed=9)
    first, second = (
        ChatWoq(model=model, tokenizer=chat_tokenizer, max_tokens=5, cache=cache)
        for model in (causal, other)
    )
    assert first.model == second.model
    assert first.invoke("a").content != second.invoke("a").content


def test_a_failing_model_fails_the_whole_batch(
    chat: ChatWoq, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise FloatingPointError("layer 3 is broken")

    monkeypatch.setattr(chat._generator.model, "generate", fail)
    recorder = Recorder()
    with pytest.raises(FloatingPointError, match="layer 3"):
        chat.batch(QUESTIONS, config={"callbacks": [recorder]})
    assert len(recorder.errors) == 3
    results = chat.batch(QUESTIONS, return_exceptions=True)
    assert [type(result) for result in results] == [FloatingPointError] * 3


def test_groups_run_once_whoever_comes_last() -> None:
    for leaves_last in (False, True):
        runs = []

        def double(items: list[int], flag: Any, runs: list[Any] = runs) -> list[int]:
            runs.append(items)
            return [2 * item for item in items]

        group: BatchGroup[int, int] = BatchGroup(double, 3)
        results: dict[int, int] = {}

        def member(item: int, group: Any = group, results: Any = results) -> None:
            results[item] = group.submit(item, threading.Event())

        threads = [threading.Thread(target=member, args=(item,)) for item in (1, 2)]
        if not leaves_last:
            group.leave()
        for thread in threads:
            thread.start()
        if leaves_last:
            time.sleep(0.05)
            assert results == {}
            group.leave()
        for thread in threads:
            thread.join(10)
        assert results == {1: 2, 2: 4}
        assert len(runs) == 1


# Streams, callbacks, asyncio


def test_stream_and_callbacks(chat: ChatWoq) -> None:
    recorder = Recorder()
    chunks = list(chat.stream("a", config={"callbacks": [recorder]}))
    assert all(isinstance(chunk, AIMessageChunk) for chunk in chunks)
    assert "".join(chunk.content for chunk in chunks) == chat.invoke("a").content
    assert len([chunk for chunk in chunks if chunk.content]) > 3
    assert "".join(recorder.tokens) == chat.invoke("a").content
    streaming = ChatWoq(
        model=chat.loaded_model, tokenizer=chat.tokenizer, max_tokens=12, streaming=True
    )
    recorder = Recorder()
    message = streaming.invoke("a", config={"callbacks": [recorder]})
    assert message.content == chat.invoke("a").content
    assert len(recorder.tokens) > 3


def test_async_forms(chat: ChatWoq) -> None:
    tokens: list[str] = []

    class Listener(AsyncCallbackHandler):
        async def on_llm_new_token(self, token: str, **kwargs: Any) -> None:
            tokens.append(token)

    async def run() -> tuple[str, str]:
        one = await chat.ainvoke("a")
        stream = chat.astream("a", config={"callbacks": [Listener()]})
        return one.content, "".join([chunk.content async for chunk in stream])

    expected = chat.invoke("a").content
    assert asyncio.run(run()) == (expected, expected)
    assert "".join(tokens) == expected


def pause(input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
    time.sleep(0.005)
    return torch.zeros(len(input_ids), dtype=torch.bool)


LONG = {"max_tokens": 400, "eos_token_id": -1, "stopping_criteria": [pause]}


def wait_for_no_threads() -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if not [t for t in threading.enumerate() if t.name.startswith("woq-")]:
            return
        time.sleep(0.01)
    pytest.fail("a generation goes on after it was cancelled")


@pytest.mark.parametrize("form", ["ainvoke", "abatch", "astream"])
def test_cancelling_ends_the_generation(chat: ChatWoq, form: str) -> None:
    turns = 0

    async def tick() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0.005)

    async def work() -> None:
        if form == "ainvoke":
            await chat.ainvoke("a", **LONG)
        elif form == "abatch":
            await chat.abatch(["a", "b"], **LONG)
        else:
            async for _ in chat.astream("a", **LONG):
                pass

    async def run() -> None:
        ticking = asyncio.create_task(tick())
        task = asyncio.create_task(work())
        await asyncio.sleep(0.3)
        assert not task.done()
        assert turns > 5, "the event loop was blocked"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        ticking.cancel()

    asyncio.run(run())
    wait_for_no_threads()


def test_leaving_a_stream_ends_the_generation(chat: ChatWoq) -> None:
    for _ in chat.stream("a", **LONG):
        break
    wait_for_no_threads()


# Tools and structured output: a random model, so that only the grammar can make it right


def weather(place: Literal["Paris", "Rome"], days: Literal[1, 2, 3]) -> str:
    """The weather at a place."""
    return f"{place}: sunny for {days} days"


def clock() -> str:
    """The time."""
    return "noon"


@pytest.fixture
def hot(causal: Any, chat_tokenizer: Any) -> ChatWoq:
    return ChatWoq(model=causal, tokenizer=chat_tokenizer, max_tokens=200, **HOT)


def test_forced_calls_follow_their_schema(hot: ChatWoq) -> None:
    either = hot.bind_tools([weather, clock], tool_choice="any")
    names = set()
    for seed in range(6):
        message = either.invoke("a", seed=seed)
        (call,) = message.tool_calls
        names.add(call["name"])
        if call["name"] == "weather":
            assert call["args"]["place"] in ("Paris", "Rome")
            assert call["args"]["days"] in (1, 2, 3)
        else:
            assert call["args"] == {}
        assert message.content == ""
    assert names == {"weather", "clock"}
    named = hot.bind_tools([weather, clock], tool_choice="clock")
    assert [c["name"] for c in named.invoke("a", seed=0).tool_calls] == ["clock"]
    both = hot.bind_tools([weather, clock], tool_choice="any", parallel_tool_calls=True)
    counts = {len(both.invoke("a", seed=seed).tool_calls) for seed in range(6)}
    assert counts - {1}, "several calls in one answer"


def test_streamed_calls(hot: ChatWoq) -> None:
    forced = hot.bind_tools([weather], tool_choice="weather")
    whole = forced.invoke("a", seed=3)
    streamed = None
    for chunk in forced.stream("a", seed=3):
        streamed = chunk if streamed is None else streamed + chunk
    assert [call["args"] for call in streamed.tool_calls] == [
        call["args"] for call in whole.tool_calls
    ]
    assert streamed.content == ""


def test_a_free_choice_may_be_text(hot: ChatWoq) -> None:
    free = hot.bind_tools([weather], temperature=0, max_tokens=20)
    plain = free.invoke("a")
    assert plain.tool_calls == []
    assert plain.content
    assert "".join(chunk.content for chunk in free.stream("a")) == plain.content
    none = hot.bind_tools([weather], tool_choice="none").invoke("a", seed=0, max_tokens=20)
    assert none.content == hot.invoke("a", seed=0, max_tokens=20).content


def test_a_free_call_is_held_to_its_schema(hot: ChatWoq) -> None:
    """The model is made to begin a call; what follows is the grammar's."""
    tokenizer = hot._generator.tokenizer
    begin = tokenizer("Well. <tool_call>")["input_ids"]

    def force(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - force.start
        if step < len(begin):
            only = torch.full_like(scores, -torch.inf)
            only[:, begin[step]] = 0.0
            return only
        return scores

    free = hot.bind_tools([weather], logits_processor=[force])
    force.start = len(hot._request([HumanMessage("a")], None, free.kwargs).ids)
    for seed in range(4):
        message = free.invoke("a", seed=seed)
        assert message.content == "Well."
        (call,) = message.tool_calls
        assert call["args"]["place"] in ("Paris", "Rome")
        chunks = list(free.stream("a", seed=seed))
        assert "".join(chunk.content for chunk in chunks) == "Well."


class Animal(BaseModel):
    """An animal."""

    kind: Literal["fox", "dog"]
    lazy: bool
    legs: Literal[3, 4] = Field(description="how many")
    friend: Literal["cat"] | None = None


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(hot: ChatWoq, method: str) -> None:
    animals = set()
    for seed in range(5):
        seeded = ChatWoq(
            model=hot.loaded_model, tokenizer=hot.tokenizer, max_tokens=200, seed=seed, **HOT
        )
        animal = seeded.with_structured_output(Animal, method=method).invoke("a")
        assert isinstance(animal, Animal)
        animals.add(animal.model_dump_json())
        as_dict = seeded.with_structured_output(Animal.model_json_schema(), method=method)
        assert Animal.model_validate(as_dict.invoke("a"))
        raw = seeded.with_structured_output(Animal, method=method, include_raw=True).invoke("a")
        assert isinstance(raw["raw"], AIMessage)
        assert isinstance(raw["parsed"], Animal)
        assert raw["parsing_error"] is None
    assert len(animals) > 1


def test_json_mode_and_truncated_answers(hot: ChatWoq) -> None:
    free = {"temperature": 0, "max_tokens": 30}
    message = hot.invoke("a", response_format={"type": "json_object"}, **free)
    assert message.content.startswith("{")
    short = ChatWoq(model=hot.loaded_model, tokenizer=hot.tokenizer, max_tokens=16, seed=1, **HOT)
    Verse = {"title": "Verse", "type": "object", "properties": {"text": {"type": "string"}}}
    Verse["required"] = ["text"]
    for method in ("json_schema", "function_calling"):
        # LangChain's own parsers would close the string, or return None.
        with pytest.raises(OutputParserException, match=r"was cut .*raise max_tokens"):
            short.with_structured_output(Verse, method=method).invoke("a")
        with pytest.raises(OutputParserException, match="was cut"):
            list(short.with_structured_output(Verse, method=method).stream("a"))
        result = short.with_structured_output(Verse, method=method, include_raw=True).invoke("a")
        assert result["parsed"] is None
        assert isinstance(result["parsing_error"], OutputParserException)
        assert result["raw"].response_metadata["finish_reason"] == "length"


def test_strings_are_limited_on_request(hot: ChatWoq) -> None:
    chat = ChatWoq(
        model=hot.loaded_model, tokenizer=hot.tokenizer, max_string_length=9, seed=1, **HOT
    )
    verse = {
        "title": "Verse",
        "description": "A verse.",
        "type": "object",
        "properties": {"text": {"type": "string"}},
        "required": ["text"],
    }
    for method in ("json_schema", "function_calling"):
        answer = chat.with_structured_output(verse, method=method).invoke("a")
        assert len(answer["text"]) <= 9


def test_what_is_refused(chat: ChatWoq, causal: Any, chat_tokenizer: Any, t5: Any) -> None:
    with pytest.raises(ValueError, match="tool_choice='sub' names no tool"):
        chat.bind_tools([clock], tool_choice="sub")
    with pytest.raises(ValueError, match="unknown method 'yaml'; known are 'json_schema'"):
        chat.with_structured_output(Animal, method="yaml")
    with pytest.raises(ValueError, match="unknown arguments of with_structured_output: metod"):
        chat.with_structured_output(Animal, metod="json_mode")
    with pytest.raises(ValueError, match="response_format must be"):
        chat.invoke("a", response_format="json")
    with pytest.raises(ValueError, match="did you mean 'max_new_tokens'"):
        chat.invoke("a", max_newtokens=3)
    with pytest.raises(ValueError, match="there are no tools to choose from"):
        chat.bind_tools([], tool_choice="any")
    with pytest.raises(ValueError, match="max_time must be above 0, got 0"):
        chat.invoke("a", timeout=0)
    with pytest.raises(ValueError, match="max_new_tokens=4 and max_new_tokens=3 mean the same"):
        chat.invoke("a", max_tokens=3, max_new_tokens=4)
    with pytest.raises(ValueError, match="model='other' for one call"):
        chat.invoke("a", model="other")
    with pytest.raises(ValueError, match="model is missing"):
        ChatWoq()
    with pytest.raises(ValueError, match="tokenizer is missing"):
        ChatWoq(model=causal)
    with pytest.raises(ValueError, match="T5ForConditionalGeneration is an encoder-decoder"):
        ChatWoq(model=t5, tokenizer=chat_tokenizer)
    with pytest.raises(ValueError, match="no such folder or file: no/where/at-all"):
        ChatWoq(model="no/where/at-all")
    with pytest.raises(ValueError, match="Extra inputs"):
        ChatWoq(model=causal, tokenizer=chat_tokenizer, max_token=3)
    with pytest.raises(ValueError, match="temperature"):
        ChatWoq(model=causal, tokenizer=chat_tokenizer, temperature=-1)


# Loading and serialisation


@pytest.fixture
def folder(causal: Any, chat_tokenizer: Any, tmp_path: Path) -> Path:
    causal.save_pretrained(tmp_path)
    chat_tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_models_by_name_are_quantized(folder: Path) -> None:
    config = woq.WeightOnlyQuantConfig(weight_dtype="nf4")
    chat = ChatWoq(model=folder, quantization_config=config, max_tokens=5)
    layers = [m for m in chat._generator.model.modules() if isinstance(m, woq.WeightOnlyLinear)]
    assert {layer.scheme["dtype"] for layer in layers} == {"nf4"}
    assert chat.asdict()["quantization_config"]["weight_dtype"] == "nf4"
    chat = ChatWoq(model=str(folder), load_in_8bit=True)
    layers = [m for m in chat._generator.model.modules() if isinstance(m, woq.WeightOnlyLinear)]
    assert {layer.scheme["dtype"] for layer in layers} == {"int8"}


def test_serialisation_restores_the_model(folder: Path) -> None:
    chat = ChatWoq(
        model=str(folder),
        quantization_config=woq.WeightOnlyQuantConfig(weight_dtype="nf4"),
        max_tokens=7,
        stop=["fox"],
        generation_kwargs={"repetition_penalty": 1.2},
        seed=3,
    )
    written = json.loads(dumps(chat))
    assert written["type"] == "constructor"
    assert written["kwargs"]["quantization_config"]["weight_dtype"] == "nf4"
    again = load(written, valid_namespaces=["langchain_woq"], allowed_objects=[ChatWoq])
    assert isinstance(again, ChatWoq)
    assert again.asdict() == chat.asdict()
    assert again.invoke("a").content == chat.invoke("a").content


def test_a_model_in_memory_says_that_it_cannot_be_restored(chat: ChatWoq) -> None:
    assert json.loads(dumps(chat))["type"] == "not_implemented"


def test_tokens_are_counted_by_the_model(chat: ChatWoq) -> None:
    ids = chat._generator.tokenizer("the quick")["input_ids"]
    assert chat.get_token_ids("the quick") == ids
    assert chat.get_num_tokens("the quick") == len(ids)


def test_a_system_message_changes_the_answer(chat: ChatWoq) -> None:
    assert chat.invoke([SystemMessage("fox"), HumanMessage("a")]).content != (
        chat.invoke("a").content
    )
