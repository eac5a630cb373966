# SPDX-License-Identifier: Apache-2.0
"""The group `woq`: finds commands by name, and turns every way to end into an exit code.

0: done; 1: failed; 2: the command line is wrong; 130: interrupted; 143: terminated.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from ._options import near

__all__ = ["COMMANDS", "app"]

# In the order of the help; each is `command` in the module of its name.
COMMANDS = (
    "quantize",
    "export",
    "convert",
    "generate",
    "chat",
    "eval",
    "inspect",
    "bench",
    "info",
    "completion",
)

INTERRUPTED = 130


class _App(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"woq.cli.{name}").command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        known = args[0] in COMMANDS or args[0].startswith("-")
        if not known and not ctx.resilient_parsing:  # what completion asks is no mistake
            ctx.fail(f"no command {args[0]}{near(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """As click's, but descriptions go on in the next line instead of ending in dots."""
        rows = [(name, self.get_command(ctx, name)) for name in COMMANDS]
        with formatter.section("Commands"):
            formatter.write_dl(
                [
                    (name, "" if each is None else each.get_short_help_str(1000))
                    for name, each in rows
                ]
            )

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """As click's, but one line on stderr for every error."""
        if not standalone_mode:
            return super().main(*args, standalone_mode=False, **extra)
        try:
            code = super().main(*args, standalone_mode=False, **extra)
        except click.UsageError as error:
            if isinstance(error, click.exceptions.NoArgsIsHelpError):
                error.show()
                sys.exit(error.exit_code)
            path = error.ctx.command_path if error.ctx is not None else "woq"
            message = error.format_message().replace("\n", " ").rstrip(".")
            click.echo(f"{path}: {message} (see {path} --help)", err=True)
            sys.exit(error.exit_code)
        except click.ClickException as error:
            click.echo(f"woq: {error.format_message()}", err=True)
            sys.exit(error.exit_code)
        except click.Abort:
            click.echo("woq: interrupted", err=True)
            sys.exit(INTERRUPTED)
        sys.exit(code if isinstance(code, int) else 0)


def _show_version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        import woq

        click.echo(f"woq {woq.__version__}")
        ctx.exit()


@click.command(
    cls=_App,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nTo begin with:\n  woq quantize MODEL FOLDER --dtype nf4\n  woq chat FOLDER",
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_show_version,
    help="Show the version and exit.",
)
def app() -> None:
    """Quantize language models to 2 to 8 bits, and run them on this machine's CPU."""
