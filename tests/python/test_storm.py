# SPDX-License-Identifier: Apache-2.0
"""Odd arrays and scalars for every entry point of the core: a call returns or raises, it does not
end the process. Each batch of calls runs in a forked child, so that a signal is a failure of the
batch that names its calls.

A few seconds; 100,000 calls with WOQ_LONG_TESTS=1 (`make test-all`).
"""

from __future__ import annotations

import inspect
import json
import os
import random
import signal
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from woq.core import native

CALLS = 100_000 if "WOQ_LONG_TESTS" in os.environ else 1_500
BATCH = 100
SECONDS = 60  # for a batch; a call takes a millisecond

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

SCALARS = [
    *(None, True, False, 0, 1, -1, 2, 7, 16, 32, 64, -(2**31), 2**31 - 1, 2**31, 2**63 - 1, 2**64),
    *(0.0, -0.0, 0.5, 1e-45, 1e38, -1e300, float("inf"), float("-inf"), float("nan")),
    *("", "nf4", "int8", "int4_clip", "fp32", "bf16", "auto", "double", "\0", "x" * 1000, "é"),
    *(b"", b"GGUF", b"\xff" * 100, [], [1], (), {}, {"a": 1}, object(), type, ...),
]
SHAPES = [(), (0,), (1,), (64,), (0, 64), (64, 0), (1, 1), (3, 64), (48, 64), (64, 48), (2, 3, 4)]
TYPES = ["float32", "float16", "float64", "uint8", "int8", "uint16", "int32", "int64", "bool"]
SPECIAL = [float("nan"), float("inf"), float("-inf"), 1e38, -3.4e38, 1e-45, 0.0, -0.0, 1.0]


def numpy_array(rng: random.Random) -> np.ndarray:
    shape, kind = rng.choice(SHAPES), rng.choice(TYPES)
    array = np.random.default_rng(rng.getrandbits(32)).standard_normal(shape)
    if rng.random() < 0.3 and array.size:
        flat = array.reshape(-1)
        flat[rng.randrange(flat.size)] = rng.choice(SPECIAL)
    with np.errstate(all="ignore"):
        array = np.asarray(array).astype(kind)
    way = rng.randrange(10)
    if way == 0:
        array = np.asfortranarray(array)
    elif way == 1:
        array = array[..., ::-1] if array.ndim else array
    elif way == 2:
        array.setflags(write=False)
    elif way == 3:
        array = array.astype(array.dtype.newbyteorder())
    elif way == 4 and array.size and array.ndim:
        array = np.broadcast_to(array[:1], (5, *array.shape[1:]))
    elif way == 5:
        array = np.frombuffer(
            b"\0" + array.tobytes(), dtype=array.dtype, offset=1, count=array.size
        )
    return array


class Freed(torch.Tensor):
    """torch's own repr() of a tensor whose storage was freed ends the process, and pybind11 shows
    arguments that fit no overload."""

    def __repr__(self, **_: Any) -> str:
        return "Freed()"


def tensor(rng: random.Random) -> torch.Tensor:
    array = np.ascontiguousarray(numpy_array(rng))
    if not array.dtype.isnative or array.dtype == np.uint16:
        array = array.astype(np.float32)
    result = torch.tensor(array.copy())
    way = rng.randrange(12)
    if way == 0:
        result.untyped_storage().resize_(rng.choice([0, 1, 4]))
        result = result.as_subclass(Freed)
    elif way == 1 and result.is_floating_point():
        result = torch._efficientzerotensor(result.shape, dtype=result.dtype)
    elif way == 2:
        result = result.to("meta")
    elif way == 3:
        result = result.to_sparse() if result.dim() else result
    elif way == 4:
        result = result.to(torch.bfloat16)
    elif way == 5 and result.is_floating_point():
        result = result.requires_grad_()
    elif way == 6 and result.dim() and len(result):
        result = result[:1].expand(7, *result.shape[1:])
    elif way == 7 and result.dim() == 2:
        result = result.t()
    elif way == 8:
        result = torch.nn.Parameter(result, requires_grad=False)
    elif way == 9:
        result = torch._to_functional_tensor(result)
    elif way == 10 and result.dtype in (torch.float32, torch.float64):
        result = torch.complex(result, result).conj().imag
    return result


def scheme(rng: random.Random) -> native.QuantScheme:
    while True:
        try:
            return native.QuantScheme(
                rng.choice(native.dtype_names()),
                rng.choice([-1, 16, 24, 32, 64, 128]),
                zeros=rng.choice(["none", "int", "float"]),
                scales=rng.choice(["fp32", "fp16", "bf16", "double"]),
            )
        except native.InvalidArgument:
            continue


