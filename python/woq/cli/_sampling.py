# SPDX-License-Identifier: Apache-2.0
"""The options of a generation, and the generator that has them as its defaults."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from ._command import Output
from ._models import Loading, check_float, load_tokenizer
from ._options import apply, option
from ._quantization import config_from, name_and_value

__all__ = ["generator_from", "sampling_options", "text_of_rates"]

Function = TypeVar("Function", bound=Callable[..., Any])


def sampling_options(function: Function) -> Function:
    """How an answer is drawn, and where it ends."""
    of_answer = functools.partial(option, group="The answer")
    return apply(
        function,
        [
            of_answer(
                "--max-new-tokens",
                type=click.IntRange(1),
                metavar="N",
                show_default="256, or the model's",
                help="Length of the answer.",
            ),
            of_answer(
                "--temperature",
                type=click.FloatRange(0),
                metavar="T",
                show_default="the model's",
                help="0: always the likeliest token.",
            ),
            of_answer(
                "--top-p", type=click.FloatRange(0, 1), metavar="P", help="Among those likely by P."
            ),
            of_answer(
                "--top-k", type=click.IntRange(0), metavar="N", help="Among the N likeliest."
            ),
            of_answer("--seed", type=int, metavar="N", help="Makes sampling repeatable."),
            of_answer(
                "--stop", multiple=True, metavar="TEXT", help="End the answer where this begins."
            ),
            of_answer(
                "--generation",
                "options",
                multiple=True,
                metavar="NAME=VALUE",
                help="Any other field of transformers' GenerationConfig.",
            ),
        ],
    )


def generator_from(
    output: Output,
    model: str,
    *,
    max_new_tokens: int | None,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    seed: int | None,
    stop: Sequence[str],
    options: Sequence[str],
    loading: Loading,
    **settings: Any,
) -> Any:
    """The TextGenerator for all options of a command line; `settings` are those of the format."""
    config = config_from(**settings) if any(settings.values()) else None
    given = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
        "stop": list(stop) or None,
        **dict(name_and_value("--generation", text) for text in options),
    }
    source = loading.find(model)
    if config is not None:
        check_float(source)
    from woq import InvalidArgument
    from woq.generation import check_options, find_task, load_generator

    chosen = {name: value for name, value in given.items() if value is not None}
    try:
        check_options(chosen)  # before minutes of loading
    except InvalidArgument as error:
        raise click.UsageError(str(error)) from error
    tokenizer = load_tokenizer(source)
    loaded = loading.load(source, output, config=config, tokenizer=tokenizer)
    decoder = not getattr(loaded.config, "is_encoder_decoder", False)
    task = find_task("text-generation" if decoder else "text2text-generation")
    try:
        return load_generator(task, loaded, tokenizer, options=chosen)
    except InvalidArgument as error:  # what transformers and this model refuse
        raise click.UsageError(str(error)) from error


def text_of_rates(details: Mapping[str, Any]) -> str:
    """A line about one answer's tokens and times."""
    rate = details["tokens_per_second"]
    after = "" if rate is None else f", then {rate:.1f} tokens/s"
    return (
        f"{details['prompt_tokens']} tokens in, {details['completion_tokens']} out "
        f"({details['finish_reason']}); {details['time_to_first_token']:.2f} s to the first{after}"
    )
