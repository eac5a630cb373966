# SPDX-License-Identifier: Apache-2.0
"""Sphinx's settings for this folder; scripts/build_docs.sh builds the site into build/docs/html."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
INCLUDE = ROOT / "include" / "woq"

sys.path.insert(0, str(ROOT / "scripts"))
import header_reference  # noqa: E402

project = "woq"
author = "woq's contributors"
copyright = author
release = re.findall(r'#define WOQ_VERSION "(.*)"', (INCLUDE / "woq.h").read_text())[0]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}
myst_heading_anchors = 3
default_role = "code"  # docstrings write names between single backticks

html_theme = "furo"
html_title = f"woq {release}"

autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# A line of this form in a page stands for the public headers of a folder of include/woq.
HEADERS = re.compile(r"^<!-- headers of (\S+) -->$", re.MULTILINE)


# A line of this form stands for a page of the repository's root, whose links start there.
ROOT_PAGE = re.compile(r"^<!-- the file (\w+\.md) -->$", re.MULTILINE)
LINK = re.compile(r"\]\((?!\w+:|#)([^)]+)\)")


def from_docs(match: re.Match[str]) -> str:
    target = match[1]
    if target.startswith("docs/"):
        return f"]({target.removeprefix('docs/')})"
    page = target.lower()
    return f"]({page if (ROOT / 'docs' / page).is_file() else '../' + target})"


def fill_in(_app: Any, _docname: str, source: list[str]) -> None:
    def sections(match: re.Match[str]) -> str:
        headers = sorted((INCLUDE / match[1]).glob("*.h"))
        return "\n".join(map(header_reference.section, filter(header_reference.is_public, headers)))

    def root_page(match: re.Match[str]) -> str:
        return LINK.sub(from_docs, (ROOT / match[1]).read_text(encoding="utf-8"))

    source[0] = ROOT_PAGE.sub(root_page, HEADERS.sub(sections, source[0]))


def setup(app: Any) -> None:
    app.connect("source-read", fill_in)
