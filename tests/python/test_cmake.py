# SPDX-License-Identifier: Apache-2.0
"""woq as other C++ projects use it: inside their CMake project, as a shared library, by pkg-config,
and by a compiler that was not told enough."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from build_support import CONSUMER, ENVIRONMENT, ROOT, attempt, run
from elftools.elf.dynamic import DynamicSegment
from elftools.elf.elffile import ELFFile

VERSION = re.search(r'WOQ_VERSION "(.*)"', (ROOT / "include/woq/woq.h").read_text())
assert VERSION is not None
SONAME = "libwoq.so." + ".".join(VERSION[1].split(".")[:2])

PARENT = """
cmake_minimum_required(VERSION 3.20)
project(parent CXX)
add_subdirectory({root} woq)
add_executable(app main.cc)
target_link_libraries(app PRIVATE woq::woq)
"""


def configure_parent(folder: Path, *options: str) -> tuple[str, dict[str, str]]:
    """What CMake prints for a project that contains woq, and source file -> how it is compiled."""
    (folder / "CMakeLists.txt").write_text(PARENT.format(root=ROOT))
    (folder / "main.cc").write_text("int main() {}\n")
    build = folder / "build"
    shutil.rmtree(build, ignore_errors=True)
    printed = run(
        "cmake", "-S", folder, "-B", build, "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", *options
    )
    database = json.loads((build / "compile_commands.json").read_text())
    commands = {Path(entry["file"]).name: entry["command"] for entry in database}
    assert {"main.cc", "avx2.cc", "imatrix.cc"} <= commands.keys()
    return printed, commands


def levels(command: str) -> list[str]:
    return [word for word in shlex.split(command) if word.startswith("-O")]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), ["-O2"]),
        (("-DCMAKE_BUILD_TYPE=Debug",), ["-O2"]),
        (("-DCMAKE_BUILD_TYPE=Release",), ["-O3"]),
        (("-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-g -O1"), ["-O1"]),
        (("-DCMAKE_CXX_FLAGS=-O0",), ["-O0"]),
    ],
    ids=["no build type", "debug", "release", "optimized debug", "not optimized on purpose"],
)
def test_the_library_is_optimized_in_any_parent(
    flags: tuple[str, ...], expected: list[str], tmp_path: Path
) -> None:
    printed, commands = configure_parent(tmp_path, *flags)
    own = {name: levels(command) for name, command in commands.items() if name != "main.cc"}
    assert set(map(tuple, own.values())) == {tuple(expected)}
    assert ("compiled with -O2 nevertheless" in printed) == (expected == ["-O2"])
    assert levels(commands["main.cc"]) == [level for level in expected if level != "-O2"]


def test_several_build_types_at_a_time(tmp_path: Path) -> None:
    _, commands = configure_parent(
        tmp_path, "-G", "Ninja Multi-Config", "-DCMAKE_CONFIGURATION_TYPES=Debug"
    )
    assert levels(commands["avx2.cc"]) == ["-O2"]


def test_a_parent_installs_woq_only_when_asked(tmp_path: Path) -> None:
    for options, expected in (((), False), (("-DWOQ_INSTALL=ON",), True)):
        configure_parent(tmp_path, *options)
        scripts = (tmp_path / "build").rglob("cmake_install.cmake")
        assert any("woqConfig.cmake" in script.read_text() for script in scripts) == expected


def test_without_googletest(tmp_path: Path) -> None:
    lacking = ("cmake", "-S", ROOT, "-B", tmp_path, "-DCMAKE_DISABLE_FIND_PACKAGE_GTest=ON")
    printed = run(*lacking)
    assert "woq: the tests are left out: GoogleTest is not found" in printed
    failed = attempt(*lacking, "-DWOQ_BUILD_TESTS=ON")
    assert failed.returncode != 0
    assert "WOQ_BUILD_TESTS=ON, but GoogleTest is not found" in " ".join(failed.stderr.split())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("-std=c++17",), "woq needs OpenMP: compile and link with -fopenmp"),
        (("-std=c++14", "-fopenmp"), "woq is C++17: compile with -std=c++17"),
        (
            ("-std=c++17", "-fopenmp", "-DWOQ_HEADER_ONLY=1"),
            "header-only kernels without -O2 are some 50 times slower",
        ),
    ],
    ids=["OpenMP", "C++17", "optimization"],
)
def test_the_compiler_says_what_is_missing(
    flags: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    source = tmp_path / "unit.cc"
    source.write_text("#include <woq/linear.h>\n")
    # No code is made: a whole header-only unit takes a minute.
    done = attempt("g++", *flags, f"-I{ROOT / 'include'}", "-fsyntax-only", source)
    assert message in done.stderr.replace('" "', "")


@pytest.fixture(scope="module")
def shared_prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installation of the shared library."""
    folder = tmp_path_factory.mktemp("shared")
    options = ("-DBUILD_SHARED_LIBS=ON", "-DWOQ_BUILD_TESTS=OFF", "-DWOQ_WITH_ONEDNN=OFF")
    # A preset of many projects, which must not hide what programs call.
    hidden = "-DCMAKE_CXX_VISIBILITY_PRESET=hidden"
    run("cmake", "-S", ROOT, "-B", folder / "build", "-G", "Ninja", *options, hidden)
    run("cmake", "--build", folder / "build")
    run("cmake", "--install", folder / "build", "--prefix", folder / "prefix")
    return folder / "prefix"


@pytest.mark.slow
def test_shared_library(shared_prefix: Path, tmp_path: Path) -> None:
    (library,) = shared_prefix.rglob("libwoq.so")
    with library.open("rb") as file:
        dynamic = next(s for s in ELFFile(file).iter_segments() if isinstance(s, DynamicSegment))
        (soname,) = (tag.soname for tag in dynamic.iter_tags("DT_SONAME"))
    assert soname == SONAME
    assert (library.parent / soname).is_file()
    run("cmake", "-S", CONSUMER, "-B", tmp_path, "-G", "Ninja", "-DCONSUMER_TARGETS=woq",
        f"-DCMAKE_PREFIX_PATH={shared_prefix}")  # fmt: skip
    run("cmake", "--build", tmp_path)
    assert soname in run("ldd", tmp_path / "consumer_woq")
    assert "100% tests passed" in run("ctest", "--test-dir", tmp_path)


@pytest.mark.slow
def test_pkg_config(shared_prefix: Path, tmp_path: Path) -> None:
    if shutil.which("pkg-config") is None:
        pytest.skip("there is no pkg-config")
    (file,) = shared_prefix.rglob("woq.pc")
    environment = {**ENVIRONMENT, "PKG_CONFIG_PATH": str(file.parent)}
    assert run("pkg-config", "--modversion", "woq", env=environment).strip() == VERSION[1]
    flags = shlex.split(run("pkg-config", "--cflags", "--libs", "woq", env=environment))
    sources = sorted(CONSUMER.glob("*.cc"))
    run("g++", "-std=c++17", *sources, *flags, "-o", tmp_path / "app")
    (library,) = shared_prefix.rglob("libwoq.so")
    environment["LD_LIBRARY_PATH"] = str(library.parent)
    assert "0 wrong elements" in run(tmp_path / "app", env=environment)
