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
        "gguf_no_elements": gguf(
            [kind], [(b"x.in_sum2", (0, 1), []), (b"x.counts", (1, 1), [8.0])]
        ),
        "gguf_huge_shape": gguf([kind], [(b"x.in_sum2", (2**63, 2**63), []), *weight]),
    }


# Indices into the core's lists, as stored_matrix_fuzz.cc takes them.
INT8, INT4_FULLRANGE, INT4_CLIP, NF4 = range(4)
FP32, FP16, BF16, DOUBLE = range(4)
UINT16 = 4
MISSING = b"\x01"


def matrix(
    dtype: int,
    scales: int,
    rows: int,
    cols: int,
    tensors: list[bytes],
    *,
    zeros: int = 0,
    group_size: int = 16,
    flags: int = 0,
    shifts: int = 0,
) -> bytes:
    """An input of stored_matrix_fuzz: `tensors` are MISSING, `stored` or `other`."""
    header = bytes([dtype, zeros, scales, group_size + 1, rows, cols, flags, shifts])
    return header + b"".join(tensors)


def stored(data: bytes) -> bytes:
    return b"\x00" + data


def other(kind: int, shape: tuple[int, ...], data: bytes) -> bytes:
    return bytes([2, kind, len(shape), *shape, len(data)]) + data


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def stored_matrix_files() -> dict[str, bytes]:
    codes = bytes(range(0, 240, 8))  # [3, 10]: 20 columns of 4 bits
    scales = floats(0.5, 0.25, 1.0, 2.0, 0.125, 3.0)  # [3, 2]
    g_idx = struct.pack("<20i", *([0, 1, 0, 0, 0] * 4))  # 16 columns of group 0, 4 of group 1
    act_scales = floats(*(1.0 + k / 4 for k in range(20)))
    plain = [stored(codes), stored(scales)]
    halves = struct.pack("<6e", 0.5, 0.25, 1.0, 2.0, 0.125, 3.0)
    doubled = [stored(codes), stored(bytes(range(100, 106)))]
    doubled += [stored(floats(0.5)), stored(floats(1.0)), stored(b"\x2a")]
    odd = [stored(b"\x21\xf3" * 3), stored(floats(0.5, 0.25, 1.0))]  # [3, 3]
    return {
        "int4": matrix(INT4_CLIP, FP32, 3, 20, plain),
        "int4_asym_fp16": matrix(
            INT4_CLIP,
            FP16,
            3,
            20,
            [stored(codes), stored(halves), stored(b"\x08\x07\x0f\x00\x01\x02")],
            zeros=1,
        ),
        "int8_float_zeros": matrix(
            INT8,
            FP32,
            1,
            20,
            [stored(codes[:20]), stored(floats(0.5)), stored(floats(127.5))],
            zeros=2,
            group_size=-1,
        ),
        "double_signed": matrix(INT4_FULLRANGE, DOUBLE, 3, 20, doubled),
        "g_idx_act_scales": matrix(
            NF4, FP32, 3, 20, [*plain, stored(g_idx), stored(act_scales)], flags=3
        ),
        "g_idx_crowded": matrix(INT4_CLIP, FP32, 3, 20, [*plain, stored(bytes(80))], flags=1),
        "bf16_bits": matrix(
            NF4, BF16, 3, 20, [stored(codes), other(UINT16, (3, 2), b"\x00\x3f" * 6)]
        ),
        "filling_bits": matrix(
            INT4_CLIP,
            FP32,
            3,
            3,
            [*odd, stored(struct.pack("<3i", 0, 0, 0))],
            flags=1,
        ),
        "scales_infinite": matrix(
            INT4_CLIP, FP32, 3, 20, [stored(codes), stored(floats(float("inf")))]
        ),
        "scales_missing": matrix(INT4_CLIP, FP32, 3, 20, [stored(codes), MISSING]),
        "shape_wrong": matrix(INT4_CLIP, FP32, 3, 20, [stored(codes), other(FP32, (3, 3), scales)]),
        "rows_huge": matrix(INT4_CLIP, FP32, 255, 20, plain, shifts=0x0E),
        "cols_huge": matrix(INT8, DOUBLE, 255, 255, plain, shifts=0xD7),
    }


