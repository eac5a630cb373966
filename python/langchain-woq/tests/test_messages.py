# SPDX-License-Identifier: Apache-2.0
"""Messages in the words of chat templates: roles, tools, and templates that refuse some."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)

from langchain_woq.messages import encode_messages, knows_tools

TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add numbers.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}
CALL = {"name": "add", "args": {"a": 1}, "id": "x1", "type": "tool_call"}
NATIVE = (
    "{% if tools %}<tools>{% for t in tools %}{{ t.function.name }}{% endfor %}</tools>{% endif %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }} {{ c.function.arguments.a }}"
    "</tool_call>{% endfor %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate, beginning with the user') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
)


def rendered(tokenizer: Any, messages: list[BaseMessage], **kwargs: Any) -> str:
    return str(tokenizer.decode(encode_messages(tokenizer, messages, **kwargs)))


def with_template(tokenizer: Any, template: str) -> Any:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    return tokenizer


def test_roles_and_turns(chat_tokenizer: Any) -> None:
    messages = [
        SystemMessage("be brief"),
        HumanMessage("fox?"),
        AIMessage("dog"),
        ChatMessage("judge", role="critic"),
        HumanMessage([{"type": "text", "text": "and "}, "now?"]),
    ]
    assert rendered(chat_tokenizer, messages) == (
        "<system>be brief\n<user>fox?\n<assistant>dog\n<critic>judge\n<user>and now?\n<assistant>"
    )
    # The assistant's own last words are continued.
    assert rendered(chat_tokenizer, messages[:3]).endswith("<assistant>dog")


def test_instructions_join_the_system_message(chat_tokenizer: Any) -> None:
    hello = [HumanMessage("a")]
    assert rendered(chat_tokenizer, hello, instruction="be a fox") == (
        "<system>be a fox\n<user>a\n<assistant>"
    )
    assert rendered(
        chat_tokenizer, [SystemMessage("be brief"), *hello], instruction="be a fox"
    ) == ("<system>be brief\n\nbe a fox\n<user>a\n<assistant>")


CONVERSATION = [
    HumanMessage("1 + 2?"),
    AIMessage("let me see", tool_calls=[CALL]),
    ToolMessage("3", name="add", tool_call_id="x1"),
    HumanMessage("sure?"),
]


def test_tools_as_text(chat_tokenizer: Any) -> None:
    assert not knows_tools(chat_tokenizer)
    text = rendered(chat_tokenizer, CONVERSATION, tools=[TOOL])
    assert text.startswith("<system>You can call these tools:\n{")
    assert '"name": "add", "description": "Add numbers."' in text
    assert text.endswith(
        '<user>1 + 2?\n<assistant>let me see\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}'
        "\n</tool_call>\n<user>Result of add: 3\n<user>sure?\n<assistant>"
    )


def test_tools_by_the_template(tokenizer: Any) -> None:
    native = with_template(tokenizer, NATIVE)
    assert knows_tools(native)
    assert rendered(native, CONVERSATION, tools=[TOOL]) == (
        "<tools>add</tools>[user]1 + 2?[assistant]let me see<tool_call>add 1</tool_call>"
        "[tool]3[user]sure?[assistant]"
    )
    # Earlier calls are the template's business also when no tools are bound any more.
    assert "<tool_call>add 1</tool_call>[tool]3" in rendered(native, CONVERSATION)
    special = copy.deepcopy(native)
    special.add_special_tokens({"additional_special_tokens": ["<tool_call>"]})
    assert not knows_tools(special), "decoding would drop the mark of a call"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (ToolMessage("3", tool_call_id="1"), "<user>Result of the tool: 3"),
        (
            ToolMessage("no b", name="add", tool_call_id="1", status="error"),
            "<user>Result of add: Error: no b",
        ),
        (
            ToolMessage("Error: no b", name="add", tool_call_id="1", status="error"),
            "<user>Result of add: Error: no b",
        ),
        (
            ToolMessage([{"type": "json", "json": {"a": 1}}], tool_call_id="1"),
            '<user>Result of the tool: {"a": 1}',
        ),
        (FunctionMessage("3", name="add"), "<user>Result of add: 3"),
        (
            AIMessage([{"type": "text", "text": "x"}, {"type": "tool_use", "id": "1"}]),
            "<assistant>x",
        ),
    ],
)
def test_results_and_blocks(chat_tokenizer: Any, message: BaseMessage, expected: str) -> None:
    text = rendered(chat_tokenizer, [HumanMessage("a"), message, HumanMessage("b")])
    assert f"\n{expected}\n" in text


def test_templates_that_refuse_roles_get_them_merged(tokenizer: Any) -> None:
    strict = with_template(tokenizer, ALTERNATING)
    assert rendered(strict, [HumanMessage("a"), AIMessage("b"), HumanMessage("c")]) == (
        "[user]a[assistant]b[user]c[assistant]"
    )
    messages = [SystemMessage("s"), HumanMessage("a"), HumanMessage("b"), AIMessage("c")]
    assert rendered(strict, [*messages, HumanMessage("d")]) == (
        "[user]s\n\na\n\nb[assistant]c[user]d[assistant]"
    )
    with pytest.raises(ValueError, match=r"refuses messages of the roles assistant, user: roles"):
        rendered(strict, [AIMessage("c"), HumanMessage("d")])


def test_what_is_refused(tokenizer: Any, chat_tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        rendered(tokenizer, [HumanMessage("a")])
    image = HumanMessage([{"type": "image_url", "image_url": {"url": "data:"}}])
    with pytest.raises(ValueError, match=r"'image_url' in a HumanMessage: .* read text only"):
        rendered(chat_tokenizer, [image])
    with pytest.raises(ValueError, match="a RemoveMessage cannot be said to the model"):
        rendered(chat_tokenizer, [RemoveMessage(id="1")])
    with pytest.raises(ValueError, match="a chat is a list of at least one"):
        rendered(chat_tokenizer, [])
