# SPDX-License-Identifier: Apache-2.0
"""A damaged GGUF file is one clear error that names it."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gguf")

import woq
from woq import InvalidArgument
from woq.core.native import GgufModel
from woq.formats.imatrix_files import Contents, Entry, encode_gguf

ARCHITECTURE = struct.pack("<Q", 20) + b"general.architecture" + struct.pack("<IQ", 8, 5) + b"llama"
NAME = struct.pack("<Q", 1) + b"t"


def header(tensors: int, values: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, values)


def tensor(kind: int = 0, *dimensions: int, offset: int = 0) -> bytes:
    sizes = struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
    return NAME + sizes + struct.pack("<IQ", kind, offset)


def array(kind: int, length: int) -> bytes:
    return NAME + struct.pack("<IIQ", 9, kind, length)


DAMAGED = {
    "empty": (b"", "magic number would take 4 bytes, 0 are left"),
    "short": (b"GGUF" + struct.pack("<I", 3), "number of tensors would take 8 bytes"),
    "no GGUF": (b"GGML" + bytes(20), "does not begin with 'GGUF'"),
    "old": (header(0, 0, 1), "GGUF version 1; known: 2 and 3"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version 50331648"),
    "counts": (header(2**63, 2**63), "name of metadata 0"),
    "tensors": (header(2**63, 0), "name of tensor 0"),
    "name": (
        header(1, 1) + struct.pack("<Q", 2**62) + b"general",
        "take 4611686018427387904 bytes",
    ),
    "no UTF-8": (header(0, 1) + struct.pack("<Q", 1) + b"\xff", "is not UTF-8"),
    "cut": (header(0, 1) + ARCHITECTURE[:-3], "'general.architecture' would take 5 bytes"),
    "type": (header(0, 1) + NAME + struct.pack("<I", 13), "unknown type 13"),
    "array": (header(0, 1) + array(4, 2**62), "'t' would take 4611686018427387904 elements"),
    "strings": (header(0, 1) + array(8, 2**62), "length of metadata 't' would take 8 bytes"),
    "arrays": (header(0, 1) + array(9, 1) + struct.pack("<IQ", 9, 1) * 9, "list of lists"),
    "dimensions": (header(1, 0) + NAME + struct.pack("<I", 2**31), "2147483648 dimensions"),
    "data": (header(1, 0) + tensor(0, 64) + bytes(100), "'t' has more elements than"),
    "offset": (header(1, 0) + tensor(0, 1, offset=2**63) + bytes(100), "'t' of 4 bytes at offset"),
    "alignment": (
        header(0, 1) + struct.pack("<Q", 17) + b"general.alignment" + struct.pack("<II", 4, 0),
        "alignment is 0",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files(case: str, tmp_path: Path) -> None:
    data, message = DAMAGED[case]
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    for load in (
        lambda: woq.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf"),
        lambda: woq.AutoModelForCausalLM.from_pretrained(
            tmp_path, gguf_file="m.gguf", load_in_4bit=True
        ),
        lambda: woq.pipeline("text-generation", str(path)),
    ):
        with pytest.raises(InvalidArgument, match=rf"m\.gguf: .*{message}.*is damaged"):
            load()


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A small file that is right, though it holds no model."""
    entry = Entry(np.ones((1, 6), np.float32), np.array([4]))
    path = tmp_path / "m.gguf"
    path.write_bytes(encode_gguf(Contents({"a.weight": entry, "b.weight": entry}, ["text"])))
    return path


def test_a_file_that_holds_no_model(whole: Path) -> None:
    GgufModel(str(whole))
    with pytest.raises(InvalidArgument, match=r"m\.gguf cannot be read as a model"):
        woq.AutoModelForCausalLM.from_pretrained(whole.parent, gguf_file=whole.name)


def test_every_cut_is_found(whole: Path) -> None:
    data = whole.read_bytes()
    end = len(data.rstrip(b"\0"))
    for length in range(end):
        whole.write_bytes(data[:length])
        with pytest.raises(InvalidArgument, match="is damaged"):
            GgufModel(str(whole))


def test_flipped_bytes_are_found_or_harmless(whole: Path) -> None:
    data = whole.read_bytes()
    draw = random.Random(0)
    found = 0
    for _ in range(2000):
        changed = bytearray(data)
        for _ in range(draw.randint(1, 3)):
            changed[draw.randrange(len(data))] = draw.randrange(256)
        whole.write_bytes(changed)
        try:
            GgufModel(str(whole))
        except InvalidArgument:
            found += 1
    assert 500 < found < 2000