def json_files() -> dict[str, bytes]:
    return {
        "every_kind": b'{"a": [1, -2.5e1, true, false, null, "x"], "b": {}, "c": []}',
        "escapes": rb'"\"\\\/\b\f\n\r\t\u0041\u00e9\ud83d\ude00"',
        "ends_of_int64": b"[9223372036854775807, -9223372036854775808, 9223372036854775808]",
        "key_twice": b'{"a": 1, "a": 2}',
        "deep": b"[" * 70 + b"]" * 70,
        "half_surrogate": rb'"\ud800"',
        "not_utf8": b'"\xff"',
        "too_large": b"1e999",
        "index": b'{"metadata": {"total_size": 8}, "weight_map": {"a.b": "model-1.safetensors"}}',
    }


def safetensors(header: str, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header.encode() + data


def described(name: str, dtype: str, shape: list[int], begin: int, end: int) -> str:
    return f'"{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}'


def safetensors_files() -> dict[str, bytes]:
    a, b = described("a", "F32", [1], 0, 4), described("b", "I8", [2, 1], 4, 6)
    metadata = '"__metadata__":{"format":"pt"}'
    whole = safetensors(f"{{{metadata},{a},{b}}}  ", b"abcdef")
    return {
        "two": whole,
        "cut": whole[:-1],
        "empty": safetensors("{}"),
        "scalar": safetensors("{" + described("s", "F64", [], 0, 8) + "}", bytes(8)),
        "sub_byte": safetensors("{" + described("s", "F4", [2, 4], 0, 4) + "}", bytes(4)),
        "no_elements": safetensors("{" + described("s", "BF16", [0, 7], 0, 0) + "}"),
        "overlap": safetensors(f"{{{a},{described('b', 'I8', [2], 3, 5)}}}", bytes(6)),
        "gap": safetensors(f"{{{a},{described('b', 'I8', [2], 5, 7)}}}", bytes(7)),
        "twice": safetensors(f"{{{a},{a}}}", bytes(4)),
        "backwards": safetensors("{" + described("a", "F32", [1], 4, 0) + "}", bytes(4)),
        "huge_shape": safetensors("{" + described("a", "U8", [2**32, 2**32, 4], 0, 4) + "}"),
        "huge_offsets": safetensors("{" + described("a", "U8", [1], 2**62, 2**63 - 1) + "}"),
        "huge_header": struct.pack("<Q", 2**63) + b"{}",
        "unknown_dtype": safetensors("{" + described("a", "F33", [1], 0, 4) + "}", bytes(4)),
    }


def listed(name: bytes, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def gguf_model(metadata: list[bytes], tensors: list[bytes], data: bytes) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    return padded(head + b"".join(metadata) + b"".join(tensors), 32) + data


def gguf_files() -> dict[str, bytes]:
    name = text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama")
    numbers = [
        text(b"k%d" % kind) + struct.pack("<I", kind) + bytes(size)
        for kind, size in enumerate((1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8))
        if size
    ]
    texts = text(b"tokens") + struct.pack("<IIQ", 9, 8, 2) + text(b"a") + text(b"bc")
    floats_list = text(b"scores") + struct.pack("<IIQ2f", 9, 6, 2, 0.0, 1.0)
    lists = text(b"lists") + struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQ", 0, 0)
    q4, raw, new = (
        listed(b"q", (32, 2), 2, 0),
        listed(b"r", (3,), 24, 64),
        listed(b"n", (5,), 99, 0),
    )
    two = [q4, raw]
    data = bytes(range(67))
    alignment = [
        text(b"general.alignment") + struct.pack("<II", 4, value) for value in (0, 3, 8, 2**31)
    ]
    whole = gguf_model([name, *numbers, texts, floats_list], [*two, new], data)
    return {
        "whole": whole,
        "cut": whole[:-1],
        "empty": gguf_model([], [], b""),
        "aligned_8": gguf_model([alignment[2]], two, data),
        "alignment_0": gguf_model([alignment[0]], two, data),
        "alignment_3": gguf_model([alignment[1]], two, data),
        "alignment_huge": gguf_model([alignment[3]], two, data),
        "list_of_lists": gguf_model([lists], [], b""),
        "overlap": gguf_model([], [q4, listed(b"r", (3,), 24, 32)], data),
        "twice": gguf_model([], [q4, q4], data),
        "row_no_block": gguf_model([], [listed(b"q", (33,), 2, 0)], data),
        "huge_shape": gguf_model([], [listed(b"q", (2**32, 2**32), 24, 0)], data),
        "huge_offset": gguf_model([], [listed(b"q", (32,), 2, 2**64 - 32)], data),
        "many_tensors": b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0),
        "many_metadata": b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63),
        "old": b"GGUF" + struct.pack("<I", 1),
        "huge_text": gguf_model([text(b"k") + struct.pack("<IQ", 8, 2**64 - 1)], [], b""),
        "huge_name": b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 2**64 - 8),
        "huge_list": gguf_model([text(b"k") + struct.pack("<IIQ", 9, 8, 2**63)], [], b""),
        "many_dimensions": gguf_model([], [listed(b"q", (1,) * 5, 24, 0)], data),
        "all_dimensions": gguf_model([], [listed(b"q", (1,), 24, 0)[:9] + b"\xff" * 4], data),
        "behind_the_end": gguf_model([], [listed(b"r", (3,), 24, 96)], data),
        "deep_lists": gguf_model([text(b"k") + struct.pack("<I", 9) * 200], [], b""),
        "key_twice": gguf_model([name, name], [], b""),
        "no_elements": gguf_model([], [listed(b"z", (0, 32), 2, 0)], b""),
    }


