# SPDX-License-Identifier: Apache-2.0
"""The repository's own checks can fail: each rule is broken once, and must be reported."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


check_comments = load_script("check_comments")
check_includes = load_script("check_includes")
check_docs = load_script("check_docs")
check_symbols = load_script("check_symbols")

FORBIDDEN = {
    "upward include": (
        "include/woq/core/a.h",
        '#include "woq/quant/b.h"\n',
        "'core' must not include quant/b.h",
    ),
    "unknown layer": ("include/woq/magic/a.h", "", "layer 'magic' has no line"),
    "target in target": (
        "include/woq/kernels/targets/avx512.h",
        '#include "woq/kernels/targets/avx2.h"\n',
        "a target must not include another one",
    ),
    "target in translation unit": (
        "src/kernels/targets/ref.cc",
        '  #  include "woq/kernels/targets/avx2.h"\n',
        "a target must not include another one",
    ),
    "intrinsic outside the vocabulary": (
        "include/woq/quant/a.h",
        "__m256 f(__m256 a) {\n",
        "__m256 belongs in the vocabulary",
    ),
    "target attribute outside a region": (
        "src/kernels/targets/ref.cc",
        '__attribute__((target("avx2"))) void f();\n',
        'target(" belongs in the vocabulary',
    ),
    "binding of a private header": (
        "python/woq/bindings/module.cc",
        '#include "woq/kernels/gemv-inl.h"\n',
        "bindings use public headers only",
    ),
    "upward import": (
        "python/woq/config/a.py",
        "def f():\n    from woq.quantizing.quantize import quantize\n",
        "'quantizing' is above 'config'",
    ),
    "upward relative import": (
        "python/woq/config/a.py",
        "from .. import quantizing\n",
        "'quantizing' is above 'config'",
    ),
    "upward import of the other package": (
        "python/woq/generation/a.py",
        "from langchain_woq import ChatWoq\n",
        "'langchain_woq' is above 'generation'",
    ),
    "private module of another room": (
        "python/woq/cli/a.py",
        "from woq.compat import _itrex_models\n",
        "woq.compat._itrex_models, which is private to 'compat'",
    ),
    "private name of another room": (
        "python/langchain-woq/langchain_woq/a.py",
        "from woq.generation.text import _hidden\n",
        "woq.generation.text._hidden, which is private to 'generation'",
    ),
    "extension module": (
        "python/woq/formats/a.py",
        "from woq import _woq\n",
        "woq.core.native loads it",
    ),
    "eager heavy import": (
        "python/woq/config/a.py",
        "import torch.nn\n",
        "must import torch.nn inside",
    ),
    "eager heavy import of a file that is an exception": (
        "python/woq/hf/location.py",
        "from transformers import AutoConfig\n",
        "must import transformers.AutoConfig inside",
    ),
    "eager heavy import of the package": (
        "python/woq/__init__.py",
        "from torch import nn\n",
        "'woq' must import torch.nn inside",
    ),
    "unknown room": ("python/woq/magic/a.py", "", "room 'magic' has no line"),
    "unknown module": ("python/woq/magic.py", "", "room 'magic' has no line"),
}


@pytest.mark.parametrize("rule", FORBIDDEN)
def test_include_rules_report(rule: str, tmp_path: Path) -> None:
    path, text, message = FORBIDDEN[rule]
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(text)
    found = check_includes.violations(tmp_path)
    assert len(found) == 1, found
    assert path in found[0]
    assert message in found[0]


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def test_light_modules_import_heavy_ones_lazily(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "python/woq/modules/layer.py": "import torch\n",
            "python/woq/hf/autoload.py": "from ..modules.layer import WeightOnlyLinear\n",
            "python/woq/__init__.py": "from .modules import layer\n",
        },
    )
    assert [message.partition(" must ")[2] for message in check_includes.violations(tmp_path)] == [
        "import 'woq.modules.layer' lazily, for it imports torch"
    ] * 2


def test_circles_of_several_modules_are_reported(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "python/woq/modules/a.py": "from .b import name\n",
            "python/woq/modules/b.py": "def f():\n    import woq.modules.c\n",
            "python/woq/modules/c.py": "from woq.modules import a, d\n",
            "python/woq/modules/d.py": "",
        },
    )
    (message,) = check_includes.violations(tmp_path)
    assert message.endswith("woq.modules.a -> woq.modules.b -> woq.modules.c -> woq.modules.a")


def test_rooms_cover_every_module_of_both_packages() -> None:
    modules = check_includes.python_modules(ROOT)
    files = [
        *(ROOT / "python/woq").rglob("*.py"),
        *(ROOT / "python/langchain-woq/langchain_woq").rglob("*.py"),
    ]
    assert sorted(modules.values()) == sorted(files)
    rooms = {check_includes.room_of(module) for module in modules} - {""}
    assert rooms == set(check_includes.PYTHON_ROOMS)
    assert check_includes.violations(ROOT) == []


def test_lazy_and_type_checking_imports_are_allowed(tmp_path: Path) -> None:
    file = tmp_path / "python/woq/config/a.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import torch\n"
        "def f():\n    import torch\n    return torch\n"
    )
    assert check_includes.violations(tmp_path) == []


# A shared template instantiated inside a region, as a careless kernel would, beside proper kernels.
LEAK = """
#include <immintrin.h>
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,amx-tile")
template <int> inline float shared(const float* x) {
  return _mm512_reduce_add_ps(_mm512_loadu_ps(x));
}
namespace woq::avx512 {
float inside(const float* x) { return shared<0>(x) + _mm512_reduce_add_ps(_mm512_loadu_ps(x)); }
}
namespace woq::avx2 {
float narrow(const float* x) { return _mm256_cvtss_f32(_mm256_loadu_ps(x)); }
float too_wide(const float* x) { return _mm512_cvtss_f32(_mm512_loadu_ps(x)); }
}
namespace woq::amx {
void tiles() { _tile_zero(0); }
float narrower(const float* x) { return _mm512_cvtss_f32(_mm512_loadu_ps(x)); }
}
namespace woq::avx512_bf16 {
void tile() { _tile_zero(0); }
void tile_state() { _tile_release(); }
}
#pragma GCC pop_options
float baseline(float x) { return x + 1; }
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="x86-64 instructions")
@pytest.mark.skipif(not (shutil.which("g++") and shutil.which("objdump")), reason="needs g++")
def test_leaked_instructions_are_found(tmp_path: Path) -> None:
    source = tmp_path / "leak.cc"
    source.write_text(LEAK)
    unoptimized = check_symbols.compile_object("g++", source, "-O0", tmp_path)
    leaking = {check_symbols.demangled(symbol) for symbol in check_symbols.leaks(unoptimized)}
    assert leaking == {
        "float shared<0>(float const*)",
        "woq::avx2::too_wide(float const*)",
        "woq::avx512_bf16::tile()",
        "woq::avx512_bf16::tile_state()",
    }


