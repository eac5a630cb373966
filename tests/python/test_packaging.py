# SPDX-License-Identifier: Apache-2.0
"""The wheel as users get it: contents, repair by auditwheel, fresh environments, CMake package."""

from __future__ import annotations

import email
import json
import os
import re
import sys
import sysconfig
import tarfile
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import pytest
from build_support import CONSUMER, ENVIRONMENT, ROOT, run
from elftools.elf.elffile import ELFFile


def only(paths: list[Path]) -> Path:
    assert len(paths) == 1, paths
    return paths[0]


def pip_wheel(directory: Path, *options: str) -> Path:
    run(sys.executable, "-m", "pip", "wheel", ROOT, "--no-deps", "-w", directory, *options)
    return only(list(directory.glob("woq-*.whl")))


def new_environment(directory: Path, wheel: Path) -> Path:
    """A virtual environment with the wheel and what it depends on; returns its Python."""
    run(sys.executable, "-m", "venv", "--without-pip", directory)
    python = directory / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", wheel)
    return python


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Makefile's wheel, which is also the installed one; otherwise a new one."""
    if "WOQ_WHEEL" in os.environ:
        return ROOT / os.environ["WOQ_WHEEL"]
    build = tmp_path_factory.mktemp("build")
    settings = (f"build-dir={build}", "cmake.define.WOQ_PORTABLE=ON")
    options = [f"--config-settings={setting}" for setting in settings]
    return pip_wheel(build, "--no-build-isolation", *options)