# Types as gguf_matrix_fuzz.cc takes them, indices into kGgufTypes, and the bytes of their blocks.
GGUF_MATRICES = {
    "q4_0": (2, 18), "q4_1": (3, 20), "q5_0": (4, 22), "q5_1": (5, 24), "q8_0": (6, 34),
    "q2_k": (8, 84), "q3_k": (9, 110), "q4_k": (10, 144), "q5_k": (11, 176), "q6_k": (12, 210),
    "iq4_nl": (18, 18), "iq4_xs": (21, 136), "tq1_0": (28, 54), "tq2_0": (29, 66),
    "mxfp4": (30, 17), "nvfp4": (31, 36), "q1_0": (32, 18), "q2_0": (33, 18), "iq2_xxs": (14, 66),
}  # fmt: skip


def gguf_matrix_files() -> dict[str, bytes]:
    def matrix(kind: str, rows: int, blocks: int, flags: int = 0, cut: int = 0) -> bytes:
        number, size = GGUF_MATRICES[kind]
        # Bytes below 0x40: wherever a scale of 16 bits lies, it is a small finite number.
        data = bytes(i * 37 % 64 for i in range(rows * blocks * size))
        return bytes([number, rows, blocks, flags]) + data[: len(data) - cut]

    return {
        **{kind: matrix(kind, 2, 1) for kind in GGUF_MATRICES},
        "reversed": matrix("q4_0", 3, 2, 1),
        "no_whole_blocks": matrix("q4_0", 1, 2, 2),
        "cut": matrix("q6_k", 2, 1, cut=1),
        "no_rows": matrix("q4_0", 0, 1),
        "no_columns": matrix("q4_0", 1, 0),
        "not_finite": bytes([2, 1, 1, 0]) + b"\x00\x7c" + bytes(16),
    }


# Formats as foreign_fuzz.cc takes them, indices into its kFormats.
GPTQ, AWQ, COMPRESSED_PACKED, COMPRESSED_INT, FP4, BNB4, BNB8, HQQ = range(8)
E8M0, E4M3 = 5, 6  # indices into kScaleEncodings
OPTIONAL, OPTION = 1, 2


