#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs a test program as if the CPU, which needs AVX-512 BF16, had AMX too (amx.c).

    run_amx.py [--build-dir DIR] PROGRAM [ARGUMENT...]

What the program asks the CPU cannot be intercepted, so its CPUID and XGETBV instructions are
replaced in a copy. Everything else, detection included, is the program's own code.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parent / "amx.c"
# fmaf() as one instruction, and neither fused nor reordered what the definition rounds apart.
FLAGS = "-O3 -Wall -Wextra -Werror -std=gnu11 -mfma -ffp-contract=off -fPIC -shared".split()

# Instructions of the same length that are illegal in 64-bit mode.
REPLACED = {"cpuid": (b"\x0f\xa2", b"\x06\xa2"), "xgetbv": (b"\x0f\x01\xd0", b"\x06\x01\xd0")}
INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\s+(" + "|".join(REPLACED) + r")\s*$", re.MULTILINE)


def build_library(build_dir: Path) -> Path:
    library = build_dir / "libamx.so"
    subprocess.run(["gcc", *FLAGS, str(SOURCE), "-o", str(library)], check=True)
    return library


def loaded_segments(program: bytes) -> list[tuple[int, int, int]]:
    """(address, bytes, offset in the file) of what an ELF program loads."""
    (table,) = struct.unpack_from("<Q", program, 32)
    entry_bytes, entries = struct.unpack_from("<HH", program, 54)
    segments = []
    for i in range(entries):
        kind, _, offset, address, _, size = struct.unpack_from(
            "<IIQQQQ", program, table + i * entry_bytes
        )
        if kind == 1:
            segments.append((address, size, offset))
    return segments


def replace_instructions(program: Path, copy: Path) -> int:
    """Writes the copy; how many instructions were replaced."""
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", str(program)],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    image = bytearray(program.read_bytes())
    segments = loaded_segments(bytes(image))
    count = 0
    for address, name in ((int(m[1], 16), m[2]) for m in INSTRUCTION.finditer(listing)):
        before, after = REPLACED[name]
        at = next(o + address - a for a, size, o in segments if a <= address < a + size)
        assert image[at : at + len(before)] == before, f"{name} at {address:#x}"
        image[at : at + len(before)] = after
        count += 1
    copy.write_bytes(image)
    shutil.copymode(program, copy)
    return count


def main() -> int:
    parser = argparse.ArgumentParser(description="run a test program with AMX in software")
    parser.add_argument("--build-dir", type=Path, default=Path("build/emulation"))
    parser.add_argument("program", type=Path)
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    options.build_dir.mkdir(parents=True, exist_ok=True)
    library = build_library(options.build_dir)
    copy = options.build_dir / f"{options.program.name}_amx"
    if replace_instructions(options.program, copy) == 0:
        print(f"AMX emulation: {options.program} never asks what the CPU has")
        return 1
    environment = {**os.environ, "LD_PRELOAD": str(library.resolve())}
    return subprocess.run([str(copy), *options.arguments], env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
