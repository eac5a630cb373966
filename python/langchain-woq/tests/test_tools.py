# SPDX-License-Identifier: Apache-2.0
"""Tool calls as text: choices, grammars, reading them back whole and in pieces."""

from __future__ import annotations

from typing import Any

import pytest

from langchain_woq.tools import (
    TextBeforeCalls,
    call_as_text,
    call_grammar,
    chosen_tools,
    closed,
    read_calls,
)


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [tool("add", a={"type": "integer"}), tool("now")]


@pytest.mark.parametrize(
    ("choice", "names", "forced"),
    [
        (None, ["add", "now"], False),
        ("auto", ["add", "now"], False),
        ("none", [], False),
        ("any", ["add", "now"], True),
        ("required", ["add", "now"], True),
        (True, ["add", "now"], True),
        ("now", ["now"], True),
        ({"type": "function", "function": {"name": "add"}}, ["add"], True),
        ({"type": "tool", "name": "add"}, ["add"], True),
    ],
)
def test_choices(choice: Any, names: list[str], forced: bool) -> None:
    chosen, must = chosen_tools(TOOLS, choice)
    assert [each["function"]["name"] for each in chosen] == names
    assert must is forced


@pytest.mark.parametrize("choice", ["any", "required", True, "add"])
def test_nothing_to_choose_from(choice: Any) -> None:
    with pytest.raises(ValueError, match="there are no tools to choose from"):
        chosen_tools([], choice)
    assert chosen_tools([], "auto") == ([], False)


@pytest.mark.parametrize("choice", ["sub", 3, {"type": "function", "function": {"name": "sub"}}])
def test_a_choice_of_nothing_is_refused(choice: Any) -> None:
    with pytest.raises(ValueError, match=r"names no tool: choose 'auto'.*'add', 'now'"):
        chosen_tools(TOOLS, choice)


def test_calls_are_read_back() -> None:
    text = "Let me see.\n" + call_as_text("add", {"a": 1, "b": "Z\u00fcrich"})
    answer = read_calls(text)
    assert answer.text == "Let me see."
    assert [(call["name"], call["args"]) for call in answer.calls] == [
        ("add", {"a": 1, "b": "Z\u00fcrich"})
    ]
    two = read_calls(call_as_text("add", {}) + "\n" + call_as_text("now", {}))
    assert [call["name"] for call in two.calls] == ["add", "now"]
    assert len({call["id"] for call in two.calls}) == 2
    assert two.text == ""
    plain = read_calls(" no call ")
    assert (plain.text, plain.calls, plain.invalid) == (" no call ", [], [])


@pytest.mark.parametrize(
    "body", ['{"name": "add"', "[]", '{"name": 3, "arguments": {}}', '{"arguments": {}}', "add(1)"]
)
def test_what_is_no_call_is_an_invalid_one(body: str) -> None:
    for text in (f"<tool_call>{body}</tool_call>", f"<tool_call>\n{body}"):
        answer = read_calls(text)
        assert answer.calls == []
        (invalid,) = answer.invalid
        assert invalid["args"] == body
        assert "not a tool call in JSON" in str(invalid["error"])


def test_calls_that_were_cut() -> None:
    whole = call_as_text("add", {"a": 1})
    complete = whole.index("</tool_call>")
    for end in range(complete - 1, len(whole) + 1):
        (call,) = read_calls(whole[:end], "length").calls
        assert (call["name"], call["args"]) == ("add", {"a": 1})
    (invalid,) = read_calls(whole[: complete - 3], "length").invalid
    assert "cut before it was complete: raise max_tokens" in str(invalid["error"])


@pytest.mark.parametrize(
    ("pieces", "before"),
    [
        (["hel", "lo"], "hello"),
        (["hello\n", "<tool_call>{}", "</tool_call>"], "hello"),
        (["a <", "b"], "a <b"),
        (["a <tool", "_c", "all>x"], "a"),
        (["a <tool", "box"], "a <toolbox"),
        (["<tool_call>", "x"], ""),
        (["a ", " ", "b "], "a  b "),
    ],
)
def test_streams_hold_back_what_may_be_a_call(pieces: list[str], before: str) -> None:
    splitter = TextBeforeCalls()
    given = "".join([splitter.push(piece) for piece in pieces]) + splitter.flush()
    assert given == before


def test_only_what_may_be_a_call_is_held_back() -> None:
    splitter = TextBeforeCalls()
    assert [splitter.push(piece) for piece in ("one", " two", " <to", "p>")] == [
        "one",
        " two",
        "",
        " <top>",
    ]


def test_schemas_with_references() -> None:
    nested = tool("add")
    nested["function"]["parameters"] = {
        "type": "object",
        "properties": {"point": {"$ref": "#/$defs/Point"}},
        "$defs": {"Point": {"type": "object", "properties": {"x": {"type": "integer"}}}},
    }
    assert call_grammar([nested, TOOLS[1]], forced=True)
    assert call_grammar([nested], forced=False, several=True)


def test_schemas_are_closed_where_they_leave_it_open() -> None:
    inner = {"type": "object", "properties": {"properties": {"type": "string"}}}
    schema = {
        "type": "object",
        "properties": {
            "inner": inner,
            "open": {**inner, "additionalProperties": True},
            "list": {"type": "array", "items": {"$ref": "#/$defs/Inner"}},
            "both": {"allOf": [inner, {"required": ["other"]}]},
            "any": {"type": "object"},
        },
        "$defs": {"Inner": inner},
    }
    result = closed(schema)
    assert result["additionalProperties"] is False
    assert result["properties"]["inner"] == {**inner, "additionalProperties": False}
    assert result["$defs"]["Inner"]["additionalProperties"] is False
    for name in ("open", "list", "both", "any"):
        assert result["properties"][name] == schema["properties"][name]
    assert "additionalProperties" not in schema


def test_strings_without_a_limit_get_one() -> None:
    text = {"type": "string"}
    schema = {
        "type": "object",
        "properties": {
            "free": text,
            "optional": {"anyOf": [text, {"type": "null"}]},
            "union": {"type": ["string", "null"]},
            "short": {**text, "maxLength": 3},
            "one": {**text, "enum": ["a"]},
            "count": {"type": "integer"},
        },
    }
    limited = closed(schema, 50)["properties"]
    assert limited["free"] == {**text, "maxLength": 50}
    assert limited["optional"]["anyOf"][0] == {**text, "maxLength": 50}
    assert limited["union"]["maxLength"] == 50
    for name in ("short", "one", "count"):
        assert limited[name] == schema["properties"][name]
    assert closed(schema)["properties"] == schema["properties"]
