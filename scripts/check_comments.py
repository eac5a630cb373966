#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks that formulas and tables in C++ comments have kept their lines.

    check_comments.py [ROOT]

A formatter that fills up comment lines moves the end of a long line to the front of the next one.
Prose survives that, a formula or a table does not. So .clang-format leaves comments alone, and
every display (a run of comment lines that are indented by two or more) must look like one:

- Its items line up: their first separator (" = ", ":", or a gap of two blanks) is in one column.
  An item without a separator starts with the same word as the display's first line, or has its
  text below it, further to the right. Continuation lines are indented further than items.
- No comment line starts or ends with an operator, which would be a formula in two pieces.
- No comment line is longer than 100 columns.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

FOLDERS = ("include", "src", "python", "tests", "benchmarks", "examples")
SUFFIXES = {".h", ".cc", ".c"}
WIDTH = 100

COMMENT = re.compile(r"^\s*// ?(.*)$")
SEPARATOR = re.compile(
    r"(?<=\S)(?P<equals> +=(?= ))|(?<=\S)(?P<colon> *:(?= ))|(?<=\S)(?P<gap> {2,})"
)
BROKEN_FORMULA = re.compile(r"^\s*[=+*/] | [=+*/]$")
NO_REFLOW = re.compile(r"^ReflowComments: Never$", re.MULTILINE)


@dataclass(frozen=True)
class Line:
    number: int
    text: str  # behind the slashes and one blank

    @property
    def indent(self) -> int:
        return len(self.text) - len(self.text.lstrip())


def comments(text: str) -> Iterator[list[Line]]:
    """The comments of a source: runs of lines that hold nothing but a comment."""
    run: list[Line] = []
    for number, source in enumerate(text.splitlines(), 1):
        match = COMMENT.match(source)
        if match:
            run.append(Line(number, match[1]))
        elif run:
            yield run
            run = []
    if run:
        yield run


def displays(comment: list[Line]) -> Iterator[list[Line]]:
    """The indented parts of a comment, without the texts of list items ("- ...")."""
    run: list[Line] = []
    in_list = False
    for line in [*comment, Line(0, "")]:
        if line.indent >= 2 and not in_list:
            if run and line.indent < run[0].indent:
                yield run
                run = []
            run.append(line)
            continue
        if line.indent < 2:
            in_list = line.text.startswith("- ")
        if run:
            yield run
            run = []


def separator(text: str) -> tuple[str, int] | None:
    """Kind and column of the first separator of an item; a gap's column is that of its end."""
    match = SEPARATOR.search(text)
    if match is None:
        return None
    kind = str(match.lastgroup)
    return kind, match.end()


def misplaced(display: list[Line]) -> Iterator[Line]:
    """The lines that are not an item or the continuation of one."""
    first = display[0]
    column = None
    for index, line in enumerate(display):
        if line.indent > first.indent:
            continue
        found = separator(line.text)
        if found is None:
            below = display[index + 1].indent > first.indent if index + 1 < len(display) else False
            if not below and line.text.split()[0] != first.text.split()[0]:
                yield line
        elif column is None:
            column = found
        elif found != column:
            yield line


def violations_in(text: str) -> Iterator[tuple[int, str]]:
    for number, source in enumerate(text.splitlines(), 1):
        if COMMENT.match(source) and len(source) > WIDTH:
            yield number, f"a comment line has {len(source)} columns, at most {WIDTH} are allowed"
    for comment in comments(text):
        for line in comment:
            if BROKEN_FORMULA.search(line.text):
                yield line.number, "a formula is broken at an operator; give it a line of its own"
        for display in displays(comment):
            for line in misplaced(display):
                yield (
                    line.number,
                    f"'{line.text.strip()}' does not line up with the items that begin in line "
                    f"{display[0].number}: was this formula or table filled up as prose?",
                )


def sources(root: Path) -> Iterator[Path]:
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in SUFFIXES:
                yield path


def violations(root: Path) -> list[str]:
    found = [
        f"{path.relative_to(root)}:{number}: {message}"
        for path in sources(root)
        for number, message in violations_in(path.read_text(encoding="utf-8"))
    ]
    style = root / ".clang-format"
    if not NO_REFLOW.search(style.read_text(encoding="utf-8") if style.is_file() else ""):
        found.append(".clang-format: no line 'ReflowComments: Never': clang-format would re-flow")
    return found


def main() -> int:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT
    found = violations(root)
    print("\n".join(found))
    print(f"comments: {len(found)} violations in {len(list(sources(root)))} files")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
