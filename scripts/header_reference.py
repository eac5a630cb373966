#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The C++ reference, made from the comments of the public headers (docs/conf.py calls this).

    header_reference.py HEADER      prints the section of one header

A header begins with a comment that says what it is. Each declaration of a namespace becomes an
entry: its comment as prose, then its code without the bodies of functions. Types keep the comments
of their members. Namespace detail, private sections and macros are left out. The text is Markdown;
formulas and tables in comments (check_comments.py calls them displays) become literal blocks.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import check_comments
import check_includes

INCLUDE = Path(__file__).resolve().parent.parent / "include"

# Macros that stand for declarations, such as WOQ_TARGETS(WOQ_ROW).
MACRO = re.compile(r"^[A-Z][A-Z0-9_]*\(.*\);?$")
STRING = re.compile(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])\'')
SPECIAL = re.compile(r"[\\`*_<>{}\[\]$|#~]")
NAMESPACE = re.compile(r"^(?:inline )?namespace (?P<name>[\w:]*) ?\{$")
TYPE = re.compile(r"^(?:template <.*> )?(?:enum class|enum|struct|class) (?P<name>\w+)")
FUNCTION = re.compile(r"(?P<name>operator\S+|[\w~]+)\(")
VARIABLE = re.compile(r"(?P<name>\w+)(?:\[[^\]]*\])* *(?:=.*|\{.*)?;?$")
LONGEST_TABLE = 12  # lines of a constant's value that are shown


@dataclass
class Declaration:
    name: str
    comment: list[str]
    code: list[str]


@dataclass
class Header:
    description: list[str] = field(default_factory=list)
    declarations: list[Declaration] = field(default_factory=list)


def is_public(path: Path) -> bool:
    name = path.relative_to(INCLUDE / "woq").as_posix()
    return check_includes.PRIVATE_HEADER.search(name) is None


def bare(line: str) -> str:
    """A line without comment and strings."""
    return STRING.sub('""', line).split("//")[0]


def depth_change(line: str) -> int:
    code = bare(line)
    return sum(map(code.count, "{(")) - sum(map(code.count, "})"))


def items(lines: list[str]) -> Iterator[tuple[list[str], list[str]]]:
    """(comment, code) of everything at the level of a namespace, whose lines are not indented."""
    comment: list[str] = []
    index = 0
    while index < len(lines):
        line = lines[index]
        index += 1
        match = check_comments.COMMENT.match(line)
        if match:
            comment.append(match[1])
            continue
        if not line.strip():
            comment = []
            continue
        if line.startswith("#"):
            while line.endswith("\\"):
                line = lines[index]
                index += 1
            comment = []
            continue
        if MACRO.match(line):
            comment = []
            continue
        code = [line]
        depth = depth_change(line)
        while (
            NAMESPACE.match(line) is None
            and not line.startswith("}")
            and not (depth == 0 and bare(code[-1]).rstrip().endswith((";", "}")))
        ):
            code.append(lines[index])
            depth += depth_change(lines[index])
            index += 1
        yield comment, code
        comment = []


def opens_body(statement: str) -> bool:
    """Whether the brace behind this text is that of a function and not of a value."""
    head = re.sub(r"\b(const|noexcept|override|final)\b", "", statement).rstrip()
    in_list = statement.endswith(" ") and re.search(r"\) *:[^:]", statement) is not None
    return head.endswith(")") or in_list


def structure(line: str) -> str:
    """The line with comments and the insides of strings blanked out, of the same length."""
    masked = STRING.sub(lambda match: '"' + " " * (len(match[0]) - 2) + '"', line)
    code = masked.split("//")[0]
    return code + " " * (len(line) - len(code))


