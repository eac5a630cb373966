# SPDX-License-Identifier: Apache-2.0
"""The C++ core. Arrays are read in place: numpy (float32, float16, bfloat16) or torch CPU tensors.

W is [N, K] with N = out_features and K = in_features; G = ceil(K / group_size) groups a row.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

# numpy array or torch.Tensor; the core links neither torch nor ml_dtypes.
Array = Any

class InvalidArgument(ValueError): ...
class Unsupported(RuntimeError): ...

class TargetInfo(TypedDict):
    name: str
    available: bool
    missing: str

class ConsideredTarget(TypedDict):
    target: str
    why: str

class QuantScheme:
    """How a weight is quantized: the one form in which a number format is passed on.

    Frozen, comparable, hashable. `zeros` is "none", "int" (a code for each group) or "float" (a
    real number, as HQQ finds them); `scales` is the type in which scales are stored, or "double"
    (8-bit codes). `scheme["dtype"]` reads a field, too.
    """

    def __init__(
        self,
        dtype: str = "int4_clip",
        group_size: int = 32,
        zeros: str = "none",
        scales: str = "fp32",
    ) -> None: ...
    @property
    def dtype(self) -> str: ...
    @property
    def group_size(self) -> int: ...
    @property
    def zeros(self) -> str: ...
    @property
    def scales(self) -> str: ...
    @property
    def asym(self) -> bool: ...
    @property
    def word(self) -> str: ...
    @property
    def bits(self) -> int: ...
    def group_length(self, cols: int) -> int: ...
    def groups(self, cols: int) -> int: ...
    def replace(
        self,
        *,
        dtype: str | None = None,
        group_size: int | None = None,
        zeros: str | None = None,
        scales: str | None = None,
    ) -> QuantScheme: ...
    def to_dict(self) -> dict[str, Any]: ...
    @staticmethod
    def from_dict(fields: dict[str, Any]) -> QuantScheme: ...
    def __getitem__(self, name: str) -> Any: ...

class DtypeTraits:
    """What the core knows of a weight dtype; `values` are those of its codes at scale 1."""

    @property
    def name(self) -> str: ...
    @property
    def bits(self) -> int: ...
    @property
    def is_integer(self) -> bool: ...
    @property
    def center(self) -> int: ...
    @property
    def max_code(self) -> int: ...
    @property
    def signed_scale(self) -> bool: ...
    @property
    def values(self) -> NDArray[np.float32]: ...

class QuantizedMatrix:
    """A quantized weight in its canonical, instruction-set free form."""

    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...
    @property
    def scheme(self) -> QuantScheme: ...
    @property
    def has_g_idx(self) -> bool: ...
    @property
    def has_act_scales(self) -> bool: ...
    @property
    def nbytes(self) -> int: ...
    def codes(self) -> NDArray[np.uint8]: ...
    def scales(self) -> NDArray[np.float32]: ...
    def zero_points(self) -> NDArray[np.uint8] | NDArray[np.float32] | None: ...
    def minima(self) -> NDArray[np.float32] | None: ...
    def dequantize(self) -> NDArray[np.float32]: ...
    def dequantize_rows(
        self, begin: int, end: int, num_threads: int = 0
    ) -> NDArray[np.float32]: ...
    def tensors(self) -> dict[str, NDArray[Any]]: ...
    def with_g_idx(self, g_idx: Array | None = None) -> QuantizedMatrix: ...
    def with_act_scales(self, act_scales: Array) -> QuantizedMatrix: ...
    def validate(self) -> None: ...
    @staticmethod
    def from_tensors(
        tensors: dict[str, Array],
        *,
        rows: int,
        cols: int,
        scheme: QuantScheme,
        has_g_idx: bool = False,
        has_act_scales: bool = False,
    ) -> QuantizedMatrix: ...
    @staticmethod
    def from_codes(
        codes: Array, scales: Array, zero_points: Array | None, scheme: QuantScheme
    ) -> QuantizedMatrix: ...

class Linear:
    """y = x W^T + bias over a packed weight."""

    def __init__(
        self,
        weight: QuantizedMatrix,
        bias: Array | None = None,
        compute_dtype: str = "fp32",
        name: str = "",
        num_threads: int = 0,
    ) -> None: ...
    @property
    def in_features(self) -> int: ...
    @property
    def out_features(self) -> int: ...
    @property
    def has_bias(self) -> bool: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def compute_dtype(self) -> str: ...
    @property
    def requested_compute_dtype(self) -> str: ...
    @property
    def scheme(self) -> QuantScheme: ...
    @property
    def has_g_idx(self) -> bool: ...
    @property
    def has_act_scales(self) -> bool: ...
    def forward(self, x: Array, out: Array, num_threads: int = 0) -> None: ...
    def gather(self, ids: Array, out: Array, num_threads: int = 0) -> None:
        """Write row ids[i] of the weight, dequantized, to row i of `out` [ids, in_features]."""

    def unpack(self) -> QuantizedMatrix: ...
    def explain(self) -> dict[str, Any]: ...

def forward_shared(x: Array, outputs: Sequence[tuple[Any, ...]], num_threads: int = 0) -> None: ...
def forward_gated(x: Array, gate: Linear, up: Linear, out: Array, num_threads: int = 0) -> None: ...
def attention(
    q: Array,
    k: Array,
    v: Array,
    out: Array,
    batch: int,
    heads: int,
    kv_heads: int,
    scale: float,
    causal: bool = False,
    num_threads: int = 0,
) -> None: ...
def has_bf16_products() -> bool: ...

MAX_HEAD_DIM: int

class Hessian:
    """H = (2 / rows) X^T X of a layer's inputs X [rows, in_features], and their mean magnitudes."""

    def __init__(self, in_features: int, name: str = "layer") -> None: ...
    @property
    def in_features(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def add(self, x: Array, num_threads: int = 0) -> None: ...
    def merge(self, other: Hessian) -> None: ...
    def scaled(self, multipliers: Array) -> Hessian: ...
    def numpy(self) -> NDArray[np.float64]: ...
    @property
    def dead_columns(self) -> int: ...
    def diagonal(self) -> NDArray[np.float32]: ...
    def mean_magnitudes(self) -> NDArray[np.float64]: ...
    @staticmethod
    def from_numpy(
        h: Array, rows: int, mean_magnitudes: Array | None = None, name: str = "layer"
    ) -> Hessian: ...

class CrossMoment:
    """(2 / rows) (X_float - X_quantized)^T X_quantized: what GPTAQ adds to GPTQ."""

    def __init__(self, in_features: int, name: str = "layer") -> None: ...
    @property
    def in_features(self) -> int: ...
    @property
    def rows(self) -> int: ...
    def add(self, x_float: Array, x_quantized: Array, num_threads: int = 0) -> None: ...
    def scaled(self, multipliers: Array) -> CrossMoment: ...

def dtype_names() -> list[str]: ...
def dtype_aliases() -> dict[str, str]: ...
def compute_dtype_names() -> list[str]: ...
def scale_dtype_names() -> list[str]: ...
def code_values(dtype: str) -> NDArray[np.float32]: ...
def scale_encoding(scale_dtype: str, doubly_quantized: bool) -> str: ...
def dtype_traits(dtype: str) -> DtypeTraits: ...
def check_compute_dtype(compute_dtype: str) -> None: ...
def stored_tensors(
    scheme: QuantScheme,
    rows: int,
    cols: int,
    has_g_idx: bool = False,
    has_act_scales: bool = False,
) -> dict[str, tuple[tuple[int, ...], str]]: ...
def stored_scales(scales: Array, scheme: QuantScheme) -> NDArray[np.float32]: ...
def quantize_rtn(
    weight: Array,
    scheme: QuantScheme | None = None,
    *,
    mse_range: bool = False,
    importance: Array | None = None,
    name: str = "weight",
    num_threads: int = 0,
    **fields: Any,
) -> QuantizedMatrix: ...

# Of the functions below that take `options`: {function: {option: default}}.
def option_defaults() -> dict[str, dict[str, Any]]: ...
def quantize_gptq(
    weight: Array,
    hessian: Hessian,
    scheme: QuantScheme,
    *,
    cross: CrossMoment | None = None,
    in_flight: Array | None = None,
    ranges: Array | None = None,
    facts: dict[str, float] | None = None,
    name: str = "weight",
    num_threads: int = 0,
    **options: Any,
) -> QuantizedMatrix: ...
def awq_scales(
    weights: Sequence[Array],
    hessian: Hessian,
    schemes: QuantScheme | Sequence[QuantScheme],
    *,
    name: str = "layer",
    num_threads: int = 0,
    **options: Any,
) -> NDArray[np.float32]: ...
def awq_clip(
    weight: Array,
    hessian: Hessian,
    scheme: QuantScheme,
    *,
    name: str = "weight",
    num_threads: int = 0,
    **options: Any,
) -> NDArray[np.float32]: ...
def teq_scales(
    weights: Sequence[Array],
    hessian: Hessian,
    schemes: QuantScheme | Sequence[QuantScheme],
    *,
    start: Array | None = None,
    name: str = "layer",
    num_threads: int = 0,
    **options: Any,
) -> NDArray[np.float32]: ...
def quantize_hqq(
    weight: Array,
    scheme: QuantScheme,
    *,
    name: str = "weight",
    num_threads: int = 0,
    **options: Any,
) -> QuantizedMatrix: ...
def layer_error(
    weight: Array,
    approximation: QuantizedMatrix | Array,
    hessian: Hessian,
    num_threads: int = 0,
) -> float: ...
def rounded_weight(
    weight: Array,
    offsets: Array,
    scales: Array,
    zeros: Array | None,
    scheme: QuantScheme,
    *,
    out: Array,
    num_threads: int = 0,
) -> None: ...
def rounded_codes(
    weight: Array,
    offsets: Array,
    scales: Array,
    zeros: Array | None,
    scheme: QuantScheme,
    *,
    num_threads: int = 0,
) -> NDArray[np.uint8]: ...
def rounding_step(
    weight: Array,
    offsets: Array,
    scales: Array,
    zeros: Array | None,
    scheme: QuantScheme,
    *,
    gradient: Array,
    rate: float,
    scale_gradients: Array,
    zero_gradients: Array | None,
    num_threads: int = 0,
) -> None: ...
def error_metrics(weight: Array, quantized: QuantizedMatrix) -> dict[str, float]: ...
def cpu_info() -> dict[str, Any]: ...
def allowed_threads(wanted: int) -> int:
    """How many of `wanted` threads short work may use now: fewer beside other programs."""

def set_calling_threads(threads: int) -> None:
    """OpenMP's number of threads for the calling thread, torch's operations in it included."""

def enter_forked_child() -> None:
    """Computes on this thread alone from now on, as after a fork: for a process that was forked
    before this module was loaded."""

def targets() -> list[TargetInfo]: ...
def build_info() -> dict[str, Any]: ...

class SafetensorsModel:
    """A .safetensors file, or a folder of them with an index, mapped."""

    def __init__(self, path: str) -> None: ...
    @property
    def tensors(self) -> dict[str, tuple[str, tuple[int, ...], NDArray[np.uint8]]]:
        """{name: (type as the format spells it, shape, bytes)}"""

    @property
    def metadata(self) -> dict[str, str]: ...

class GgufModel:
    """A GGUF file, or the first one of a split model, mapped."""

    def __init__(self, path: str) -> None: ...
    @property
    def tensors(self) -> dict[str, tuple[str, tuple[int, ...], NDArray[np.uint8]]]:
        """{name: (type, shape with the contiguous dimension last, bytes)}"""

    @property
    def metadata(self) -> dict[str, Any]: ...
    @property
    def stored_metadata(self) -> dict[str, bytes]:
        """The bytes of each value, its type before it, as the file has them."""

def read_gptq(
    tensors: Mapping[str, Any],
    rows: int,
    cols: int,
    *,
    bits: int,
    group_size: int,
    sym: bool,
    zeros: str,
    planes: bool = False,
) -> tuple[QuantizedMatrix, str]:
    """A GPTQ or AutoRound layer (qweight, qzeros, scales, g_idx), and a sentence about how its zero
    points were understood. zeros: "v1", "v2" or "v1_borrowed"; planes: gptq_p's words."""

def read_awq(
    tensors: Mapping[str, Any], rows: int, cols: int, group_size: int, bits: int = 4
) -> QuantizedMatrix: ...
def read_compressed_packed(
    tensors: Mapping[str, Any], rows: int, cols: int, bits: int, group_size: int
) -> QuantizedMatrix: ...
def read_compressed_int(
    tensors: Mapping[str, Any], rows: int, cols: int, group_size: int
) -> QuantizedMatrix: ...
def read_bitsandbytes4(
    tensors: Mapping[str, Any],
    rows: int,
    cols: int,
    *,
    nf4: bool,
    block_size: int,
    nested_offset: float = 0.0,
) -> QuantizedMatrix: ...
def read_bitsandbytes8(tensors: Mapping[str, Any], rows: int, cols: int) -> QuantizedMatrix: ...
def read_fp4(
    tensors: Mapping[str, Any],
    rows: int,
    cols: int,
    *,
    scales: str,
    group_size: int,
    multiplier: float = 1.0,
    divisor: float = 1.0,
) -> QuantizedMatrix:
    """4-bit floats (weight, weight_scale): scales "e8m0" or "e4m3", all of them times multiplier,
    then divided by divisor."""

def read_hqq(
    tensors: Mapping[str, Any], rows: int, cols: int, bits: int, group_size: int
) -> QuantizedMatrix: ...
def is_gguf_matrix(type: str) -> bool:
    """Whether `read_gguf_matrix` reads that type of GGUF tensors."""

def read_gguf_matrix(
    type: str,
    data: Array,
    rows: int,
    cols: int,
    row_order: Sequence[int] | None = None,
    num_threads: int = 0,
) -> QuantizedMatrix:
    """The matrix of a quantized GGUF tensor, `data` its bytes, with ggml's values bit for bit. Row
    n is row row_order[n] of the file. Raises InvalidArgument; Unsupported for IQ1 to IQ3."""

GGUF_TYPES: dict[str, tuple[int, int, int]]
"""{type of GGUF tensors: its number, elements of a block, bytes of a block}"""

def gguf_type_for(matrix: QuantizedMatrix) -> str:
    """The smallest type that holds the matrix, its scales aside. Raises Unsupported."""

def write_gguf_matrix(
    matrix: QuantizedMatrix, type: str, round_scales: bool = False, num_threads: int = 0
) -> NDArray[np.uint8]:
    """The rows of a GGUF tensor of that type, [N, bytes of a row]. Raises Unsupported for a matrix
    that the type does not hold exactly; scales and minima may be rounded to float16."""

# The inverse. `scales` is float32, float16 or bfloat16, whose bits come as uint16. Unsupported is
# raised for what the format has no place for, scales that are not exact in their type among it.

def write_gptq(
    matrix: QuantizedMatrix, *, v2: bool, scales: str, round_scales: bool = False
) -> dict[str, NDArray[Any]]: ...
def write_awq(
    matrix: QuantizedMatrix, *, scales: str, round_scales: bool = False
) -> dict[str, NDArray[Any]]: ...
def write_compressed_packed(
    matrix: QuantizedMatrix, *, scales: str, round_scales: bool = False
) -> dict[str, NDArray[Any]]: ...
def write_compressed_int(
    matrix: QuantizedMatrix, *, scales: str, round_scales: bool = False
) -> dict[str, NDArray[Any]]: ...
def write_bitsandbytes4(matrix: QuantizedMatrix) -> dict[str, NDArray[Any]]: ...
def has_act_order(matrix: QuantizedMatrix) -> bool:
    """Whether columns belong to other groups than their places say."""

def read_imatrix(
    data: bytes, path: str
) -> tuple[dict[str, tuple[NDArray[np.float32], NDArray[np.int64]]], list[str], int]:
    """Importance matrix file, .dat or GGUF: {name: (mean [experts, K], counts [experts])}, names
    of data sets, tokens of a chunk. Raises InvalidArgument; `path` is for the message."""

def write_imatrix(
    entries: Mapping[str, tuple[NDArray[np.float32], NDArray[np.int64]]],
    datasets: Sequence[str],
    chunk_size: int,
    legacy: bool,
) -> bytes:
    """The bytes of a .dat file (legacy) or of a GGUF file."""