def matrix(rng: random.Random) -> native.QuantizedMatrix:
    weight = np.random.default_rng(rng.getrandbits(32)).standard_normal((48, 64)).astype("float32")
    result = native.quantize_rtn(weight, native.QuantScheme(rng.choice(native.dtype_names()), 32))
    return result.with_act_scales(np.full(64, 0.5, "float32")) if rng.random() < 0.3 else result


def linear(rng: random.Random) -> native.Linear:
    return native.Linear(matrix(rng), None, rng.choice(["fp32", "bf16", "int8", "auto"]))


def hessian(rng: random.Random) -> native.Hessian:
    result = native.Hessian(rng.choice([1, 48, 64]))
    if rng.random() < 0.8:
        result.add(np.random.default_rng(1).standard_normal((70, result.in_features)).astype("f"))
    return result


def good_array(rng: random.Random) -> np.ndarray | torch.Tensor:
    """What most arguments want, so that calls get past their first check."""
    shape = rng.choice([(3, 64), (3, 48), (48, 64), (64,), (48, 2)])
    array = np.random.default_rng(rng.getrandbits(32)).standard_normal(shape).astype("float32")
    if rng.random() < 0.2:
        array.reshape(-1)[rng.randrange(array.size)] = rng.choice(SPECIAL)
    return torch.from_numpy(array) if rng.random() < 0.5 else array


def argument(rng: random.Random) -> Any:
    make: Callable[[random.Random], Any] = rng.choice(
        [good_array] * 4
        + [tensor, numpy_array] * 3
        + [scheme, matrix, linear, hessian] * 2
        + [lambda rng: native.CrossMoment(64)]
        + [lambda rng: rng.choice(SCALARS)] * 4
        + [lambda rng: [argument(rng) for _ in range(rng.randrange(4))]]
        + [lambda rng: {rng.choice(["qweight", "scales", "x"]): argument(rng)}]
    )
    return make(rng)


# What a parameter of this name is in most of its calls; the rest is anything.
USUAL: dict[str, Callable[[random.Random], Any]] = {
    "scheme": scheme,
    "schemes": scheme,
    "hessian": hessian,
    "quantized": matrix,
    "gate": linear,
    "up": linear,
    "weights": lambda rng: [good_array(rng)],
    "outputs": lambda rng: [(linear(rng), argument(rng), *([argument(rng)] * rng.randrange(3)))],
    "in_features": lambda rng: rng.choice([1, 48, 64]),
    "rows": lambda rng: rng.choice([0, 1, 48, 64]),
    "cols": lambda rng: rng.choice([0, 1, 48, 64]),
    "begin": lambda rng: rng.randrange(-2, 60),
    "end": lambda rng: rng.randrange(-2, 60),
    # Not every number: one of 2^31 threads is refused by the system, and that takes its time.
    "num_threads": lambda rng: rng.randrange(-1, 5),
    "threads": lambda rng: rng.randrange(-1, 5),
    "steps": lambda rng: rng.randrange(-1, 4),
    "n_grid": lambda rng: rng.randrange(-1, 4),
}


def entry_points() -> list[tuple[str, Any, type | None]]:
    """Every function, method, constructor and property: (name, function, owner)."""
    found: list[tuple[str, Any, type | None]] = []
    for name, value in sorted(vars(native).items()):
        if name.startswith("_") or getattr(value, "__module__", "") != "woq._woq":
            continue
        if not isinstance(value, type):
            if callable(value):
                found.append((name, value, None))
        elif not issubclass(value, Exception):
            for member, function in sorted(vars(value).items()):
                if isinstance(function, property):
                    found.append((f"{name}.{member}", function.fget, value))
                elif callable(getattr(value, member)) and (
                    not member.startswith("_") or member in ("__init__", "__repr__")
                ):
                    static = isinstance(inspect.getattr_static(value, member), staticmethod)
                    found.append(
                        (f"{name}.{member}", getattr(value, member), None if static else value)
                    )
    # Changes this process for good; has no argument.
    return [point for point in found if point[0] != "enter_forked_child"]


OWNERS: dict[str, Callable[[random.Random], Any]] = {
    "QuantizedMatrix": matrix,
    "Linear": linear,
    "Hessian": hessian,
    "CrossMoment": lambda rng: native.CrossMoment(64),
    "QuantScheme": scheme,
    "DtypeTraits": lambda rng: native.dtype_traits(rng.choice(native.dtype_names())),
}


def parameters(function: Any) -> list[str]:
    """As the first line of pybind11's docstring has them."""
    head = (function.__doc__ or "").split(") ->")[0].partition("(")[2]
    names = [part.split(":")[0].strip() for part in head.split(", ") if ":" in part]
    return [name for name in names if name.isidentifier() and name != "self"]


