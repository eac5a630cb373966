# SPDX-License-Identifier: Apache-2.0
"""Writes fixtures/*.safetensors: packed matrices as the owners of each format pack them.

Run by hand, in an environment of its own; the tests need only the files. Each package is installed
with `pip install --no-deps`, as some ask for a newer torch than they need:

    torch transformers safetensors numpy accelerate
    gptqmodel==7.7.0 logbar device-smi tokenicer defuser pypcre threadpoolctl
    auto-round==0.16.1 py-cpuinfo autoawq==0.2.7.post3
    datasets multiprocess dill xxhash pyarrow pandas
    compressed-tensors==0.20.0 loguru bitsandbytes==0.50.2
    hqq==0.2.8.post1 termcolor einops libgguf==0.2.2 gguf==0.19.0

    python tests/formats/make_fixtures.py            # every file
    python tests/formats/make_fixtures.py hqq gguf   # some of them

A case is one matrix of N rows (outputs) and K columns (inputs). Its tensors are
`<case>.<name that the checkpoint has>`, and `<case>.expected` is the float32 [N, K] weight that its
owner reads from them. The file's metadata has for each case the JSON of what the format's
quantization_config says.

Codes, zero points and scales are drawn, not searched for: then every code occurs, and the weight is
known without the owner. Where the grid is known, `checked()` compares the owner's reading with it,
bit for bit. Scales become float32 before the owner dequantizes: its half-precision products would
depend on its rounding.

The packages disturb each other (they set variables and replace functions), so each file is written
by a process of its own. The files are the same byte for byte on every run.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save

FOLDER = Path(__file__).resolve().parent / "fixtures"


@dataclass
class Case:
    name: str
    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    expected: torch.Tensor


@dataclass
class Grid:
    """w = scales * (codes - zeros), by group of columns."""

    codes: torch.Tensor  # [N, K], 0 .. 2^bits - 1
    zeros: torch.Tensor  # [N, groups]
    scales: torch.Tensor  # float32 [N, groups]
    group_of: torch.Tensor  # [K]
    linear: torch.nn.Linear = field(init=False)

    def __post_init__(self) -> None:
        columns = self.group_of.long()
        weight = self.scales[:, columns] * (self.codes - self.zeros[:, columns]).float()
        self.linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.linear.weight = torch.nn.Parameter(weight, requires_grad=False)

    @property
    def weight(self) -> torch.Tensor:
        return self.linear.weight.data


def random_of(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def make_grid(
    name: str,
    shape: tuple[int, int],
    bits: int,
    group_size: int,
    sym: bool,
    *,
    extremes: bool = False,
    negative: bool = False,
    shuffled: bool = False,
    scale_dtype: torch.dtype = torch.float16,
) -> Grid:
    """`extremes` gives the zero points 0 and 2^bits - 1 to neighbours; without it they are between
    1 and 2^bits - 1. `shuffled` lets groups have scattered columns, as desc_act does."""
    random = random_of(name)
    rows, cols = shape
    size = cols if group_size == -1 else group_size
    groups = -(-cols // size)
    top = 2**bits - 1
    codes = random.integers(0, top + 1, size=shape)
    codes[0, :2] = 0, top
    zeros = random.integers(1, top + 1, size=(rows, groups))
    if sym:
        zeros[:] = 2 ** (bits - 1)
    elif extremes:
        zeros.flat[::3] = 0
        zeros.flat[1::3] = top
    scales = torch.from_numpy(random.uniform(0.004, 0.05, size=(rows, groups)))
    if negative:
        scales *= torch.from_numpy(random.choice([-1.0, 1.0], size=scales.shape))
    group_of = np.arange(cols) // size
    if shuffled:
        random.shuffle(group_of)
    return Grid(
        codes=torch.from_numpy(codes),
        zeros=torch.from_numpy(zeros),
        scales=scales.to(scale_dtype).float(),
        group_of=torch.from_numpy(group_of).to(torch.int32),
    )


def normal(name: str, rows: int, cols: int) -> torch.Tensor:
    return torch.from_numpy(random_of(name).standard_normal((rows, cols), dtype=np.float32))


def checked(name: str, grid: Grid, dequantized: torch.Tensor) -> torch.Tensor:
    """What the owner dequantized, if it is the grid that went in."""
    result = dequantized.detach().contiguous()
    if result.dtype != torch.float32:
        raise SystemExit(f"{name}: the owner dequantizes to {result.dtype}, not to float32")
    if not torch.equal(result, grid.weight):
        worst = (result - grid.weight).abs().max().item()
        raise SystemExit(f"{name}: the owner reads something else than was packed, by {worst}")
    return result


# GPTQ, with GPTQModel.


def gptq_case(
    name: str, checkpoint_format: str, shape: tuple[int, int], bits: int, group_size: int,
    sym: bool, *, desc_act: bool = False, extremes: bool = False, bias: bool = False,
    scale_dtype: torch.dtype = torch.float16,
) -> Case:  # fmt: skip
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.quantization.config import FORMAT, QuantizeConfig
    from gptqmodel.utils.model import (
        convert_gptq_v1_to_v2_format_module,
        convert_gptq_v2_to_v1_format_module,
    )

    # It would compile its packer; the one in Python packs the same.
    os.environ["GPTQMODEL_DISABLE_PACK_EXT"] = "1"
    grid = make_grid(
        name, shape, bits, group_size, sym,
        extremes=extremes, shuffled=desc_act, scale_dtype=scale_dtype,
    )  # fmt: skip
    if bias:
        grid.linear.bias = torch.nn.Parameter(normal(f"{name}.bias", 1, shape[0])[0])
    form = FORMAT(checkpoint_format)
    config = QuantizeConfig(
        bits=bits, group_size=group_size, desc_act=desc_act, sym=sym, format=form
    )

    def layer() -> TorchLinear:
        return TorchLinear(
            bits=bits, group_size=group_size, sym=sym, desc_act=desc_act, in_features=shape[1],
            out_features=shape[0], bias=bias, format=form,
        ).eval()  # fmt: skip

    def packed(pack: str) -> dict[str, torch.Tensor]:
        module = layer()
        zeros = grid.zeros.to(torch.int32)
        getattr(module, pack)(grid.linear, grid.scales, zeros, grid.group_of)
        if form == FORMAT.GPTQ:
            convert_gptq_v2_to_v1_format_module(module, config)
        return {key: value.clone() for key, value in module.state_dict().items()}

    tensors = packed("pack_block")
    other = packed("pack_original")
    if any(not torch.equal(tensors[key], other[key]) for key in other):
        raise SystemExit(f"{name}: GPTQModel's two packers differ")
    tensors["scales"] = tensors["scales"].to(scale_dtype)

    reader = layer()
    for key, value in tensors.items():
        setattr(reader, key, value.clone())
    reader.scales = reader.scales.float()
    if form == FORMAT.GPTQ:
        convert_gptq_v1_to_v2_format_module(reader, bits, torch.int32)
    stored = config.to_dict()
    stored["meta"] = {"quantizer": [f"gptqmodel:{version('gptqmodel')}"]}
    return Case(name, stored, tensors, checked(name, grid, reader.dequantize_weight().T))


def gptq() -> Iterator[Case]:
    """Zero points stored less one. One of 0 is stored as -1: in 2, 4 and 8 bits GPTQModel subtracts
    from whole words, so that it borrows from its neighbours."""
    for bits in (2, 3, 4, 8):
        yield gptq_case(f"sym{bits}", "gptq", (32, 32), bits, 16, True)
        yield gptq_case(f"extremes{bits}", "gptq", (32, 32), bits, 16, False, extremes=True)


def gptq_more() -> Iterator[Case]:
    """As gptq: no zero point of 0, other groups, bias, bfloat16 scales, columns in any order."""
    yield gptq_case("asym4", "gptq", (32, 96), 4, 64, False)
    yield gptq_case("one_group", "gptq", (32, 32), 4, -1, True)
    yield gptq_case("desc_act4", "gptq", (32, 32), 4, 16, True, desc_act=True, bias=True)
    yield gptq_case("desc_act3", "gptq", (32, 32), 3, 16, False, desc_act=True)
    yield gptq_case("bf16", "gptq", (32, 32), 4, 32, False, scale_dtype=torch.bfloat16)


def gptq_v2() -> Iterator[Case]:
    """Zero points stored as they are."""
    yield gptq_case("sym4", "gptq_v2", (32, 32), 4, 16, True)
    for bits, cols in ((2, 32), (3, 64), (4, 32), (8, 32)):
        yield gptq_case(
            f"extremes{bits}", "gptq_v2", (32, cols), bits, cols // 2, False, extremes=True
        )


def gptq_p() -> Iterator[Case]:
    """Codes in planes of bits."""
    for bits, cols in ((3, 32), (5, 32), (6, 64)):
        yield gptq_case(
            f"extremes{bits}", "gptq_p", (32, cols), bits, cols // 2, False, extremes=True
        )


# AutoRound.


def auto_round_case(
    name: str, packing_format: str, shape: tuple[int, int], bits: int, group_size: int, sym: bool,
    *, extremes: bool = False, negative: bool = False,
) -> Case:  # fmt: skip
    from auto_round.export.export_to_autoround.export import pack_layer
    from auto_round.export.export_to_awq.export import pack_layer as pack_awq_layer
    from auto_round.export.export_to_awq.utils import dequantize_gemm

    grid = make_grid(name, shape, bits, group_size, sym, extremes=extremes, negative=negative)
    awq = packing_format.endswith("awq")
    linear = grid.linear
    linear.bits, linear.group_size, linear.sym, linear.act_bits = bits, group_size, sym, 16
    linear.scale = grid.scales
    linear.zp = int(grid.zeros[0, 0]) if sym else grid.zeros.to(torch.int32)
    weight = grid.weight.clone()
    model = torch.nn.Sequential(linear)
    (pack_awq_layer if awq else pack_layer)("0", model, packing_format, "cpu")
    grid.linear.weight = torch.nn.Parameter(weight, requires_grad=False)

    module = model[0]
    tensors = {key: value.clone() for key, value in module.state_dict().items()}
    scales = module.scales.float()
    if awq:
        dequantized = dequantize_gemm(module.qweight, module.qzeros, scales, bits, group_size).T
    else:
        module.scales = scales
        dequantized = module(torch.eye(shape[1])).T
    config = {
        "bits": bits, "data_type": "int", "group_size": group_size, "sym": sym,
        "autoround_version": version("auto-round"), "quant_method": "auto-round",
        "packing_format": packing_format,
    }  # fmt: skip
    if awq:
        config |= {"zero_point": not sym, "version": "gemm", "modules_to_not_convert": []}
    return Case(name, config, tensors, checked(name, grid, dequantized))


def auto_round() -> Iterator[Case]:
    """True zero points, no g_idx."""
    for bits in range(2, 9):
        yield auto_round_case(
            f"asym{bits}", "auto_round", (32, 32), bits, 16, False,
            extremes=True, negative=bits % 2 == 0,
        )  # fmt: skip
    yield auto_round_case("sym4", "auto_round", (32, 32), 4, 16, True, negative=True)


def auto_round_gptq() -> Iterator[Case]:
    """Zero points stored less one."""
    for bits in (3, 4, 5, 8):
        yield auto_round_case(
            f"sym{bits}", "auto_round:auto_gptq", (32, 32), bits, 16, True, negative=True
        )
    yield auto_round_case("asym4", "auto_round:auto_gptq", (32, 32), 4, 32, False)


def auto_round_awq() -> Iterator[Case]:
    yield auto_round_case("sym4", "auto_round:auto_awq", (16, 32), 4, 16, True, negative=True)
    yield auto_round_case("asym4", "auto_round:auto_awq", (16, 32), 4, 16, False, extremes=True)
    yield auto_round_case("asym6", "auto_round:auto_awq", (32, 16), 6, 16, False, extremes=True)


# AWQ, with AutoAWQ.


def awq_case(name: str, shape: tuple[int, int], group_size: int, bias: bool = False) -> Case:
    from awq.models._config import AwqConfig
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.utils.packing_utils import dequantize_gemm

    grid = make_grid(name, shape, 4, group_size, False, extremes=True)
    if bias:
        grid.linear.bias = torch.nn.Parameter(normal(f"{name}.bias", 1, shape[0])[0])
    module = WQLinear_GEMM.from_linear(
        grid.linear, 4, group_size, scales=grid.scales.T, zeros=grid.zeros.T
    )
    tensors = {key: value.detach() for key, value in module.state_dict().items()}
    config = AwqConfig(zero_point=True, q_group_size=group_size, w_bit=4, version="gemm")
    dequantized = dequantize_gemm(
        module.qweight, module.qzeros, module.scales.float(), 4, group_size
    )
    return Case(name, config.to_transformers_dict(), tensors, checked(name, grid, dequantized.T))


def awq() -> Iterator[Case]:
    """Always with zero points: from_linear() refuses to pack without."""
    yield awq_case("g32", (32, 64), 32)
    yield awq_case("bias", (32, 32), 16, bias=True)


# compressed-tensors.


def compressed_config(scheme: Any) -> dict[str, Any]:
    from compressed_tensors.quantization import QuantizationConfig

    config = QuantizationConfig(
        config_groups={"group_0": scheme}, format=scheme.format, quantization_status="compressed",
        ignore=["lm_head"],
    )  # fmt: skip
    return config.to_dict()


def compressed_int_case(
    name: str, form: str, shape: tuple[int, int], bits: int, group_size: int, sym: bool,
    scale_dtype: torch.dtype = torch.float16,
) -> Case:  # fmt: skip
    """Group size -1 is the strategy channel."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    grid = make_grid(name, shape, bits, group_size, sym, extremes=True, scale_dtype=scale_dtype)
    by_row = group_size == -1
    args = QuantizationArgs(
        num_bits=bits, type="int", symmetric=sym, strategy="channel" if by_row else "group",
        group_size=None if by_row else group_size,
    )  # fmt: skip
    inputs = None
    if form == "int-quantized":
        inputs = QuantizationArgs(num_bits=8, type="int", strategy="token", dynamic=True)
    scheme = QuantizationScheme(
        targets=["Linear"], weights=args, input_activations=inputs, format=form
    )
    compressor = BaseCompressor.get_value_from_registry(form)
    state = {"weight": grid.weight, "weight_scale": grid.scales.to(scale_dtype)}
    if not sym:
        state["weight_zero_point"] = (grid.zeros - 2 ** (bits - 1)).to(torch.int8)
    tensors = compressor.compress(state, scheme)
    in_float = tensors | {"weight_scale": tensors["weight_scale"].float()}
    dequantized = compressor.decompress(in_float, scheme)["weight"]
    return Case(name, compressed_config(scheme), tensors, checked(name, grid, dequantized))


