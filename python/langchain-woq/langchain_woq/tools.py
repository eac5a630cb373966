# SPDX-License-Identifier: Apache-2.0
"""Tool calls as text: how they are described to the model, forced by a grammar, and read back.

A call is written as Qwen and Hermes models do: <tool_call> and </tool_call> around JSON with a
name and arguments.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.messages.tool import InvalidToolCall, ToolCall
from langchain_core.utils.json_schema import dereference_refs
from woq.generation import Grammar, json_fragment

BEGIN, END = "<tool_call>", "</tool_call>"
_CALL = re.compile(re.escape(BEGIN) + r"\s*(.*?)\s*(?:" + re.escape(END) + r"|\Z)", re.DOTALL)


def describe_tools(tools: Sequence[Mapping[str, Any]]) -> str:
    """For the system message, where the chat template does not list tools."""
    lines = [json.dumps(tool["function"], ensure_ascii=False) for tool in tools]
    return (
        "You can call these tools:\n"
        + "\n".join(lines)
        + "\nTo call a tool, answer with its name and arguments taken from the user's message, in "
        f'this form:\n{BEGIN}\n{{"name": <name>, "arguments": {{<arguments>}}}}\n{END}'
    )


def call_as_text(name: str, arguments: Mapping[str, Any]) -> str:
    call = json.dumps({"name": name, "arguments": dict(arguments)}, ensure_ascii=False)
    return f"{BEGIN}\n{call}\n{END}"


def chosen_tools(
    tools: Sequence[Mapping[str, Any]], tool_choice: Any
) -> tuple[list[Mapping[str, Any]], bool]:
    """The tools that may be called, and whether one must be.

    `tool_choice` is None or "auto" (the model decides), "none", "any" or "required" or True (it
    must call one), a tool's name, or {"type": "function", "function": {"name": ...}}.

    Raises:
        ValueError: a choice of another kind, or a name that no tool has.
    """
    if tool_choice is None or tool_choice is False or tool_choice == "auto":
        return list(tools), False
    if tool_choice == "none":
        return [], False
    if not tools:
        raise ValueError(f"tool_choice={tool_choice!r}, but there are no tools to choose from")
    if tool_choice is True or tool_choice in ("any", "required"):
        return list(tools), True
    name = tool_choice
    if isinstance(tool_choice, Mapping):
        name = (tool_choice.get("function") or tool_choice).get("name")
    found = [tool for tool in tools if tool["function"]["name"] == name]
    if not found:
        names = ", ".join(repr(tool["function"]["name"]) for tool in tools)
        raise ValueError(
            f"tool_choice={tool_choice!r} names no tool: choose 'auto', 'none', 'any' or one of "
            f"{names}"
        )
    return found, True


def call_grammar(
    tools: Sequence[Mapping[str, Any]],
    *,
    forced: bool,
    several: bool = False,
    max_string_length: int | None = None,
    answer: str | None = None,
) -> Grammar:
    """Text that may end in calls of these tools, or nothing but calls where they are forced.

    A call begun is a call that the tool's schema allows. `answer`, a term of a Lark grammar, stands
    instead of a text: either that, or calls.
    """
    call = {"anyOf": [_call_schema(tool["function"], max_string_length) for tool in tools]}
    body = f'"\\n" {json_fragment(call)} "\\n{END}"'
    repeat = f'("\\n{BEGIN}" {body})*' if several else ""
    if forced:
        rules = f'start: "{BEGIN}" {body} {repeat}'
    elif answer is not None:
        rules = f'start: {answer} | "{BEGIN}" {body} {repeat}'
    else:
        rules = (
            f'start: TEXT | begin {body} {repeat}\nbegin[lazy]: TEXT "{BEGIN}"\nTEXT: /(.|\\n)*/'
        )
    return Grammar.lark(f"%llguidance {{}}\n{rules}\n")


def closed(schema: Any, max_string_length: int | None = None) -> Any:
    """The schema without properties that it does not name, where it does not say that it has some.

    JSON schema allows any others; a model would make them up. `max_string_length` (characters) is
    for strings that the schema does not limit otherwise.
    """
    if isinstance(schema, list):
        return [closed(item, max_string_length) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    result: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _NAMED:
            result[key] = {name: closed(item, max_string_length) for name, item in value.items()}
        elif key in ("allOf", "enum", "const", "default", "examples"):
            result[key] = value  # of "allOf" each part has to allow the others' properties
        else:
            result[key] = closed(value, max_string_length)
    if "properties" in result and "allOf" not in result:
        result.setdefault("additionalProperties", False)
    if max_string_length is not None and "string" in _types(result) and not _LIMITS & set(result):
        result["maxLength"] = max_string_length
    return result


def _types(schema: Mapping[str, Any]) -> list[Any]:
    types = schema.get("type", [])
    return types if isinstance(types, list) else [types]


_LIMITS = {"maxLength", "enum", "const", "pattern", "format"}
# Keywords whose values are schemas by name.
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")


def _call_schema(function: Mapping[str, Any], max_string_length: int | None) -> dict[str, Any]:
    # References would point to the root of a larger schema now.
    parameters = dereference_refs(dict(function.get("parameters") or {}))
    arguments = closed(parameters, max_string_length)
    arguments.pop("$defs", None)
    return {
        "type": "object",
        "properties": {
            "name": {"const": function["name"]},
            "arguments": {
                "type": "object",
                "properties": {},
                "additionalProperties": False,
                **arguments,
            },
        },
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _begun(text: str, mark: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `mark`."""
    return next((n for n in range(len(mark) - 1, 0, -1) if text.endswith(mark[:n])), 0)


