# SPDX-License-Identifier: Apache-2.0
"""The repository's own checks can fail: each rule is broken once, and must be reported."""

from __future__ import annotations

import importlib.util
import platform
import shutil
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


check_includes = load_script("check_includes")
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
    "binding of a private header": (
        "python/woq/bindings/module.cc",
        '#include "woq/kernels/gemv-inl.h"\n',
        "bindings use public headers only",
    ),
    "upward import": (
        "python/woq/config.py",
        "def f():\n    from woq.quantization import quantize\n",
        "'config' must not import 'quantization'",
    ),
    "upward relative import": (
        "python/woq/config.py",
        "from . import quantization\n",
        "'config' must not import 'quantization'",
    ),
    "eager heavy import": ("python/woq/config.py", "import torch.nn\n", "must import torch inside"),
    "eager heavy import of the package": (
        "python/woq/__init__.py",
        "from .linear import WeightOnlyLinear\n",
        "must import 'linear' lazily",
    ),
    "unknown module": ("python/woq/magic.py", "", "module 'magic' has no line"),
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


def test_lazy_and_type_checking_imports_are_allowed(tmp_path: Path) -> None:
    file = tmp_path / "python/woq/config.py"
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
