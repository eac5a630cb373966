# SPDX-License-Identifier: Apache-2.0
"""`woq generate`."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import click

from ._command import Command, Output, output_of
from ._models import model_options
from ._options import option
from ._quantization import format_options
from ._sampling import generator_from, sampling_options, text_of_rates


@click.command(
    cls=Command,
    examples=[
        'woq generate smollm2-nf4 "The capital of France is" --max-new-tokens 10',
        'woq generate smollm2-nf4 --chat "What is the capital of France?" --temperature 0',
        "woq generate model.gguf --dtype nf4 - < prompt.txt",
        'woq generate smollm2-nf4 "Once upon" --seed 1 --temperature 0.8 --json',
    ],
)
@click.argument("model")
@click.argument("prompt", required=False)
@option("--chat", is_flag=True, help="PROMPT is a message, for the model's chat template.")
@option("--system", metavar="TEXT", help="A system message before it; implies --chat.")
@sampling_options
@format_options
@model_options
@click.pass_context
def command(
    ctx: click.Context,
    model: str,
    prompt: str | None,
    chat: bool,
    system: str | None,
    **settings: Any,
) -> None:
    """Continue PROMPT with MODEL, as it comes.

    Without PROMPT, or with -, the text comes from standard input. The new text goes to standard
    output, a line about tokens and times to standard error. Beams and several answers (--generation
    num_beams=4, num_return_sequences=2) are printed at the end, the answers with an empty line
    between; --json has them as "answers".
    """
    output = output_of(ctx)
    if prompt in (None, "-"):
        if sys.stdin.isatty():
            raise click.UsageError("Missing argument 'PROMPT'")
        prompt = sys.stdin.read()
    generator = generator_from(output, model, **settings)
    asked: Any = prompt
    if chat or system is not None:
        from woq.generation import encode_chat

        messages = [] if system is None else [{"role": "system", "content": system}]
        messages.append({"role": "user", "content": str(prompt)})
        asked = encode_chat(generator.tokenizer, messages)
    if output.as_json or generator.is_encoder_decoder or not generator.can_stream:
        (completions,) = generator.generate([asked])
        answers = [{"text": each.text, **each.details()} for each in completions]
        values = (
            {"model": model, **answers[0]}
            if len(answers) == 1
            else {"model": model, "answers": answers}
        )
        output.result(values, lambda: "\n\n".join(each.text for each in completions))
    else:
        completions = [_stream(output, generator, asked)]
    for completion in completions:
        output.say(f"[{text_of_rates(completion.details())}]")


def _stream(output: Output, generator: Any, prompt: Any) -> Any:
    """Print the answer while it is made; the Completion."""
    with contextlib.closing(generator.stream(prompt)) as events:
        for event in events:
            if not isinstance(event, str):
                click.echo(file=output.stdout)
                return event
            click.echo(event, file=output.stdout, nl=False)
    raise AssertionError("a stream ends with its completion")
