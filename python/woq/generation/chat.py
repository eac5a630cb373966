# SPDX-License-Identifier: Apache-2.0
"""Chat messages to token ids, by the model's own chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..core.native import InvalidArgument


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
        messages: at least one mapping with "role" and "content".
        tools: JSON schemas of functions, for templates that list them.
        continue_final_message: let the model go on with the last message. None: if that is the
            assistant's, as transformers' pipeline does.

    Raises:
        InvalidArgument: the tokenizer has no template, or its template refuses the messages.
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
            [dict(message) for message in messages],
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
    return [int(token) for token in ids]
