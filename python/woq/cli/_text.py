# SPDX-License-Identifier: Apache-2.0
"""Tables and sizes for a terminal."""

from __future__ import annotations

import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["Wrapped", "counted", "fitted", "pairs", "size", "table"]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Columns in the order of the first row; text to the left, numbers to the right. On a terminal
    that is too narrow for all, the widest go below each row."""
    columns = list(rows[0])
    cells = [{name: _cell(row.get(name)) for name in columns} for row in rows]
    widths = {name: max(len(name), *(len(line[name]) for line in cells)) for name in columns}
    limit = _terminal_width()
    kept = list(columns)
    while len(kept) > 1 and sum(widths[name] + 2 for name in kept) - 2 > limit:
        kept.remove(max(kept[1:], key=lambda name: widths[name]))
    below = [name for name in columns if name not in kept]
    numeric = {name for name in columns if not any(isinstance(row.get(name), str) for row in rows)}

    def line(texts: Mapping[str, str]) -> str:
        shown = [
            texts[name].rjust(widths[name]) if name in numeric else texts[name].ljust(widths[name])
            for name in kept
        ]
        return "  ".join(shown).rstrip()

    lines = [line({name: name for name in kept}), line({name: "-" * widths[name] for name in kept})]
    for row in cells:
        lines.append(line(row))
        if below:
            rest = ", ".join(f"{name} {row[name]}" for name in below)
            lines.append(_filled(f"    {rest}", limit, "    "))
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 100 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def pairs(values: Mapping[str, Any]) -> str:
    """A line for each value; nested ones and lists in one line, which goes on in the next one at
    the end of the terminal."""
    width = max(map(len, values))
    columns = max(_terminal_width(), width + 10)
    return "\n".join(
        _filled(f"{name.ljust(width)}  {_flat(value)}", columns, " " * (width + 2))
        for name, value in values.items()
    )


def fitted(text: str, stream: Any) -> str:
    """The text with lines broken between words where they are longer than the terminal is wide."""
    width = _terminal_width(stream)
    return "\n".join(
        line if len(line) <= width else _filled(line, width, "  ") for line in text.split("\n")
    )


def _filled(line: str, width: int, indent: str) -> str:
    return textwrap.fill(
        line,
        width,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _terminal_width(stream: Any = None) -> int:
    """What goes to a file or another program has no end of a line."""
    terminal = (stream or sys.stdout).isatty()
    return shutil.get_terminal_size().columns if terminal else sys.maxsize


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_flat(each)}" for key, each in value.items()) or "-"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)


class Wrapped:
    """Text that comes in pieces, broken between words before it reaches `width` columns.

    A word is given out when it is known where it ends. Scripts that are written without blanks
    (their characters are two columns wide) are broken anywhere.
    """

    def __init__(self, width: int) -> None:
        self._width = max(1, width)
        self._column = 0
        self._blanks = ""
        self._word = ""

    def push(self, text: str) -> str:
        return "".join(map(self._put, text))

    def flush(self) -> str:
        """The word under way, once no text follows."""
        word, blanks = self._word, self._blanks
        if not word:
            return ""
        self._word = self._blanks = ""
        columns = sum(map(_columns, word))
        if self._column and self._column + len(blanks) + columns > self._width:
            self._column = columns
            return f"\n{word}"
        self._column += len(blanks) + columns
        return blanks + word

    def _put(self, character: str) -> str:
        if character == "\n":
            out = self.flush() + character
            self._column, self._blanks = 0, ""
            return out
        if character.isspace():
            out = self.flush()
            self._blanks += character
            return out
        wide = _columns(character) == 2
        out = self.flush() if wide else ""
        self._word += character
        if wide or len(self._word) >= self._width:
            out += self.flush()
        return out


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def counted(count: int, thing: str) -> str:
    return f"{count:,} {thing}" + ("" if count == 1 else "s")


def size(count: float) -> str:
    return f"{count / 2**20:,.1f} MiB"