def foreign_files() -> dict[str, bytes]:
    def layer(
        form: int, rows: int, cols: int, sizes: list[int], *, bits: int = 4, group_size: int = 16,
        flags: int = 0, shifts: int = 0, own: int = 0,
    ) -> bytes:  # fmt: skip
        """A layer whose tensors have so many bytes; 0: the tensor is missing."""
        header = bytes([form, bits, group_size + 1, rows, cols, flags, shifts, own])
        # Bytes below 0x40: wherever a scale lies, it is a finite number.
        tensors = [stored(bytes(i * 37 % 64 for i in range(size))) for size in sizes]
        return header + b"".join(t if len(t) > 1 else MISSING for t in tensors)

    g_idx = stored(struct.pack("<32i", *(k % 2 for k in range(32))))
    gptq = [8 * 4 * 4, 2 * 4, 2 * 8 * 2]  # [8, 32] in 4 bits, 2 groups
    whole = layer(GPTQ, 8, 32, [4 * 8 * 4, 2 * 4, 2 * 8 * 2])
    return {
        "gptq": whole,
        "gptq_sym_act_order": layer(GPTQ, 8, 32, gptq, flags=OPTIONAL | OPTION) + g_idx,
        "gptq_3_bits": layer(GPTQ, 32, 32, [3 * 32 * 4, 2 * 3 * 4, 2 * 32 * 2], bits=3, own=1),
        "gptq_planes": layer(GPTQ, 32, 32, [5 * 32 * 4, 2 * 5 * 4, 128], bits=5, own=129),
        "gptq_borrowed": layer(GPTQ, 8, 32, gptq, own=2),
        "gptq_borrowed_3_bits": layer(GPTQ, 32, 32, [3 * 32 * 4], bits=3, own=2),
        "gptq_no_bits": layer(GPTQ, 8, 32, gptq, bits=0),
        "gptq_cut": layer(GPTQ, 8, 32, [4 * 8 * 4, 2 * 4, 0]),
        "gptq_tail": layer(GPTQ, 3, 21, [3 * 3 * 4, 2 * 4, 2 * 3 * 2]),
        "awq": layer(AWQ, 8, 32, [32 * 4, 2 * 8 * 2, 2 * 4], flags=OPTIONAL),
        "awq_symmetric": layer(AWQ, 8, 32, [32 * 4, 2 * 8 * 2]),
        "awq_rows": layer(AWQ, 7, 32, [0]),
        "compressed": layer(COMPRESSED_PACKED, 4, 32, [4 * 4 * 4, 4 * 2 * 2]),
        "compressed_asym": layer(COMPRESSED_PACKED, 4, 32, [64, 16, 8], flags=OPTIONAL) + g_idx,
        "compressed_old": layer(COMPRESSED_PACKED, 4, 32, [64, 16, 8], flags=OPTIONAL | OPTION),
        "compressed_7_bits": layer(COMPRESSED_PACKED, 2, 20, [2 * 5 * 4, 2 * 2 * 2], bits=7),
        "int8": layer(COMPRESSED_INT, 4, 20, [80, 4 * 2 * 4, 8], flags=OPTIONAL),
        "int8_one_scale": layer(COMPRESSED_INT, 4, 20, [80, 4], group_size=-1, flags=OPTION),
        "mxfp4": layer(FP4, 4, 32, [64, 8], own=E8M0),
        "nvfp4": layer(FP4, 4, 32, [64, 8], own=E4M3),
        "nvfp4_by_zero": layer(FP4, 4, 32, [64, 8], own=E4M3, flags=OPTION),
        "fp4_odd": layer(FP4, 4, 31, [60, 8], own=E8M0),
        "nf4": layer(BNB4, 4, 32, [64, 32], flags=OPTION),
        "nf4_nested": layer(BNB4, 4, 32, [64, 8, 4, 1024], flags=OPTIONAL | OPTION, own=8),
        "fp4_bnb": layer(BNB4, 4, 32, [64, 32]),
        "nf4_straddles": layer(BNB4, 4, 24, [48, 24]),
        "nf4_odd_blocks": layer(BNB4, 3, 63, [94, 12], group_size=63),
        "bnb8": layer(BNB8, 4, 20, [80, 16]),
        "hqq_2_bits": layer(HQQ, 4, 32, [2 * 16, 16, 16], bits=2),
        "hqq_3_bits": layer(HQQ, 4, 32, [16 * 4, 16, 16], bits=3),
        "hqq": layer(HQQ, 4, 32, [4 * 16, 16, 16]),
        "hqq_8_bits": layer(HQQ, 4, 32, [128, 16, 16], bits=8),
        "hqq_no_groups": layer(HQQ, 4, 32, [0], group_size=0),
        "rows_huge": layer(GPTQ, 255, 32, gptq, shifts=0x06),
        "cols_huge": layer(BNB4, 255, 255, [64], shifts=0x66),
    }


