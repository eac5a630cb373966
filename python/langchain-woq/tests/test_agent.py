# SPDX-License-Identifier: Apache-2.0
"""langchain's create_agent over ChatWoq, with tools and a response format at the same time."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, ToolMessage
from pydantic import BaseModel
from transformers import LogitsProcessor

from langchain_woq import ChatWoq


class Answer(BaseModel):
    """The answer."""

    colour: Literal["red", "blue"]
    count: Literal[1, 2]


def look_up(name: Literal["fox", "dog"]) -> str:
    """The colour of an animal."""
    return f"the {name} is red"


class Prefer(LogitsProcessor):
    """A model's wish: begin the answer with a call, or with JSON once a tool has answered."""

    def __init__(self, tokenizer: Any, start_of_answer: str) -> None:
        self._tokenizer, self._start = tokenizer, start_of_answer

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> Any:
        text = self._tokenizer.decode(input_ids[0])
        if text.endswith(self._start):
            wish = "{" if "Result of look_up" in text else "<"
            scores = scores.clone()
            scores[:, self._tokenizer.convert_tokens_to_ids(wish)] += 1000
        return scores


@pytest.fixture
def chat(causal: Any, chat_tokenizer: Any) -> ChatWoq:
    return ChatWoq(
        model=causal,
        tokenizer=chat_tokenizer,
        temperature=0,
        max_tokens=200,
        generation_kwargs={"logits_processor": [Prefer(chat_tokenizer, "<assistant>")]},
    )


def test_an_agent_calls_tools_and_ends_with_the_response_format(chat: ChatWoq) -> None:
    agent = create_agent(chat, [look_up], response_format=Answer)
    result = agent.invoke({"messages": [("user", "fox?")]}, {"recursion_limit": 12})
    assert isinstance(result["structured_response"], Answer)
    _, call, told, last = result["messages"]
    assert isinstance(call, AIMessage)
    assert [each["name"] for each in call.tool_calls] == ["look_up"]
    assert isinstance(told, ToolMessage)
    assert told.content.endswith("is red")
    assert Answer.model_validate_json(last.content) == result["structured_response"]


def test_a_forced_call_is_a_call_beside_a_response_format(chat: ChatWoq) -> None:
    """As in OpenAI's interface: what must be called is called first."""
    bound = chat.bind_tools([look_up], tool_choice="any").bind(
        response_format={"type": "json_schema", "json_schema": {"schema": {"enum": [1, 2]}}}
    )
    assert [call["name"] for call in bound.invoke("fox?").tool_calls] == ["look_up"]


def test_the_profile_says_what_the_model_can(chat: ChatWoq, causal: Any) -> None:
    assert chat.profile is not None
    for ability in ("tool_calling", "tool_choice", "structured_output"):
        assert chat.profile[ability] is True  # type: ignore[literal-required]
    assert chat.profile["max_input_tokens"] == causal.config.max_position_embeddings
    assert chat.profile["image_inputs"] is False
    own = ChatWoq(model=causal, tokenizer=chat._generator.tokenizer, profile={"name": "mine"})
    assert own.profile == {"name": "mine"}