@dataclass
class Answer:
    """An answer's text and the calls in it."""

    text: str
    calls: list[ToolCall] = field(default_factory=list)
    invalid: list[InvalidToolCall] = field(default_factory=list)


def read_calls(text: str, finish_reason: str = "stop") -> Answer:
    """Take the calls out of an answer; what does not parse is an invalid call and says why."""
    answer = Answer(_CALL.sub("", text).strip() if BEGIN in text else text)
    for match in _CALL.finditer(text):
        identity = f"call_{uuid.uuid4().hex[:24]}"
        try:
            # The answer may have been cut within the end mark.
            call = json.loads(match[1][: len(match[1]) - _begun(match[1], END)])
            name, arguments = call["name"], call.get("arguments", call.get("parameters", {}))
            if not isinstance(name, str) or not isinstance(arguments, dict):
                raise TypeError("name must be a string and arguments an object")
        except (ValueError, KeyError, TypeError) as error:
            why = f"not a tool call in JSON: {error}"
            if finish_reason == "length" and not match[0].endswith(END):
                why = "the call was cut before it was complete: raise max_tokens"
            answer.invalid.append(
                InvalidToolCall(
                    type="invalid_tool_call",
                    name=None,
                    args=match[1],
                    id=identity,
                    error=why,
                )
            )
            continue
        answer.calls.append(ToolCall(type="tool_call", name=name, args=arguments, id=identity))
    return answer


class TextBeforeCalls:
    """Of a stream's pieces, the text that is certain to stand before the first call."""

    def __init__(self) -> None:
        self._held = ""
        self._call_began = False

    def push(self, piece: str) -> str:
        if self._call_began:
            return ""
        text = self._held + piece
        at = text.find(BEGIN)
        if at >= 0:
            self._call_began = True
            return text[:at].rstrip()
        keep = _begun(text, BEGIN)
        # Blanks between the text and a call belong to neither.
        keep += len(text[: len(text) - keep]) - len(text[: len(text) - keep].rstrip())
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, once it is known that no call follows."""
        held, self._held = self._held, ""
        return "" if self._call_began else held