def compressed_pack() -> Iterator[Case]:
    """9 rows: its unpacking of 4-bit zero points fails where they fill one word, at up to 8."""
    form = "pack-quantized"
    for bits in range(2, 9):
        yield compressed_int_case(f"sym{bits}_group", form, (4, 40), bits, 20, True)
        yield compressed_int_case(f"asym{bits}_group", form, (9, 40), bits, 8, False)
    for bits in (4, 8):
        yield compressed_int_case(f"sym{bits}_channel", form, (4, 36), bits, -1, True)
        yield compressed_int_case(f"asym{bits}_channel", form, (9, 36), bits, -1, False)
    yield compressed_int_case("bf16", form, (4, 64), 4, 32, True, torch.bfloat16)
    yield compressed_int_case("long_zeros", form, (35, 8), 3, 8, False)
    yield compressed_int_case("one_row", form, (1, 33), 3, -1, False)


def compressed_int() -> Iterator[Case]:
    for group_size, strategy in ((-1, "channel"), (20, "group")):
        for sym in (True, False):
            name = f"{'sym' if sym else 'asym'}8_{strategy}"
            yield compressed_int_case(name, "int-quantized", (8, 40), 8, group_size, sym)


def compressed_fp4_case(name: str, form: str, shape: tuple[int, int], group_size: int) -> Case:
    """The owner's own steps, in float32: its decompress() rounds to bfloat16."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.lifecycle.forward import dequantize
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    nvfp4 = form == "nvfp4-pack-quantized"
    weight = normal(name, *shape)
    weight[0, :group_size] = 0
    weight[1, 0] = 20
    weight[2] *= 2.0**-12
    args = QuantizationArgs(
        num_bits=4, type="float", symmetric=True, strategy="tensor_group" if nvfp4 else "group",
        group_size=group_size, scale_dtype=torch.float8_e4m3fn if nvfp4 else torch.uint8,
    )  # fmt: skip
    scheme = QuantizationScheme(targets=["Linear"], weights=args, format=form)
    by_group = weight.reshape(shape[0], -1, group_size)
    low, high = by_group.amin(-1), by_group.amax(-1)
    state = {"weight": weight}
    factor = None
    if nvfp4:
        factor = generate_gparam(weight.min(), weight.max())
        state["weight_global_scale"] = factor
    scales, _ = calculate_qparams(low, high, args, global_scale=factor)
    state["weight_scale"] = scales.float()
    tensors = BaseCompressor.get_value_from_registry(form).compress(state, scheme)
    stored = tensors["weight_scale"]
    in_float = stored.float() if nvfp4 else torch.exp2(stored.float() - 127)
    values = unpack_fp4_from_uint8(tensors["weight_packed"], *shape, dtype=torch.float32)
    expected = dequantize(values, in_float, args=args, global_scale=factor, dtype=torch.float32)
    return Case(name, compressed_config(scheme), tensors, expected)


def compressed_fp4() -> Iterator[Case]:
    yield compressed_fp4_case("nvfp4", "nvfp4-pack-quantized", (8, 96), 16)
    yield compressed_fp4_case("mxfp4", "mxfp4-pack-quantized", (8, 96), 32)


# bitsandbytes.


def bnb_expected(packed: torch.Tensor, state: Any) -> torch.Tensor:
    """By its generic kernels: those for CPUs are wrong for some widths. Not compiled, which would
    need a compiler and could fuse the nested multiplication with its addition."""
    from bitsandbytes.backends.default import ops

    absmax = state.absmax
    if state.nested:
        inner = state.state2
        absmax = ops._dequantize_blockwise_compute.__wrapped__(
            absmax, inner.absmax, inner.code, inner.blocksize, torch.float32
        )
        absmax = absmax + state.offset
    codes = packed.contiguous().view(torch.uint8).reshape(-1)
    return ops._dequantize_4bit_compute.__wrapped__(
        codes, absmax, state.code, state.blocksize, tuple(state.shape), torch.float32
    )


def bnb_case(
    name: str, quant_type: str, shape: tuple[int, int], blocksize: int, nested: bool,
    dtype: torch.dtype = torch.float16, storage: torch.dtype = torch.uint8,
) -> Case:  # fmt: skip
    import bitsandbytes as bnb

    weight = normal(name, *shape).to(dtype)
    weight.reshape(-1)[:blocksize] = 0
    module = bnb.nn.Linear4bit(shape[1], shape[0], bias=False)
    module.weight = bnb.nn.Params4bit(
        weight, requires_grad=False, blocksize=blocksize, compress_statistics=nested,
        quant_type=quant_type, quant_storage=storage, module=module,
    )  # fmt: skip
    module = module.to("cpu")
    config = {
        "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False,
        "bnb_4bit_quant_type": quant_type, "bnb_4bit_use_double_quant": nested,
        "bnb_4bit_compute_dtype": str(dtype).removeprefix("torch."),
        "bnb_4bit_quant_storage": str(storage).removeprefix("torch."),
        "llm_int8_skip_modules": None,
    }  # fmt: skip
    tensors = {key: value.detach().clone() for key, value in module.state_dict().items()}
    return Case(name, config, tensors, bnb_expected(module.weight.data, module.weight.quant_state))


def bnb_int8_case(name: str, shape: tuple[int, int]) -> Case:
    import bitsandbytes as bnb

    module = bnb.nn.Linear8bitLt(shape[1], shape[0], bias=False, has_fp16_weights=False)
    module.weight = bnb.nn.Int8Params(
        normal(name, *shape).half(), requires_grad=False, has_fp16_weights=False
    )
    module = module.to("cpu")
    tensors = {key: value.detach().clone() for key, value in module.state_dict().items()}
    config = {
        "quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": True,
        "llm_int8_threshold": 6.0, "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": None,
    }  # fmt: skip
    expected = bnb.functional.int8_vectorwise_dequant(tensors["weight"], tensors["SCB"])
    return Case(name, config, tensors, expected)


def bitsandbytes() -> Iterator[Case]:
    for quant_type in ("nf4", "fp4"):
        yield bnb_case(f"{quant_type}_64", quant_type, (3, 128), 64, False)
        yield bnb_case(f"{quant_type}_128_nested", quant_type, (3, 128), 128, True)
    yield bnb_case("nf4_64_nested", "nf4", (6, 64), 64, True, torch.bfloat16)
    yield bnb_case("nf4_bf16_storage", "nf4", (4, 64), 64, False, torch.bfloat16, torch.bfloat16)
    # Blocks go over the ends of rows, and the last one is short.
    yield bnb_case("nf4_straddles", "nf4", (5, 48), 64, False)
    yield bnb_int8_case("int8", (6, 40))


# HQQ.


def hqq_case(
    name: str, bits: int, shape: tuple[int, int], group_size: int, axis: int,
    dtype: torch.dtype = torch.float16,
) -> Case:  # fmt: skip
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear, Quantizer

    linear = torch.nn.Linear(shape[1], shape[0], bias=False)
    linear.weight.data = normal(name, *shape)
    options = BaseQuantizeConfig(nbits=bits, group_size=group_size, axis=axis)
    module = HQQLinear(linear, options, compute_dtype=dtype, device="cpu")
    tensors = {key: value.detach().clone() for key, value in module.state_dict().items()}
    in_float = module.meta | {
        "compute_dtype": torch.float32,
        "scale": module.meta["scale"].float(),
        "zero": module.meta["zero"].float(),
    }
    expected = Quantizer.dequantize(module.W_q.data, in_float)
    config = {"quant_method": "hqq", "quant_config": options, "skip_modules": ["lm_head"]}
    return Case(name, config, tensors, expected)


def hqq() -> Iterator[Case]:
    for bits in (8, 5, 4, 3, 2):
        yield hqq_case(f"axis1_{bits}", bits, (4, 64), 16, 1)
    yield hqq_case("axis1_4_bf16", 4, (4, 96), 32, 1, torch.bfloat16)
    yield hqq_case("axis1_4_fp32", 4, (4, 64), 64, 1, torch.float32)
    yield hqq_case("axis0_4", 4, (16, 32), 16, 0)


# GGUF.


def gguf_case(name: str, type_name: str, shape: tuple[int, int]) -> Case:
    import gguf as gguf_package
    import libgguf

    kind = libgguf.GGMLQuantizationType[type_name]
    elements, size = libgguf.GGML_QUANT_SIZES[kind]
    rows = normal(name, *shape).numpy()
    rows[1, :elements] = 0
    rows[2, 5] = 30
    data = libgguf.quantize_rows(rows, kind)
    expected = libgguf.dequantize_rows(data, kind)
    if type_name != "Q1_0":  # which the gguf package does not dequantize
        theirs = gguf_package.quants.dequantize(data, gguf_package.GGMLQuantizationType(kind.value))
        if theirs.tobytes() != expected.tobytes():
            raise SystemExit(f"{name}: libgguf and gguf differ")
    config = {
        "type": type_name, "type_id": int(kind), "block_elements": elements, "block_bytes": size,
        "shape": list(shape),
    }  # fmt: skip
    return Case(name, config, {"weight": torch.from_numpy(data)}, torch.from_numpy(expected))


def gguf() -> Iterator[Case]:
    for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4", "NVFP4"):
        yield gguf_case(name.lower(), name, (4, 128))
    for name in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "TQ1_0", "TQ2_0"):
        yield gguf_case(name.lower(), name, (4, 256))
    yield gguf_case("q1_0", "Q1_0", (4, 128))


FORMATS = {
    make.__name__: make
    for make in (
        gptq, gptq_more, gptq_v2, gptq_p, auto_round, auto_round_gptq, auto_round_awq, awq,
        compressed_pack, compressed_int, compressed_fp4, bitsandbytes, hqq, gguf,
    )
}  # fmt: skip


def with_sorted_metadata(data: bytes) -> bytes:
    """safetensors writes the metadata in another order on every run."""
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def read_back(path: Path, cases: list[Case]) -> None:
    with safe_open(path, "pt") as file:
        stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    for case in cases:
        wanted = case.tensors | {"expected": case.expected}
        for key, value in wanted.items():
            found = stored.pop(f"{case.name}.{key}")
            # Type, shape and bytes.
            if save({"": found}) != save({"": value.contiguous()}):
                raise SystemExit(f"{path}: {case.name}.{key} is not what was written")
        if not torch.isfinite(case.expected).all():
            raise SystemExit(f"{path}: {case.name} has values that are not finite")
        json.loads(metadata[case.name])
    if stored:
        raise SystemExit(f"{path}: what are {sorted(stored)}?")


def write(name: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cases = list(FORMATS[name]())
    tensors = {
        f"{case.name}.{key}": value.contiguous()
        for case in cases
        for key, value in (case.tensors | {"expected": case.expected}).items()
    }
    metadata = {case.name: json.dumps(case.config, sort_keys=True) for case in cases}
    path = FOLDER / f"{name}.safetensors"
    path.write_bytes(with_sorted_metadata(save(tensors, metadata)))
    read_back(path, cases)
    print(f"{path.name}: {len(cases)} cases, {path.stat().st_size} bytes", flush=True)


def main(names: list[str]) -> None:
    unknown = set(names) - set(FORMATS)
    if unknown:
        raise SystemExit(f"no such fixtures: {sorted(unknown)}; there are {sorted(FORMATS)}")
    FOLDER.mkdir(exist_ok=True)
    if len(names) == 1:
        write(names[0])
        return
    for name in names or FORMATS:
        subprocess.run([sys.executable, __file__, name], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
