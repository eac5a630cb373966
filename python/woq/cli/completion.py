# SPDX-License-Identifier: Apache-2.0
"""`woq completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from ._command import Command
from ._options import Choice

# What is run once to have completion for good.
_INSTALL = {
    "bash": "woq completion bash > ~/.local/share/bash-completion/completions/woq",
    "zsh": "woq completion zsh > ~/.zfunc/_woq    # with fpath+=~/.zfunc before compinit",
    "fish": "woq completion fish > ~/.config/fish/completions/woq.fish",
}


@click.command(
    cls=Command,
    short_help="Print what makes a shell complete commands.",
    json_output=False,
    examples=['eval "$(woq completion bash)"    # for this shell', *_INSTALL.values()],
)
@click.argument("shell", type=Choice(list(_INSTALL)))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print what makes a shell complete woq's commands, options and values."""
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"this click knows no {shell}")
    click.echo(kind(ctx.find_root().command, {}, "woq", "_WOQ_COMPLETE").source())
