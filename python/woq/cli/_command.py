# SPDX-License-Identifier: Apache-2.0
"""What every command does alike: --debug, --verbose, --quiet and --json, logging, progress bars,
and errors as one line."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import click

from ._options import GENERAL, Option
from ._text import fitted

__all__ = ["Command", "Failure", "Output", "one_line", "output_of"]

_KEY = "woq.output"
_OUTPUT = "What is shown"


class Failure(click.ClickException):
    """An error that is the user's to mend: the message says how."""


class Output:
    """Where a command's words go: its result to stdout, everything else to stderr."""

    def __init__(self, *, as_json: bool, quiet: bool, debug: bool) -> None:
        self.as_json, self.quiet, self.debug = as_json, quiet, debug
        self.stdout = sys.stdout

    @property
    def progress(self) -> bool:
        """Whether progress bars are shown."""
        return not self.quiet and sys.stderr.isatty()

    def say(self, text: str) -> None:
        """A line about what is going on."""
        if not self.quiet:
            click.echo(fitted(text, sys.stderr), err=True)

    def result(self, values: Any, text: Callable[[], str]) -> None:
        """The result: `values` as JSON with --json, else what `text` gives."""
        if self.as_json:
            shown = json.dumps(_plain(values), indent=1, allow_nan=False)
        else:
            shown = fitted(text(), self.stdout)
        click.echo(shown, file=self.stdout)


def output_of(ctx: click.Context) -> Output:
    output: Output = ctx.meta[_KEY]
    return output


class Command(click.Command):
    """A command with the options that all have, and examples in its help.

    Args:
        examples: command lines; each may have a comment behind a "#".
        json_output: whether there is a --json.
    """

    def __init__(
        self, *args: Any, examples: Sequence[str] = (), json_output: bool = True, **keywords: Any
    ) -> None:
        super().__init__(*args, **keywords)
        self.examples = list(examples)
        if json_output:
            self.params.append(
                Option(
                    ["--json", "as_json"],
                    group=_OUTPUT,
                    is_flag=True,
                    expose_value=False,
                    callback=_remember,
                    help="Print JSON to stdout, and nothing else there.",
                )
            )
        for names, text in (
            (["-q", "--quiet"], "No progress bars, no remarks."),
            (["-v", "--verbose"], "Tell what the library logs."),
            (["--debug"], "Show the traceback of an error."),
        ):
            self.params.append(
                Option(
                    names,
                    group=_OUTPUT,
                    is_flag=True,
                    expose_value=False,
                    callback=_remember,
                    help=text,
                )
            )

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Each group of options under its title, those of the command itself first."""
        groups: dict[str, list[tuple[str, str]]] = {GENERAL: []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                # click's own --help is none of ours.
                group = parameter.group if isinstance(parameter, Option) else _OUTPUT
                groups.setdefault(group, []).append(record)
        for title, records in groups.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.examples:
            with formatter.section("Examples"):
                formatter.write("".join(f"{' ' * 2}{line}\n" for line in self.examples))
        super().format_epilog(ctx, formatter)

    def invoke(self, ctx: click.Context) -> Any:
        flags = ctx.meta.get(_KEY + ".flags", {})
        output = Output(
            as_json=flags.get("as_json", False),
            quiet=flags.get("quiet", False),
            debug=flags.get("debug", False),
        )
        ctx.meta[_KEY] = output
        with contextlib.ExitStack() as stack:
            stack.enter_context(_libraries(output, verbose=flags.get("verbose", False)))
            if output.as_json:
                # Whatever a library prints must not get between.
                stack.enter_context(contextlib.redirect_stdout(sys.stderr))
            try:
                return super().invoke(ctx)
            except (click.ClickException, click.exceptions.Exit, click.Abort):
                raise
            except Exception as error:
                if isinstance(error, OSError):
                    _give_up_full_stdout()
                    if error.errno == errno.EPIPE:
                        raise  # click ends quietly: nobody reads on
                if output.debug:
                    click.echo(traceback.format_exc(), err=True, nl=False)
                raise Failure(_message(error)) from error
            except KeyboardInterrupt:
                if output.debug:
                    click.echo(traceback.format_exc(), err=True, nl=False)
                raise


def _give_up_full_stdout() -> None:
    """What could not be written to stdout would fail again when Python closes it."""
    try:
        sys.stdout.flush()
    except OSError:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _remember(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    ctx.meta.setdefault(_KEY + ".flags", {})[parameter.name] = value


def one_line(text: object) -> str:
    return " ".join(str(text).split())


def _message(error: Exception) -> str:
    """One line for any error."""
    from woq import InvalidArgument, Unsupported
    from woq.core.extras import what_is_missing

    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return one_line(error.strerror) + where
    if isinstance(error, (InvalidArgument, Unsupported, OSError)):
        return one_line(error)
    if isinstance(error, ImportError) and (missing := what_is_missing(error)) is not None:
        # An import of a command's own does not say what needs the package.
        return one_line(error) if "woq[" in str(error) else f"this command needs {missing}"
    # Nobody foresaw this one, so that the message alone may say little.
    return f"{type(error).__name__}: {one_line(error)} (--debug shows where)"


def _plain(value: Any) -> Any:
    """JSON has neither NaN nor infinities: null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        kind = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        click.echo(f"{record.name}: {kind}{record.getMessage()}", err=True)


@contextlib.contextmanager
def _libraries(output: Output, *, verbose: bool) -> Iterator[None]:
    """What the libraries may say meanwhile: woq's warnings; with --verbose all that is logged."""
    logger, handler = logging.getLogger("woq"), _Handler()
    level = logging.INFO if verbose else logging.ERROR if output.quiet else logging.WARNING
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    # They are read when transformers and tqdm are imported, which no command has done yet.
    settings = {}
    if not verbose:
        settings["TRANSFORMERS_VERBOSITY"] = "error"
    if not output.progress:
        settings |= {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    kept = {name: os.environ.get(name) for name in settings}
    os.environ.update({name: os.environ.get(name, value) for name, value in settings.items()})
    try:
        with warnings.catch_warnings():
            if not verbose:
                warnings.simplefilter("ignore")
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