def without_bodies(code: list[str]) -> list[str]:
    """Declarations only: the bodies of functions and their lists of initializers are left out."""
    text = "\n".join(code)
    kept: list[str] = []
    statement = ""
    skipped = 0  # depth inside of a body
    values = 0  # depth inside of a braced value
    for character, shape in zip(text, "\n".join(map(structure, code)), strict=True):
        if skipped:
            skipped += {"{": 1, "}": -1}.get(shape, 0)
            continue
        if shape == "{" and not values and opens_body(statement):
            skipped = 1
            head = re.sub(r"\)([\w ]*?)\s+:[^:].*\Z", r")\1", "".join(kept), flags=re.DOTALL)
            kept = [head.rstrip(), ";"]
            statement = ""
            continue
        if shape == "{" and (
            values or (re.search(r"[\w=(,] ?\Z", statement) and not is_type(statement))
        ):
            values += 1
        elif shape == "}" and values:
            values -= 1
        elif shape in ";{}":
            statement = ""
        if shape not in ";{}":
            statement += shape
        kept.append(character)
    return [line.rstrip() for line in "".join(kept).split("\n")]


def is_type(statement: str) -> bool:
    return re.search(r"\b(enum|struct|class|union)\b[^()=]*\Z", statement) is not None


def public_part(code: list[str]) -> list[str]:
    """A class without its private section, which is the last."""
    for index, line in enumerate(code):
        if line.strip() == "private:":
            shown = code[:index]
            while shown and not shown[-1].strip():
                shown.pop()
            return [*shown, "};"]
    return code


def declaration(comment: list[str], code: list[str]) -> Declaration | None:
    if code[0].startswith(("}", "template class", "static_assert", "using namespace", "extern")):
        return None
    head = " ".join(line.strip() for line in code)
    template = re.sub(r"^template <.*?> (?=\w)", "", head)
    type_ = TYPE.match(template)
    if type_:
        if re.match(r"^[\w ]+;$", template):
            return None  # declared here, defined elsewhere
        return Declaration(type_["name"], comment, public_part(without_bodies(code)))
    before_value = re.split(r" = |\{", template)[0]
    function = FUNCTION.search(before_value)
    if function and not template.startswith("using "):
        # A member that is defined outside of its class has its entry there.
        if re.search(rf"\w::{re.escape(function['name'])}\(", before_value):
            return None
        return Declaration(function["name"], comment, without_bodies(code))
    variable = VARIABLE.search(before_value)
    name = variable["name"] if variable else template
    if template.startswith("using "):
        name = template.split()[1]
    if len(code) > LONGEST_TABLE:
        code = [code[0], "    ...", code[-1]]
    return Declaration(name, comment, code)


def parse(text: str) -> Header:
    lines = text.splitlines()
    header = Header()
    start = 0
    while start < len(lines) and (match := check_comments.COMMENT.match(lines[start])):
        if "SPDX-License-Identifier" not in match[1]:
            header.description.append(match[1])
        start += 1
    namespaces: list[str] = []
    for comment, code in items(lines[start:]):
        opened = NAMESPACE.match(code[0])
        if opened:
            namespaces.append(opened["name"])
        elif code[0].startswith("}") and namespaces:
            namespaces.pop()
        elif "detail" not in "::".join(namespaces).split("::"):
            found = declaration(comment, code)
            if found:
                header.declarations.append(found)
    return header


def prose(comment: list[str]) -> Iterator[str]:
    """A comment as Markdown: displays as literal blocks, all else as text without markup."""
    lines = [check_comments.Line(number, text) for number, text in enumerate(comment)]
    displays = {part[0].number: part for part in check_comments.displays(lines)}
    index = 0
    while index < len(lines):
        if index in displays:
            display = displays[index]
            indent = min(line.indent for line in display)
            yield from ["", "```text", *(line.text[indent:] for line in display), "```", ""]
            index += len(display)
            continue
        text = lines[index].text
        if text.startswith("- ") and index > 0 and lines[index - 1].indent == 0:
            yield from [] if lines[index - 1].text.startswith("- ") else [""]
        yield SPECIAL.sub(r"\\\g<0>", text)
        index += 1


def section(path: Path) -> str:
    header = parse(path.read_text(encoding="utf-8"))
    name = path.relative_to(INCLUDE).as_posix()
    if not header.description:
        raise ValueError(f"{name} does not begin with a comment that says what it is")
    parts = [f"## {name}", "", *prose(header.description), ""]
    for entry in header.declarations:
        heading = SPECIAL.sub(r"\\\g<0>", entry.name)
        parts += [f"### {heading}", "", *prose(entry.comment), "", "```cpp", *entry.code, "```", ""]
    return "\n".join(parts)


def main() -> int:
    print(section(Path(sys.argv[1]).resolve()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
