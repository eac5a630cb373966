#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks that no target's instructions leak out of its namespace.

    check_symbols.py [--compiler CXX] [--build-dir DIR]

An inline function that is instantiated inside a target region is a weak symbol; the linker may
pick that copy for the baseline path, and a CPU without the ISA dies of an illegal instruction. So:
compile every target, and the header-only form, for plain x86-64 without and with optimization
(without it nothing is inlined, so more weak functions exist), disassemble, and allow wide registers
only in functions that live in a target's own namespace, up to that target's width. Tile registers
count as the widest.
"""

from __future__ import annotations

import argparse
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# The wide register classes; a target may use those before its own too.
ORDER = ("ymm", "zmm", "tmm")

# A row of WOQ_TARGETS: name, enumerator, bits of a register, VNNI, BF16, options.
ROW = re.compile(r"X\((\w+), +k\w+, +(\d+), +[01], +[01], +([^,]+),")


def widths_of_targets() -> dict[str, str]:
    """Namespace of a target -> what its functions may contain. All else is baseline: SSE2."""
    rows = ROW.findall((ROOT / "include/woq/simd/target.h").read_text())
    registers = {"256": "ymm", "512": "zmm"}
    return {
        name: "tmm" if "AMX" in options else registers[bits]
        for name, bits, options in rows
        if bits in registers
    }


WIDTHS = widths_of_targets()

OPTIMIZATIONS = ("-O0", "-O2")
HEADER_ONLY_SOURCE = '#define WOQ_HEADER_ONLY 1\n#include "woq/woq.h"\n'

FUNCTION = re.compile(r"^[0-9a-f]+ <(.+)>:$")
# Mangled names of functions in woq, of their lambdas (_ZZN) and const members (_ZNK).
NAMESPACE = re.compile(r"^_Z+N[KVRO]*3woq")
# A target is a namespace of a layer, or of a part of one: woq::ops::avx2, woq::linalg::tiles::avx2.
DEEPEST = 3
# VEX- and EVEX-coded mnemonics start with v, whatever their registers; so do a few system ones.
VECTOR_MNEMONIC = re.compile(r"^v(?!er[rw]\b|m(?:call|launch|resume|xoff|func)\b)")

# Those of AMX that name no register.
TILE_MNEMONIC = re.compile(r"^(?:ld|st)tilecfg\b|^tilerelease\b")


def width_of(line: str) -> str | None:
    """The ISA class that an instruction of the disassembly needs, None for baseline ones."""
    if "%tmm" in line or TILE_MNEMONIC.match(line):
        return "tmm"
    if "%zmm" in line or "%k" in line or re.search(r"%[xy]mm(1[6-9]|2\d|3[01])", line):
        return "zmm"
    return "ymm" if "%ymm" in line or VECTOR_MNEMONIC.match(line) else None


def wide_functions(object_file: Path) -> Iterator[tuple[str, str, str]]:
    """(symbol, width, instruction) for each function and width that it uses, at first use."""
    text = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", str(object_file)],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    symbol = ""
    seen: set[tuple[str, str]] = set()
    for line in text.splitlines():
        function = FUNCTION.match(line)
        if function:
            symbol = function[1]
            continue
        instruction = line.partition(":\t")[2]
        width = width_of(instruction)
        if width and (symbol, width) not in seen:
            seen.add((symbol, width))
            yield symbol, width, instruction


def target_of(symbol: str) -> str | None:
    """The target whose namespace the function is in. Names are mangled as length and text."""
    found = NAMESPACE.match(symbol)
    rest = symbol[found.end() :] if found else ""
    for _ in range(DEEPEST):
        length = re.match(r"\d+", rest)
        if not length:
            return None
        end = length.end() + int(length[0])
        name, rest = rest[length.end() : end], rest[end:]
        if name in WIDTHS:
            return name
    return None


def leaks(object_file: Path) -> dict[str, str]:
    """Leaking symbols, each with the first instruction that it must not contain."""
    found: dict[str, str] = {}
    for symbol, width, instruction in wide_functions(object_file):
        target = target_of(symbol)
        if target is None or ORDER.index(width) > ORDER.index(WIDTHS[target]):
            found.setdefault(symbol, instruction)
    return found


def has_onednn(compiler: str) -> bool:
    """Whether the target onednn can be compiled; without oneDNN it is empty."""
    command = [compiler, "-E", "-x", "c++", "-"]
    include = "#include <oneapi/dnnl/dnnl.hpp>"
    done = subprocess.run(command, input=include, capture_output=True, text=True, check=False)
    return done.returncode == 0


def compile_object(compiler: str, source: Path, optimization: str, build_dir: Path) -> Path:
    output = build_dir / f"{source.stem}{optimization}.o"
    flags = ["-std=c++17", "-fopenmp", "-w", f"-I{ROOT / 'include'}", optimization]
    if has_onednn(compiler):
        flags.append("-DWOQ_WITH_ONEDNN=1")
    command = [compiler, *flags, "-c", str(source), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{done.stderr}leaked instructions: {source.name} fails with {optimization}")
    return output


def compile_all(compiler: str, sources: list[Path], build_dir: Path) -> list[Path]:
    build_dir.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(compile_object, compiler, source, optimization, build_dir)
            for source in sources
            for optimization in OPTIMIZATIONS
        ]
        return [job.result() for job in jobs]


def demangled(symbol: str) -> str:
    filtered = subprocess.run(["c++filt", symbol], check=True, capture_output=True, text=True)
    return filtered.stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description="check for instructions outside their target")
    parser.add_argument("--compiler", default="g++")
    parser.add_argument("--build-dir", type=Path, default=ROOT / "build" / "symbols")
    options = parser.parse_args()
    if platform.machine() != "x86_64":
        print("leaked instructions: SKIPPED, there are no targets but ref on this machine")
        return 0
    options.build_dir.mkdir(parents=True, exist_ok=True)
    header_only = options.build_dir / "header_only.cc"
    header_only.write_text(HEADER_ONLY_SOURCE)
    targets = sorted((ROOT / "src/kernels/targets").glob("*.cc"))
    leaking = 0
    unused = set(WIDTHS)  # targets without a wide instruction: the check would see nothing leak
    if not has_onednn(options.compiler):
        print("leaked instructions: SKIPPED for target onednn, there is no oneDNN (libdnnl-dev)")
        unused.discard("onednn")
    for object_file in compile_all(options.compiler, [*targets, header_only], options.build_dir):
        for symbol, width, _ in wide_functions(object_file):
            target = target_of(symbol)
            if target and width == WIDTHS[target]:
                unused.discard(target)
        for symbol, instruction in leaks(object_file).items():
            leaking += 1
            print(f"{object_file.name}: {demangled(symbol)}\n    contains: {instruction}")
    if unused:
        print(f"leaked instructions: no wide instruction at all in {sorted(unused)}")
    print(f"leaked instructions: {leaking} functions in {len(targets)} targets and header-only")
    return 1 if leaking or unused else 0


if __name__ == "__main__":
    sys.exit(main())
