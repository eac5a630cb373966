# SPDX-License-Identifier: Apache-2.0
"""Structured output: from a schema to a grammar for the answer and a parser of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from operator import itemgetter
from typing import Any

from langchain_core.exceptions import OutputParserException
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import (
    JsonOutputKeyToolsParser,
    PydanticToolsParser,
)
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from woq.generation import Grammar, json_fragment

from langchain_woq.tools import closed


class _Whole:
    """Refuses answers that were cut, which LangChain's parsers mend or pass over."""

    def parse_result(self, result: list[Any], *, partial: bool = False) -> Any:
        metadata = getattr(getattr(result[0], "message", None), "response_metadata", {})
        if metadata.get("finish_reason") in ("length", "cancelled"):
            raise OutputParserException(
                "the answer was cut before it was complete (finish reason "
                f"{metadata['finish_reason']!r}): raise max_tokens, or limit the schema's strings "
                f"and lists (maxLength, maxItems); got {result[0].text!r}",
                llm_output=result[0].text,
            )
        return super().parse_result(result, partial=partial)  # type: ignore[misc]


class WholeJsonParser(_Whole, JsonOutputParser):
    """A dict from the answer."""


class WholePydanticParser(_Whole, PydanticOutputParser[Any]):
    """An object of a pydantic class from the answer."""


class WholeJsonToolParser(_Whole, JsonOutputKeyToolsParser):
    """A dict from the call of one tool."""


class WholePydanticToolParser(_Whole, PydanticToolsParser):
    """An object of a pydantic class from the call of its tool."""


METHODS = ("json_schema", "function_calling", "json_mode")


def response_grammar(
    response_format: Any, max_string_length: int | None = None
) -> tuple[Grammar | None, str]:
    """The grammar of an OpenAI-style response_format, and what the model is told of it.

    `max_string_length` (characters) is for strings of a schema that does not limit them.

    Raises:
        ValueError: not {"type": "text"}, {"type": "json_object"} or {"type": "json_schema",
            "json_schema": {"schema": ...}}, or a schema that cannot be enforced.
    """
    schema = _response_schema(response_format, max_string_length)
    if schema is None:
        return None, ""
    if response_format["type"] == "json_object":
        return Grammar.json_schema(schema), ""
    described = response_format["json_schema"]
    grammar = Grammar.json_schema(schema, lenient=described.get("strict") is False)
    told = json.dumps(described["schema"], ensure_ascii=False)
    return grammar, f"Answer with JSON that follows this schema:\n{told}"


def response_term(response_format: Any, max_string_length: int | None = None) -> str | None:
    """The same as a term of a Lark grammar, for an answer that may also be a tool call; None for a
    text.

    Raises:
        ValueError: as `response_grammar`.
    """
    schema = _response_schema(response_format, max_string_length)
    if schema is None:
        return None
    described = response_format.get("json_schema") or {}
    return json_fragment(schema, lenient=described.get("strict") is False)


def _response_schema(response_format: Any, max_string_length: int | None) -> dict[str, Any] | None:
    """The schema that an OpenAI-style response_format holds the answer to; None for a text.

    Raises:
        ValueError: as `response_grammar`.
    """
    if response_format is None or response_format == {"type": "text"}:
        return None
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    if kind == "json_object":
        return {"type": "object"}
    described = response_format.get("json_schema") if kind == "json_schema" else None
    if not isinstance(described, Mapping) or not isinstance(described.get("schema"), Mapping):
        raise ValueError(
            "response_format must be {'type': 'json_object'} or {'type': 'json_schema', "
            f"'json_schema': {{'schema': ...}}}}, got {response_format!r}"
        )
    return dict(closed(described["schema"], max_string_length))


def bind_schema(
    model: Any,
    schema: dict[str, Any] | type,
    *,
    method: str,
    include_raw: bool,
    strict: bool | None,
) -> Runnable[Any, Any]:
    """The model, bound to answer by the schema, and the parser of its answers."""
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known are {', '.join(map(repr, METHODS))}")
    is_class = isinstance(schema, type) and is_basemodel_subclass(schema)
    traced = {"kwargs": {"method": method, "strict": strict}, "schema": schema}
    bound: Runnable[Any, Any]
    parser: Runnable[Any, Any]
    if method == "function_calling":
        name = convert_to_openai_tool(schema)["function"]["name"]
        bound = model.bind_tools(
            [schema], tool_choice=name, strict=strict, ls_structured_output_format=traced
        )
        parser = (
            WholePydanticToolParser(tools=[schema], first_tool_only=True)
            if is_class
            else WholeJsonToolParser(key_name=name, first_tool_only=True)
        )
    else:
        response_format: dict[str, Any] = {"type": "json_object"}
        if method == "json_schema":
            described = convert_to_json_schema(schema)
            response_format = {
                "type": "json_schema",
                "json_schema": {"schema": described, "strict": strict},
            }
        bound = model.bind(response_format=response_format, ls_structured_output_format=traced)
        parser = WholePydanticParser(pydantic_object=schema) if is_class else WholeJsonParser()
    if not include_raw:
        return bound | parser
    parsed = RunnablePassthrough.assign(
        parsed=itemgetter("raw") | parser, parsing_error=lambda _: None
    )
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=bound) | parsed.with_fallbacks([failed], exception_key="parsing_error")
