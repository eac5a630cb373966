#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks what the documentation says of the tree.

    check_docs.py [--write]

- Every path that a page of docs/, README.md or CONTRIBUTING.md names exists; of x.cc, its folder.
- The table "Files touched to add ..." in docs/design.md is made from docs/files_touched.json, by
  --write. Each row there lists the files, and an example that exists (a dtype, a target, ...): a
  regular expression that each of the files must match, and no other file of the product may, but
  for those under "also" (they use the example; a new one would not touch them).
- Every layer and every room of check_includes.py has a row in docs/design.md.
- Every decision is listed in docs/decisions/index.md, in order.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import check_includes

ROOT = Path(__file__).resolve().parent.parent

PATH = re.compile(r"\b((?:include|src|python|scripts|tests|benchmarks|cmake|examples)/[\w./-]*\w)")
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
PRODUCT = ("include", "src", "python/woq")
BEGIN, END = "<!-- files touched: begin -->", "<!-- files touched: end -->"


def pages(root: Path) -> Iterator[Path]:
    yield from sorted((root / "docs").rglob("*.md"))
    for name in ("README.md", "CONTRIBUTING.md"):
        if (root / name).is_file():
            yield root / name


def check_paths(root: Path) -> Iterator[str]:
    for page in pages(root):
        text = FENCE.sub("", page.read_text(encoding="utf-8"))
        for path in sorted(set(PATH.findall(text))):
            # x stands for a name that the reader chooses.
            wanted = re.sub(r"/x[._]\w.*$", "", path)
            if not (root / wanted).exists():
                yield f"{page.relative_to(root)}: there is no {path}"


def product_files(root: Path) -> list[Path]:
    kinds = {".h", ".cc", ".py", ".pyi"}
    found = (path for folder in PRODUCT for path in (root / folder).rglob("*"))
    return sorted(path for path in found if path.suffix in kinds)


def check_row(root: Path, row: dict[str, Any]) -> Iterator[str]:
    what, example = row["what"], re.compile(row["example"])
    allowed = {*row["files"], *row.get("also", ())}
    for name in row["files"]:
        path = root / name
        if not path.is_file():
            yield f"files_touched.json: {what}: there is no {name}"
        elif not example.search(path.read_text(encoding="utf-8")):
            yield f"files_touched.json: {what}: {name} does not match '{row['example']}'"
    for path in product_files(root):
        name = path.relative_to(root).as_posix()
        if name not in allowed and example.search(path.read_text(encoding="utf-8")):
            yield f"files_touched.json: {what}: {name} matches '{row['example']}', too"


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| to add | files | which | see for example |", "|---|---|---|---|"]
    for row in rows:
        files = ", ".join(f"`{name}`" for name in row["files"])
        how = f"{files}. {row['how']}" if "how" in row else files
        lines.append(f"| {row['what']} | {len(row['files'])} | {how} | {row['see']} |")
    return "\n".join(lines)


def check_files_touched(root: Path, write: bool) -> Iterator[str]:
    manifest = root / "docs" / "files_touched.json"
    page = root / "docs" / "design.md"
    rows = json.loads(manifest.read_text(encoding="utf-8"))
    for row in rows:
        yield from check_row(root, row)
    text = page.read_text(encoding="utf-8")
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        yield f"docs/design.md: the lines '{BEGIN}' and '{END}' are missing"
        return
    wanted = f"{head}{BEGIN}\n{table(rows)}\n{END}{tail}"
    if write:
        page.write_text(wanted, encoding="utf-8")
    elif text != wanted:
        yield "docs/design.md: 'files touched' is not files_touched.json: check_docs.py --write"


def check_rooms(root: Path) -> Iterator[str]:
    text = (root / "docs" / "design.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    rooms = {*check_includes.CPP_LAYERS, *check_includes.PYTHON_ROOMS} - {"__main__"}
    for room in sorted(rooms - rows):
        yield f"docs/design.md: '{room}' of check_includes.py has no row"


def check_decisions(root: Path) -> Iterator[str]:
    folder = root / "docs" / "decisions"
    there = sorted(path.stem for path in folder.glob("[0-9]*.md"))
    listed = re.findall(r"^(\d{4}-[\w-]+)$", (folder / "index.md").read_text(), re.MULTILINE)
    if listed != there:
        differs = sorted({*listed} ^ {*there}) or listed
        yield f"docs/decisions/index.md: the list of decisions differs: {', '.join(differs)}"


def violations(root: Path, write: bool = False) -> list[str]:
    return [
        *check_files_touched(root, write),
        *check_paths(root),
        *check_rooms(root),
        *check_decisions(root),
    ]


def main() -> int:
    found = violations(ROOT, "--write" in sys.argv[1:])
    print("\n".join([*found, f"documentation: {len(found)} violations"]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
