# SPDX-License-Identifier: Apache-2.0
"""Chat messages to token ids, by the model's own chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..core.native import InvalidArgument


class ChatIds(list[int]):
    """Token ids of a conversation up to where an answer begins that is a text of its own: in
    vocabularies that mark the beginnings of words its first mark is no blank."""


def chat_template(tokenizer: Any) -> str:
    """The text of the tokenizer's chat template.

    Raises:
        InvalidArgument: it has none.
    """
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, Mapping):
        template = template.get("default")
    if not template:
        raise InvalidArgument(
            "the tokenizer has no chat template, so it is not known how the model expects "
            "messages: take an instruction-tuned model, set tokenizer.chat_template, or pass the "
            "prompt as a string"
        )
    return str(template)


def encode_chat(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    continue_final_message: bool | None = None,
    **template_arguments: Any,
) -> list[int]:
    """Token ids of a conversation, up to where the model's answer begins.

    Args:
        messages: at least one mapping with "role" and "content". Content is a text, or a list of
            parts {"type": "text", "text": ...}, whose texts are joined.
        tools: JSON schemas of functions, for templates that list them.
        continue_final_message: let the model go on with the last message. None: if that is the
            assistant's, as transformers' pipeline does.

    Raises:
        InvalidArgument: the tokenizer has no template, its template refuses the messages, or a
            message has content other than text.
    """
    chat_template(tokenizer)
    if not messages or not all(isinstance(m, Mapping) and "role" in m for m in messages):
        raise InvalidArgument(
            f'a chat is a list of at least one {{"role": ..., "content": ...}}, got {messages!r}'
        )
    for index, message in enumerate(messages):
        if message.get("content") is None and not message.get("tool_calls"):
            raise InvalidArgument(
                f"message {index} ({message!r}) has no content: a text (it may be empty), or "
                "tool_calls, is needed"
            )
    if continue_final_message is None:
        continue_final_message = messages[-1]["role"] == "assistant"
    from jinja2 import TemplateError

    try:
        ids = tokenizer.apply_chat_template(
            [_with_text(index, message) for index, message in enumerate(messages)],
            tools=None if tools is None else list(tools),
            add_generation_prompt=not continue_final_message,
            continue_final_message=continue_final_message,
            tokenize=True,
            return_dict=False,
            **template_arguments,
        )
    except TemplateError as error:
        roles = ", ".join(str(message["role"]) for message in messages)
        raise InvalidArgument(
            f"the model's chat template refuses messages of the roles {roles}: {error}"
        ) from error
    if continue_final_message:
        return [int(token) for token in ids]
    return ChatIds(int(token) for token in ids)


def _with_text(index: int, message: Mapping[str, Any]) -> dict[str, Any]:
    """The message with its content as one text: a template would write down a list as Python
    does."""
    content = message.get("content")
    if content is None or isinstance(content, str):
        return dict(message)
    if not isinstance(content, Sequence):
        raise InvalidArgument(
            f"the content of message {index} is a {type(content).__name__}: a text, or a list of "
            '{"type": "text", "text": ...}, is needed'
        )
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) else part
        if not isinstance(text, str) or (isinstance(part, Mapping) and part.get("type") != "text"):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise InvalidArgument(
                f"message {index} has a part of type {kind!r}: the model reads text only, so that "
                'a part must be a text or {"type": "text", "text": ...}'
            )
        texts.append(text)
    return {**message, "content": "".join(texts)}
