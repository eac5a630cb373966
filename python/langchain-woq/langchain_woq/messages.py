# SPDX-License-Identifier: Apache-2.0
"""LangChain's messages in the words of chat templates."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from woq.generation import chat_template, encode_chat

from langchain_woq.tools import call_as_text, describe_tools

logger = logging.getLogger("woq")

# Parts of a message's content that are not said to the model again: tool calls are taken from
# `tool_calls`, and earlier reasoning is left out, as chat templates do.
_UNSAID = ("tool_use", "tool_call", "input_json_delta", "reasoning", "thinking")


def knows_tools(tokenizer: Any) -> bool:
    """Whether the chat template writes tools, calls and results itself, in the <tool_call> form.

    Qwen's and Hermes' do. For others they are written as text.
    """
    template = chat_template(tokenizer)
    return (
        "<tool_call>" in template
        and "tools" in template
        and "<tool_call>" not in tokenizer.all_special_tokens  # decoding would drop it
    )


def encode_messages(
    tokenizer: Any,
    messages: Sequence[BaseMessage],
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    instruction: str = "",
) -> list[int]:
    """Token ids of a conversation.

    `tools` are OpenAI-style descriptions, `instruction` is added to the system message. A template
    that refuses the roles (no system message, or no two of a role in a row) gets them merged.

    Raises:
        woq.InvalidArgument: no chat template, one that refuses the messages even so, or content
            other than text.
    """
    native = bool(tools) and knows_tools(tokenizer)
    if tools and not native:
        instruction = "\n\n".join(part for part in (describe_tools(tools), instruction) if part)
    native = native or (_has_calls(messages) and knows_tools(tokenizer))
    chat = [_as_dict(message, native) for message in messages]
    if instruction:
        if chat and chat[0]["role"] == "system":
            chat[0]["content"] = f"{chat[0]['content']}\n\n{instruction}"
        else:
            chat.insert(0, {"role": "system", "content": instruction})
    listed = list(tools) if native and tools else None
    try:
        return encode_chat(tokenizer, chat, tools=listed)
    except ValueError as error:
        merged = _merged(chat)
        if merged == chat:
            raise
        logger.info("messages are merged: %s", error)
        return encode_chat(tokenizer, merged, tools=listed)


def _has_calls(messages: Sequence[BaseMessage]) -> bool:
    return any(isinstance(m, ToolMessage) or getattr(m, "tool_calls", None) for m in messages)


def _as_dict(message: BaseMessage, native: bool) -> dict[str, Any]:
    text = _text(message)
    if isinstance(message, ToolMessage):
        return _tool_result(message, text, native)
    if isinstance(message, FunctionMessage):
        return {"role": "user", "content": f"Result of {message.name}: {text}"}
    if isinstance(message, AIMessage) and message.tool_calls:
        if native:
            calls = [
                {
                    "type": "function",
                    "id": call["id"],
                    "function": {"name": call["name"], "arguments": call["args"]},
                }
                for call in message.tool_calls
            ]
            return {"role": "assistant", "content": text, "tool_calls": calls}
        lines = [call_as_text(call["name"], call["args"]) for call in message.tool_calls]
        return {"role": "assistant", "content": "\n".join([text, *lines] if text else lines)}
    result = {"role": _role(message), "content": text}
    if message.name:
        result["name"] = message.name
    return result


def _tool_result(message: ToolMessage, text: str, native: bool) -> dict[str, Any]:
    if message.status == "error" and not text.lower().startswith("error"):
        text = f"Error: {text}"
    if native:
        result = {"role": "tool", "content": text, "tool_call_id": message.tool_call_id}
        return {**result, "name": message.name} if message.name else result
    source = f"Result of {message.name}" if message.name else "Result of the tool"
    return {"role": "user", "content": f"{source}: {text}"}


def _role(message: BaseMessage) -> str:
    if isinstance(message, ChatMessage):
        return message.role
    for kind, role in ((SystemMessage, "system"), (HumanMessage, "user"), (AIMessage, "assistant")):
        if isinstance(message, kind):
            return role
    raise ValueError(
        f"a {type(message).__name__} cannot be said to the model: pass system, human, AI, tool or "
        "chat messages"
    )


def _text(message: BaseMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    parts = []
    for block in message.content:
        if isinstance(block, str):
            parts.append(block)
        elif block.get("type") == "text":
            parts.append(str(block["text"]))
        elif isinstance(message, ToolMessage) and block.get("type") == "json":
            parts.append(json.dumps(block.get("json"), ensure_ascii=False))
        elif block.get("type") not in _UNSAID:
            raise ValueError(
                f"content of type {block.get('type')!r} in a {type(message).__name__}: the models "
                "of langchain-woq read text only"
            )
    return "".join(parts)


def _merged(chat: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The system's words said by the user, and no two messages of a role in a row."""
    merged: list[dict[str, Any]] = []
    for message in chat:
        role = "user" if message["role"] == "system" else message["role"]
        if merged and merged[-1]["role"] == role and role in ("user", "assistant"):
            merged[-1]["content"] += f"\n\n{message['content']}"
            merged[-1].setdefault("tool_calls", []).extend(message.get("tool_calls", ()))
            if not merged[-1]["tool_calls"]:
                del merged[-1]["tool_calls"]
        else:
            merged.append({**message, "role": role})
    return merged