# Formats as writers_fuzz.cc takes them, indices into its kFormats.
V1, V2, AWQ_WRITTEN, PACKED, INT, BITSANDBYTES, Q4_0, Q4_1, Q8_0, IQ4_NL = range(10)
AS_FP16, AS_BF16 = 1 << 4, 2 << 4
INT3, IQ4_NL_DTYPE = 7, 11
GROUPS_ARE_BYTES, ROUND = 4, 8


def writers_files() -> dict[str, bytes]:
    def written(
        form: int, dtype: int, rows: int, cols: int, sizes: list[int], *, zeros: int = 0,
        scales: int = FP16, group_size: int = 16, flags: int = 0,
    ) -> bytes:  # fmt: skip
        """A matrix, whose tensors have so many bytes. Those of scales are below 0x40: small finite
        numbers."""
        header = bytes([dtype, zeros, scales, group_size + 1, rows, cols, flags, form])
        return header + b"".join(bytes(i * 37 % 64 for i in range(size)) for size in sizes)

    four = [8 * 16, 8 * 2 * 2]  # [8, 32] in 4 bits, 2 groups
    return {
        "gptq": written(V1 | AS_FP16, INT4_CLIP, 8, 32, four),
        "gptq_asym": written(V1 | AS_FP16, INT4_CLIP, 8, 32, [*four, 16], zeros=1),
        "gptq_v2": written(V2 | AS_FP16, INT4_CLIP, 8, 32, [*four, 16], zeros=1),
        "gptq_act_order": written(
            V1 | AS_FP16, INT4_CLIP, 8, 32, [*four, 32], flags=1 | GROUPS_ARE_BYTES
        ),
        "gptq_3_bits": written(V1 | AS_FP16, INT3, 32, 32, [32 * 12, 128]),
        "gptq_8_bits": written(V2, INT8, 4, 32, [128, 16], zeros=1),
        "gptq_rounded": written(
            V1 | AS_FP16, INT4_CLIP, 8, 32, [128, 64], scales=FP32, flags=ROUND
        ),
        "awq": written(AWQ_WRITTEN | AS_FP16, INT4_CLIP, 8, 32, [*four, 16], zeros=1),
        "awq_fullrange": written(AWQ_WRITTEN | AS_FP16, INT4_FULLRANGE, 8, 32, four),
        "compressed": written(PACKED | AS_BF16, INT4_CLIP, 8, 32, four, scales=BF16),
        "compressed_asym": written(PACKED | AS_FP16, INT4_CLIP, 8, 32, [*four, 16], zeros=1),
        "compressed_int": written(INT, INT8, 4, 20, [80, 8], group_size=-1),
        "nf4": written(BITSANDBYTES, NF4, 4, 32, [64, 32], scales=FP32),
        "nf4_double": written(BITSANDBYTES, NF4, 4, 32, [64, 8, 4, 4], scales=DOUBLE),
        "nf4_short_row": written(BITSANDBYTES, NF4, 4, 12, [24, 16], scales=FP32, group_size=-1),
        "q4_0": written(Q4_0, INT4_CLIP, 2, 32, [32, 4], group_size=32),
        "q4_1": written(Q4_1, INT4_CLIP, 2, 32, [32, 4, 2], zeros=1, group_size=32),
        "q8_0": written(Q8_0, INT8, 2, 32, [64, 4], group_size=32),
        "iq4_nl": written(IQ4_NL, IQ4_NL_DTYPE, 2, 32, [32, 4], group_size=32),
        "act_scales": written(V1, INT4_CLIP, 8, 32, [*four, 32 * 4], flags=2),
    }


TARGETS = {
    "foreign": foreign_files,
    "gguf": gguf_files,
    "gguf_matrix": gguf_matrix_files,
    "imatrix": imatrix_files,
    "json": json_files,
    "safetensors": safetensors_files,
    "stored_matrix": stored_matrix_files,
    "writers": writers_files,
}


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