@pytest.fixture(scope="session")
def repaired_wheel(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As it is published. libgomp stays outside, and is no library that the wheel asks for: a copy
    under a new name would be a second thread pool beside torch's, which brings its own under the
    plain SONAME."""
    output = tmp_path_factory.mktemp("repaired")
    command = (sys.executable, "-m", "auditwheel", "repair", "--plat", "manylinux_2_28_x86_64")
    run(*command, "-w", output, wheel)
    return only(list(output.glob("woq-*.whl")))


@pytest.fixture(scope="session")
def repaired_python(repaired_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_environment(tmp_path_factory.mktemp("fresh"), repaired_wheel)


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_wheel_carries_package_headers_library_and_cmake_files(wheel: Path) -> None:
    names = names_in(wheel)
    headers = {f"woq/include/{path.relative_to(ROOT / 'include')}" for path in
               (ROOT / "include").rglob("*.h")}  # fmt: skip
    sources = (ROOT / "python").glob("woq/**/*.py*")
    modules = {str(path.relative_to(ROOT / "python")) for path in sources if path.suffix != ".pyc"}
    expected = {
        "woq/_woq.pyi",
        "woq/cli/__init__.py",
        "woq/reports/page.html",
        "woq/py.typed",
        f"woq/_woq{sysconfig.get_config_var('EXT_SUFFIX')}",
        "woq/lib/libwoq.a",
        "woq/lib/pkgconfig/woq.pc",
        *(
            f"woq/share/cmake/woq/woq{part}.cmake"
            for part in ("Config", "ConfigVersion", "Targets")
        ),
    }
    assert expected | headers | modules <= names
    unwanted = [n for n in names if "bindings" in n or "__pycache__" in n or n.endswith(".cc")]
    assert unwanted == []


def test_wheel_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        info = next(n.partition("/")[0] for n in archive.namelist() if ".dist-info/" in n)
        metadata = email.message_from_bytes(archive.read(f"{info}/METADATA"))
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
        assert f"{info}/licenses/LICENSE" in archive.namelist()
    always = [r for r in metadata.get_all("Requires-Dist", []) if "extra ==" not in r]
    assert [requirement.partition(">")[0] for requirement in always] == ["numpy"]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "woq = woq.hf.autoload:install" in entry_points
    assert "woq = woq.cli:main" in entry_points


def needed_libraries(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.startswith("woq/_woq.") and ".so" in n)
        with archive.open(name) as file:
            dynamic: Any = ELFFile(file).get_section_by_name(".dynamic")
            return {tag.needed for tag in dynamic.iter_tags("DT_NEEDED")}


def test_extension_needs_the_system_libraries_and_never_torch(
    wheel: Path, repaired_wheel: Path
) -> None:
    allowed = {"libc.so.6", "libgcc_s.so.1", "libm.so.6", "ld-linux-x86-64.so.2"}
    assert needed_libraries(wheel) <= allowed
    assert needed_libraries(repaired_wheel) <= allowed


def test_repaired_wheel_runs_on_glibc_2_28(repaired_wheel: Path) -> None:
    shown = run(sys.executable, "-m", "auditwheel", "show", repaired_wheel)
    tags = [tuple(map(int, tag)) for tag in re.findall(r"manylinux_(\d+)_(\d+)_x86_64", shown)]
    assert tags, shown
    assert max(tags) <= (2, 28), shown


def test_repaired_wheel_bundles_nothing(repaired_wheel: Path) -> None:
    assert "manylinux" in repaired_wheel.name
    assert [name for name in names_in(repaired_wheel) if "libgomp" in name] == []


# Multiplies, then reports where woq came from, which OpenMP runtimes the process has mapped, and
# how many threads it has. torch comes from this test's own environment, put last on the path.
PROBE = """
import json, os, site, sys

def libgomps():
    with open("/proc/self/maps") as maps:
        return sorted({line.split()[-1] for line in maps if "gomp" in line or "omp.so" in line})

def threads():
    return len(os.listdir("/proc/self/task"))

def use_torch():
    site.addsitedir(sys.argv[2])
    import torch
    torch.set_num_threads(2)
    torch.ones(512, 512) @ torch.ones(512, 512)
    torch.ones(1 << 22).exp_()

def use_woq():
    import numpy as np
    import woq
    # Large enough for a second thread.
    weight = np.random.default_rng(0).standard_normal((2048, 512), dtype=np.float32)
    quantized = woq.quantize_rtn(weight, dtype="int4_clip", group_size=32)
    x = np.ones((3, 512), dtype=np.float32)
    out = np.empty((3, 2048), dtype=np.float32)
    woq.Linear(quantized).forward(x, out)
    np.testing.assert_allclose(out, x @ quantized.dequantize().T, atol=512 * 1.2e-7 * 512)
    return woq.__file__

counts = []
for name in sys.argv[1].split(","):
    result = {"torch": use_torch, "woq": use_woq}[name]()
    counts.append(threads())
    woq_file = result or locals().get("woq_file")
print(json.dumps({
    "file": woq_file, "libgomps": libgomps(), "threads": counts, "torch": "torch" in sys.modules,
}))
"""


def probe(python: Path, order: str) -> dict[str, Any]:
    # As on a machine with two cores, and without numpy's own pool, so that the count is known.
    threads = {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1"}
    command = (python, "-c", textwrap.dedent(PROBE), order, sysconfig.get_path("purelib"))
    report: dict[str, Any] = json.loads(run(*command, env={**ENVIRONMENT, **threads}, cwd="/"))
    return report


def test_repaired_wheel_works_without_torch(repaired_python: Path) -> None:
    report = probe(repaired_python, "woq")
    assert report["file"].startswith(str(repaired_python.parent.parent))
    assert not report["torch"]
    assert len(report["libgomps"]) == 1, report
    assert report["threads"] == [2]


@pytest.mark.parametrize("order", ["woq,torch,woq", "torch,woq"])
def test_repaired_wheel_shares_torch_openmp_runtime(order: str, repaired_python: Path) -> None:
    report = probe(repaired_python, order)
    assert len(report["libgomps"]) == 1, report
    # Whoever comes first starts the pool and the other joins it: no thread beyond torch's own.
    assert report["threads"][-1] == probe(repaired_python, "torch")["threads"][-1], report


def test_consumer_builds_against_the_wheel(repaired_python: Path, tmp_path: Path) -> None:
    query = "import woq; print(woq.get_cmake_dir()); print(woq.get_include())"
    cmake_dir, include = run(repaired_python, "-c", query, cwd="/").split()
    assert (Path(include) / "woq" / "woq.h").is_file()
    run("cmake", "-S", CONSUMER, "-B", tmp_path, "-G", "Ninja", f"-Dwoq_DIR={cmake_dir}",
        "-DCMAKE_BUILD_TYPE=Release", "-DCONSUMER_TARGETS=woq")  # fmt: skip
    run("cmake", "--build", tmp_path)
    assert "100% tests passed" in run("ctest", "--test-dir", tmp_path)


def test_source_distribution_is_what_a_build_needs(tmp_path: Path) -> None:
    """No script or CMake project that asks for files which are left out."""
    build = "import sys, scikit_build_core.build as b; print(b.build_sdist(sys.argv[1]))"
    archive = tmp_path / run(sys.executable, "-c", build, tmp_path, cwd=ROOT).split()[-1]
    with tarfile.open(archive) as contents:
        contents.extractall(tmp_path, filter="data")
    folder = tmp_path / archive.name.removesuffix(".tar.gz")
    assert {path.name for path in folder.iterdir()} == {
        *("CHANGELOG.md", "CMakeLists.txt", "LICENSE", "PKG-INFO", "README.md", "SECURITY.md"),
        *("cmake", "docs", "examples", "include", "pyproject.toml", "python", "src"),
    }
    assert {path.name for path in (folder / "python").iterdir()} == {"woq"}
    assert {path.suffix for path in (folder / "docs").rglob("*") if path.is_file()} <= {
        ".md", ".svg"
    }  # fmt: skip
    printed = run("cmake", "-S", folder, "-B", tmp_path / "build")
    assert "the tests are left out: there is no folder tests/cpp" in printed


@pytest.mark.slow
def test_pip_installs_from_source_with_build_isolation(tmp_path: Path) -> None:
    """What `pip install .` does for a user: every build requirement comes from pyproject.toml."""
    isolated = pip_wheel(tmp_path / "wheel", f"--config-settings=build-dir={tmp_path / 'build'}")
    assert "woq/lib/libwoq.a" in names_in(isolated)
    python = new_environment(tmp_path / "environment", isolated)
    assert run(python, "-c", "import woq; print(woq.__version__)", cwd="/").strip()