# What clang-format made of three contracts when it filled up their lines.
GARBLED = {
    "formula": (
        """\
//     P = sum over k in b of t(n, k) * a(m, k)          t: the code's centred integer or table
//     value P = P - z(n, g) * sum over k in b of a(m, k)      z: zero point minus centre; only when
//     W has zero points C = C + P * scale                                 scale: fp32 and bf16:
//     s(n, g); int8: s(n, g) * (s_a(m, b) * unit)
""",
        [2, 3, 4],
    ),
    "layout": (
        """\
//   4 bits: 64 bytes; byte 4 n + j holds W[n][k + j] in its low and W[n][k + 4 + j] in its high
//   nibble (j = 0..3) 8 bits: two blocks of 64 bytes; byte 4 n + j of block b holds W[n][k + 4 b +
//   j]
""",
        [2, 2, 3],
    ),
    "table": (
        """\
//   kF32B  : fp32 numbers that bfloat16 holds
//   kBf16  : bfloat16, each 8 elements in the order 0 2 4 6 1 3 5 7, the pairs that one shift of
//   packed codes yields kS8    : int8
""",
        [3],
    ),
    "formula in prose": (
        """\
// The objective is the output error of the layers that share the input, L = tr(D H D^T) for D
// = W - Q(W a) / a, so that no data needs to be kept.
""",
        [2],
    ),
    "long line": ("// " + "word " * 20 + "\n", [1]),
}


