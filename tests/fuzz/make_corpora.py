#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes the inputs that the fuzzers start from: small valid files of every kind, and one of every
way to be wrong that a mutation would find late.

    make_corpora.py            writes tests/fuzz/corpora/<target>/
    make_corpora.py --check    fails if what is there is not what would be written
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

CORPORA = Path(__file__).resolve().parent / "corpora"


def dat(entries: list[tuple[bytes, int, list[float]]], trailer: bytes = b"") -> bytes:
    parts = [struct.pack("<i", len(entries))]
    for name, calls, values in entries:
        parts.append(struct.pack("<i", len(name)) + name)
        parts.append(struct.pack(f"<ii{len(values)}f", calls, len(values), *values))
    return b"".join(parts) + trailer


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def padded(data: bytes, alignment: int) -> bytes:
    return data + bytes(-len(data) % alignment)


def gguf(
    metadata: list[bytes],
    tensors: list[tuple[bytes, tuple[int, ...], list[float]]],
    alignment: int = 32,
    version: int = 3,
) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata)) + b"".join(metadata)
    data = b""
    for name, shape, values in tensors:
        head += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        head += struct.pack("<IQ", 0, len(data))
        data += padded(struct.pack(f"<{len(values)}f", *values), alignment)
    return padded(head, alignment) + data


def imatrix_files() -> dict[str, bytes]:
    kind = text(b"general.type") + struct.pack("<I", 8) + text(b"imatrix")
    datasets = text(b"imatrix.datasets") + struct.pack("<IIQ", 9, 8, 2) + text(b"a") + text(b"b")
    chunk = text(b"imatrix.chunk_size") + struct.pack("<II", 4, 128)
    other = text(b"other") + struct.pack("<IIQ2d", 9, 12, 2, 1.5, 2.5)
    aligned = text(b"general.alignment") + struct.pack("<II", 4, 64)
    weight = [
        (b"blk.0.w.in_sum2", (4, 1), [1.0, 4.0, 9.0, 16.0]),
        (b"blk.0.w.counts", (1, 1), [8.0]),
    ]
    experts = [
        (b"e.weight.in_sum2", (2, 3), [1.0, 2.0, 3.0, 4.0, 0.0, 0.0]),
        (b"e.weight.in_sum", (2, 3), [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        (b"e.weight.counts", (1, 3), [2.0, 1.0, 0.0]),
    ]
    one = (b"blk.0.attn_k.weight", 4, [2.0, 8.0, 0.0])
    whole = gguf([kind, datasets, chunk], weight)
    return {
        "dat": dat([one, (b"output.weight", 1, [1.0])], struct.pack("<ii3s", 7, 3, b"abc")),
        "dat_oldest": dat([one]),
        "dat_name_twice": dat([one, one]),
        "dat_not_finite": dat([(b"x", 1, [float("nan")])]),
        "gguf": whole,
        "gguf_aligned": gguf([kind, aligned, other], experts, alignment=64, version=2),
        "gguf_cut": whole[:-40],
        "gguf_no_counts": gguf([kind], weight[:1]),
        "gguf_huge_shape": gguf([kind], [(b"x.in_sum2", (2**63, 2**63), []), *weight]),
    }


TARGETS = {"imatrix": imatrix_files}


def main() -> int:
    wanted = {
        CORPORA / target / name: data
        for target, files in TARGETS.items()
        for name, data in files().items()
    }
    if "--check" in sys.argv[1:]:
        there = {path: path.read_bytes() for path in CORPORA.rglob("*") if path.is_file()}
        wrong = sorted(
            str(path) for path in {*wanted, *there} if wanted.get(path) != there.get(path)
        )
        for path in wrong:
            print(f"{path}: not what make_corpora.py writes", file=sys.stderr)
        return 1 if wrong else 0
    for path, data in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
