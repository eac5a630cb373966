# SPDX-License-Identifier: Apache-2.0
"""Options that know their part of the help, and the known value that is nearest to a wrong one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from woq.core.nearest import nearest

__all__ = ["GENERAL", "Choice", "Option", "apply", "near", "option"]

Function = TypeVar("Function", bound=Callable[..., Any])

# The title over options that belong to no group.
GENERAL = "Options"


class Option(click.Option):
    """click's, in a group of its command's help.

    Args:
        group: the title that the group has there.
    """

    def __init__(self, *arguments: Any, group: str = GENERAL, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.group = group

    def get_help_extra(self, ctx: click.Context) -> Any:
        extra = super().get_help_extra(ctx)
        if isinstance(self.show_default, str):
            extra["default"] = self.show_default  # click puts it in parentheses
        return extra


def option(*names: str, group: str = GENERAL, **keywords: Any) -> Callable[[Function], Function]:
    """`click.option` with a group."""
    return click.option(*names, cls=Option, group=group, **keywords)


def apply(function: Function, options: Sequence[Callable[[Function], Function]]) -> Function:
    """Add the options in the order of the help."""
    for each in reversed(options):
        function = each(function)
    return function


class Choice(click.Choice):
    """Names the nearest of the known values."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            known = [str(choice) for choice in self.choices]
            self.fail(
                f"{value} is unknown{near(value, known)} Known: {', '.join(known)}", param, ctx
            )


def near(value: object, known: Sequence[str]) -> str:
    """The end of a sentence about an unknown value: a full stop, or the nearest of the known."""
    names = {name.casefold(): name for name in known}
    meant = nearest(str(value).casefold(), names, cutoff=0.66)
    return f"; did you mean {names[meant]}?" if meant else "."
