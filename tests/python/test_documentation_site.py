# SPDX-License-Identifier: Apache-2.0
"""What the documentation's reference pages are made from: headers, docstrings, lists of pages."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

import woq

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


header_reference = load_script("header_reference")

HEADER = """\
// SPDX-License-Identifier: Apache-2.0
// What the header is for. A formula:
//     y = a * x
//     z = b
// and more.
#pragma once

#define WOQ_MACRO(x) \\
  (x)

namespace woq {

namespace detail {
inline int hidden() { return 1; }
}  // namespace detail

// A kind.
enum class Kind : uint8_t { kOne, kTwo };

// Holds things.
class Holder {
 public:
  explicit Holder(int size) : size_(size), more_{size} {
    if (size) { fail("}"); }
  }
  // How many.
  int size() const { return size_; }
  std::vector<float> values = {};

 private:
  int size_ = 0;
};

// Adds.
template <class T>
inline T add(T a,
             T b = {}) {
  // A comment of the body.
  return a + b;
}

inline int Holder::elsewhere() const { return 0; }
class Later;
inline constexpr int kSize = 16;

}  // namespace woq
"""


def test_a_header_becomes_declarations_with_their_comments() -> None:
    header = header_reference.parse(HEADER)
    assert header.description[0] == "What the header is for. A formula:"
    assert {entry.name: entry.comment for entry in header.declarations} == {
        "Kind": ["A kind."],
        "Holder": ["Holds things."],
        "add": ["Adds."],
        "kSize": [],
    }
    code = {entry.name: "\n".join(entry.code) for entry in header.declarations}
    assert code["Holder"] == (
        "class Holder {\n public:\n  explicit Holder(int size);\n  // How many.\n"
        "  int size() const;\n  std::vector<float> values = {};\n};"
    )
    assert code["add"] == "template <class T>\ninline T add(T a,\n             T b = {});"
    assert code["kSize"] == "inline constexpr int kSize = 16;"


def test_formulas_of_a_header_keep_their_lines() -> None:
    text = "\n".join(header_reference.prose(header_reference.parse(HEADER).description))
    assert "```text\ny = a * x\nz = b\n```" in text


def test_a_header_without_a_description_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(header_reference, "INCLUDE", tmp_path)
    (tmp_path / "x.h").write_text("#pragma once\n")
    with pytest.raises(ValueError, match=r"x\.h does not begin with a comment"):
        header_reference.section(tmp_path / "x.h")


def public_headers() -> list[Path]:
    headers = sorted((ROOT / "include" / "woq").rglob("*.h"))
    return [path for path in headers if header_reference.is_public(path)]


def test_functions_and_types_of_every_header_are_found() -> None:
    """Counts by another rule than the parser's: lines that begin a definition of a namespace."""
    begins = re.compile(
        r"^(?:inline|constexpr|struct|class|enum) [^;=]*?(\w+)(?:\(| [:{]| final)", re.M
    )
    for path in public_headers():
        text = re.sub(
            r"^namespace ([\w:]*::)?detail \{.*?^\}  // namespace \1?detail$",
            "",
            path.read_text(),
            flags=re.M | re.S,
        )
        names = {match[1] for match in begins.finditer(text) if f"::{match[1]}(" not in match[0]}
        found = {entry.name for entry in header_reference.parse(path.read_text()).declarations}
        assert names <= found, path


def test_every_folder_of_headers_has_a_page() -> None:
    pages = "".join(path.read_text() for path in (DOCS / "reference").glob("cpp-*.md"))
    for path in public_headers():
        folder = path.parent.relative_to(ROOT / "include" / "woq").as_posix()
        assert f"<!-- headers of {folder} -->" in pages, f"docs/reference has no page for {folder}"


def test_every_public_name_is_in_the_python_reference() -> None:
    text = (DOCS / "reference" / "python.md").read_text()
    documented = set(re.findall(r"^\.\. auto\w+:: ([\w.]+)$", text, re.MULTILINE))
    assert set(woq.__all__) <= documented
