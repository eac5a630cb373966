# SPDX-License-Identifier: Apache-2.0
"""`woq chat`."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections import Counter
from typing import Any

import click

from ._command import Command, Output, one_line, output_of
from ._models import model_options
from ._options import option
from ._quantization import format_options
from ._sampling import generator_from, sampling_options, text_of_rates
from ._text import Wrapped, counted

_HELP = """\
/reset         forget the conversation
/system TEXT   say TEXT before it, and begin anew; without TEXT: nothing
/exit          leave, as Ctrl-D does
Ctrl-C         stop the answer"""


@click.command(
    cls=Command,
    json_output=False,
    examples=[
        "woq chat smollm2-nf4",
        'woq chat smollm2-nf4 --system "Answer in one sentence." --temperature 0.7',
        "woq chat SmolLM2-135M-Instruct.gguf --dtype nf4 --compute-dtype int8",
    ],
)
@click.argument("model")
@option("--system", metavar="TEXT", default="", help="Said before the conversation.")
@sampling_options
@format_options
@model_options
@click.pass_context
def command(ctx: click.Context, model: str, system: str, **settings: Any) -> None:
    """Talk with MODEL, by its chat template.

    Ctrl-C stops an answer, not the program. Lines that begin with "/" are commands; /help lists
    them. Lines can be piped in, too. A line on standard error says what is loaded and which kernel
    runs it, and one behind each answer how fast it was; --quiet leaves them out.
    """
    output = output_of(ctx)
    generator = generator_from(output, model, **settings)
    from woq.generation.chat import chat_template

    chat_template(generator.tokenizer)  # says so when there is none
    output.say(_first_line(model, generator.model))
    interactive = sys.stdin.isatty()
    if interactive:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (input() then has arrow keys and history)
        output.say("/help lists the commands, Ctrl-D leaves.")
    _Conversation(generator, output, system).run(interactive)


def _first_line(name: str, model: Any) -> str:
    """Which model is loaded, and what runs it."""
    import torch

    from woq.reports.inspection import layer_facts

    layers = [layer for layer in layer_facts(model) if layer.is_linear]
    quantized = [layer for layer in layers if layer.quantized]
    on = counted(torch.get_num_threads(), "thread")
    if not quantized:
        return f"{name}: {str(model.dtype).removeprefix('torch.')}, not quantized, on {on}"

    def most(names: Any) -> str:
        counts = Counter(names).most_common()
        return str(counts[0][0]) + (f" (and {len(counts) - 1} more)" if len(counts) > 1 else "")

    return (
        f"{name}: {most(layer.weight_dtype for layer in quantized)} weights in {len(quantized)} of "
        f"{len(layers)} linear layers, {most(layer.compute_dtype for layer in quantized)} products "
        f"by {most(layer.kernel for layer in quantized)}, on {on}"
    )


class _Conversation:
    def __init__(self, generator: Any, output: Output, system: str) -> None:
        self._generator = generator
        self._output = output
        self._system = system
        self._messages: list[dict[str, str]] = []

    def run(self, interactive: bool) -> None:
        while True:
            try:
                line = input("> " if interactive else "").strip()
            except EOFError:
                if interactive:
                    self._output.say("")
                return
            except KeyboardInterrupt:
                if not interactive:
                    raise
                self._output.say("\n/exit or Ctrl-D leaves")
                continue
            if line in ("/exit", "/quit"):
                return
            if line.startswith("/"):
                self._command(*line.partition(" ")[::2])
            elif line:
                self._answer(line)

    def _command(self, name: str, rest: str) -> None:
        if name == "/reset":
            self._messages = []
            self._output.say("(the conversation begins anew)")
        elif name == "/system":
            self._system, self._messages = rest.strip(), []
            said = f"system: {self._system}" if self._system else "no system message"
            self._output.say(f"({said}; the conversation begins anew)")
        elif name == "/help":
            self._output.say(_HELP)
        else:
            self._output.say(f"{name} is no command; known:\n{_HELP}")

    def _answer(self, line: str) -> None:
        """Say `line`, print the answer, and remember both; an answer that Ctrl-C stopped as far as
        it went."""
        from woq import InvalidArgument

        asked = [*self._messages, {"role": "user", "content": line}]
        pieces: list[str] = []
        # Text for a file or another program is left as it is.
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        shown = Wrapped(width) if width else None
        details = None
        try:
            prompt = self._encode(asked)
            with contextlib.closing(self._generator.stream(prompt)) as events:
                for event in events:
                    if isinstance(event, str):
                        pieces.append(event)
                        click.echo(event if shown is None else shown.push(event), nl=False)
                    else:
                        details = event.details()
            click.echo("" if shown is None else shown.flush())
        except InvalidArgument as error:
            # The template refuses a role, or there is no room: the conversation goes on without it.
            self._output.say(f"woq: {one_line(error)}")
            return
        except KeyboardInterrupt:
            click.echo("" if shown is None else shown.flush())
            self._output.say("(stopped)")
        if details is not None:
            self._output.say(f"[{text_of_rates(details)}]")
        self._messages = [*asked, {"role": "assistant", "content": "".join(pieces)}]

    def _encode(self, messages: list[dict[str, str]]) -> list[int]:
        from woq import InvalidArgument
        from woq.generation import encode_chat

        system = [{"role": "system", "content": self._system}] if self._system else []
        ids = encode_chat(self._generator.tokenizer, [*system, *messages])
        limit = getattr(self._generator.model.config, "max_position_embeddings", None)
        if isinstance(limit, int) and len(ids) >= limit:
            raise InvalidArgument(
                f"the conversation has {len(ids)} tokens, the model {limit} positions: /reset "
                "begins anew"
            )
        return ids