def call(rng: random.Random, point: tuple[str, Any, type | None]) -> bool:
    """One call; whether it returned. Errors of its arguments are what it may raise."""
    _, function, owner = point
    arguments: list[Any] = []
    if owner is not None:
        right = rng.random() < 0.9 and owner.__name__ in OWNERS
        arguments.append(OWNERS[owner.__name__](rng) if right else argument(rng))
    keywords: dict[str, Any] = {}
    for name in parameters(function):
        usual = name in USUAL and rng.random() < 0.85
        value = USUAL[name](rng) if usual else argument(rng)
        if name == "num_threads" and not usual:
            continue
        keywords[name] = value
    for name in native.option_defaults().get(getattr(function, "__name__", ""), {}):
        if rng.random() < 0.3 and name in USUAL:
            keywords[name] = USUAL[name](rng)
    if rng.random() < 0.1:
        keywords[rng.choice(["scheme", "x", "name", "dtype"])] = argument(rng)
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function(*arguments, **keywords)
    # pybind11's conversions raise these; torch raises RuntimeError for tensors of unusual layouts.
    except (TypeError, ValueError, RuntimeError, OverflowError, MemoryError, AttributeError):
        return False
    return True


def batches() -> Iterator[tuple[str, list[int]]]:
    points = entry_points()
    numbers = list(range(CALLS))
    for first in range(0, CALLS, BATCH):
        yield f"calls {first} to {first + BATCH - 1}", numbers[first : first + BATCH]
    assert points


def run_batch(numbers: list[int], write: int) -> None:
    """In the child: writes the number of each call before it is made, then what came of it."""
    torch.set_num_threads(1)  # its own operations would wait for threads that a fork does not copy
    points = entry_points()
    for number in numbers:
        os.write(write, f"{number} ".encode())
        point = points[number % len(points)]
        rng = random.Random(zlib.crc32(f"storm {number}".encode()))
        os.write(write, b"returned\n" if call(rng, point) else b"raised\n")


def storm(numbers: list[int]) -> tuple[list[str], str]:
    """The lines that the child wrote, and how it ended."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(read)
            run_batch(numbers, write)
            code = 0
        except Exception as error:  # noqa: BLE001  the parent shows it
            os.write(write, f"{type(error).__name__}: {error}\n".encode()[:500])
        finally:
            os._exit(code)
    os.close(write)
    text, end = b"", time.monotonic() + SECONDS
    os.set_blocking(read, False)
    status = None
    while status is None:
        try:
            text += os.read(read, 1 << 16)
        except BlockingIOError:
            time.sleep(0.005)
        done, code = os.waitpid(child, os.WNOHANG)
        if done:
            status = code
        elif time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
    os.set_blocking(read, True)
    while chunk := os.read(read, 1 << 16):
        text += chunk
    os.close(read)
    how = (
        f"signal {os.WTERMSIG(status)}"
        if os.WIFSIGNALED(status)
        else f"exit {os.WEXITSTATUS(status)}"
    )
    return text.decode(errors="replace").splitlines(), how


def test_the_storm_meets_every_entry_point() -> None:
    names = [name for name, _, _ in entry_points()]
    assert len(names) == len(set(names)) > 60
    assert {"quantize_gptq", "Linear.forward", "Hessian.rows", "QuantizedMatrix.__init__"} <= set(
        names
    )
    assert len(names) <= CALLS


def test_a_crash_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "run_batch", lambda numbers, write: os.kill(os.getpid(), 9))
    assert storm([0])[1] == "signal 9"


def test_no_call_ends_the_process() -> None:
    native.quantize_rtn(np.ones((256, 1024), "float32"), native.QuantScheme("nf4"), num_threads=2)
    points = entry_points()
    returned, failures = dict.fromkeys((name for name, _, _ in points), 0), []
    made = 0
    for what, numbers in batches():
        lines, how = storm(numbers)
        made += len(lines)
        for line in lines:
            number, _, outcome = line.partition(" ")
            if outcome == "returned":
                returned[points[int(number) % len(points)][0]] += 1
        if how != "exit 0":
            last = numbers[min(len(lines), len(numbers)) - 1] if lines else numbers[0]
            failures.append(
                f"{what}: {how} at call {last}, {points[last % len(points)][0]}: {lines[-1:]}"
            )
    assert not failures, "\n".join(failures)
    assert made == CALLS
    print(json.dumps(returned))
    # Calls that all fail at their first check would prove little.
    assert sum(returned.values()) > CALLS / 5