@pytest.mark.parametrize("name", GARBLED)
def test_garbled_comments_are_reported(name: str) -> None:
    text, lines = GARBLED[name]
    assert sorted(number for number, _ in check_comments.violations_in(text)) == lines


def filled_up(display: list[str], width: int) -> list[str]:
    """What a formatter makes of comment lines that are longer than `width`: their ends go to the
    front of the next line."""
    lines: list[str] = []
    carried: list[str] = []
    for line in display:
        indent = " " * (len(line) - len(line.lstrip()))
        words = carried + line.split(" ")[len(indent) :]
        kept: list[str] = []
        while words and len(indent) + len(" ".join([*kept, words[0]])) <= width:
            kept.append(words.pop(0))
        lines.append(indent + " ".join(kept))
        carried = words
    return [*lines, indent + " ".join(carried)] if carried else lines


def test_filling_up_any_table_of_the_sources_is_reported() -> None:
    tables = 0
    for path in check_comments.sources(ROOT):
        for comment in check_comments.comments(path.read_text()):
            for display in check_comments.displays(comment):
                lines = [line.text for line in display]
                items = [
                    line for line in lines if len(line) - len(line.lstrip()) == display[0].indent
                ]
                if len(items) < 2 or len(items) != len(lines):
                    continue
                tables += 1
                # The last line as the only one that is too long would stay a line of its own.
                width = max(map(len, lines[:-1])) - 1
                text = "".join(f"// {line}\n" for line in filled_up(lines, width))
                assert list(check_comments.violations_in(text)), f"{path}:\n{text}"
    assert tables >= 10


def test_a_formatter_that_fills_up_comments_is_reported(tmp_path: Path) -> None:
    (tmp_path / ".clang-format").write_text("BasedOnStyle: Google\nReflowComments: Always\n")
    (report,) = check_comments.violations(tmp_path)
    assert "ReflowComments: Never" in report
    shutil.copy(ROOT / ".clang-format", tmp_path)
    assert check_comments.violations(tmp_path) == []


def test_comments_of_the_sources_pass() -> None:
    assert check_comments.violations(ROOT) == []


def test_files_touched_are_counted(tmp_path: Path) -> None:
    for name, text in (("a.h", "kNew"), ("b.h", "kNew"), ("c.h", "kNew"), ("d.h", "")):
        (tmp_path / "include").mkdir(exist_ok=True)
        (tmp_path / "include" / name).write_text(text)
    row = {"what": "x", "example": r"\bkNew\b", "files": ["include/a.h", "include/b.h"]}
    (too_many,) = check_docs.check_row(tmp_path, row)
    assert "include/c.h matches" in too_many
    assert not list(check_docs.check_row(tmp_path, {**row, "also": ["include/c.h"]}))
    row["files"] += ["include/c.h", "include/d.h", "include/e.h"]
    stale, missing = check_docs.check_row(tmp_path, row)
    assert "include/d.h does not match" in stale
    assert "there is no include/e.h" in missing


def test_paths_that_documents_name_exist(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "there.py").write_text("")
    names = ("scripts/there.py", "scripts/x.py", "scripts/x_fuzz.cc", "scripts/gone.py")
    (tmp_path / "README.md").write_text(", ".join(names))
    (report,) = check_docs.check_paths(tmp_path)
    assert report == "README.md: there is no scripts/gone.py"


def test_documents_say_what_is() -> None:
    assert check_docs.violations(ROOT) == []
