# SPDX-License-Identifier: Apache-2.0
"""Checkpoints with something changed in their settings, headers, names, types or files, each loaded
in a child: it has the right logits, or it is refused with one of woq's errors.

Bytes of tensors are not changed, nor tensors of equal types and shapes swapped: safetensors has no
checksum of data, and woq does not read all data to make one.

Some by default; `pytest -m slow` has WOQ_MUTATIONS of them, 3,000 if that is not set.
"""

from __future__ import annotations

import collections
import json
import os
import random
import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from crash_support import fit_for_children, in_child
from model_support import seed
from transformers import AutoModelForCausalLM

import woq
from woq import InvalidArgument, Unsupported

FOLDER = Path(__file__).parents[1] / "models" / "stored_2"
CASES = sorted(path.name for path in FOLDER.iterdir())
IDS = torch.arange(12)[None]

MUTATIONS = [
    100,
    pytest.param(int(os.environ.get("WOQ_MUTATIONS", "3000")), marks=pytest.mark.slow, id="many"),
]

# compute_dtype is no property of the tensors: another one is another result, and right.
VALUES: dict[str, list[Any]] = {
    "weight_dtype": ["nf4", "fp4_e2m1", "fp4_e2m1_bnb", "int4_clip", "int4_fullrange", "int8"],
    "scale_dtype": ["fp32", "bf16", "fp16"],
    "group_size": [-1, 16, 24, 32, 40, 64, 128, 2**31, 2**63],
    "scheme": ["sym", "asym"],
    "use_double_quant": [True, False],
    "algorithm": ["RTN", "HQQ", "GPTQ", "AWQ", "TEQ", "AUTOROUND", "AWQ+GPTQ"],
    "algorithm_args": [{}, {"desc_act": True}, {"desc_act": False}],
    "mse_range": [True, False, None],
    "quantize_lm_head": [True, False, "int8", "nf4"],
    "quantize_embedding": [True, False, "tied", "int8", "nf4"],
    "modules_to_not_convert": [None, ["q_proj"], ["lm_head"], [".*"], ["(a+)+b"]],
    "layer_config": [
        [],
        [["q_proj", None]],
        [["down", {"weight_dtype": "int8"}]],
        [["(a|a)*b", {}]],
    ],
    "format_version": [1, 2, 3, 0],
    "digest": [None, "0" * 64],
}
JUNK: list[Any] = [None, True, -1, 0, 1e99, "", "x", "a" * 1000, [], {}, [[]], {"a": {}}]
TYPES = ["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL", "F8_E4M3", "X", ""]


def edit_settings(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "config.json"
    values = json.loads(path.read_text())
    change(values["quantization_config"])
    path.write_text(json.dumps(values))


def set_value(folder: Path, draw: random.Random) -> None:
    field = draw.choice(list(VALUES))
    value = draw.choice(VALUES[field] if draw.random() < 0.7 else JUNK)
    edit_settings(folder, lambda settings: settings.update({field: value}))


def lose_value(folder: Path, draw: random.Random) -> None:
    edit_settings(
        folder, lambda settings: settings.pop(draw.choice(sorted(settings.keys() & VALUES.keys())))
    )


def double_value(folder: Path, draw: random.Random) -> None:
    path = folder / "config.json"
    field = draw.choice(list(VALUES))
    value = json.dumps(draw.choice(VALUES[field]))
    text = path.read_text()
    path.write_text(text.replace('"quant_method"', f'"{field}": {value}, "quant_method"', 1))
    start = text.index('"quantization_config"')
    assert text.index('"quant_method"') > start


def change_rule_or_argument(folder: Path, draw: random.Random) -> None:
    def change(settings: dict[str, Any]) -> None:
        for field in draw.sample(list(VALUES), 2):
            settings[field] = draw.choice(VALUES[field])

    edit_settings(folder, change)


def weights(folder: Path, draw: random.Random) -> Path:
    return draw.choice(sorted(folder.glob("*.safetensors")))


def edit_header(
    folder: Path, draw: random.Random, change: Callable[[dict[str, Any]], object]
) -> None:
    path = weights(folder, draw)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    fields = json.loads(data[8 : 8 + length])
    change(fields)
    text = json.dumps(fields).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def tensor_of(fields: dict[str, Any], draw: random.Random) -> str:
    return draw.choice(sorted(fields.keys() - {"__metadata__"}))


def change_type(folder: Path, draw: random.Random) -> None:
    def change(fields: dict[str, Any]) -> None:
        fields[tensor_of(fields, draw)]["dtype"] = draw.choice(TYPES)

    edit_header(folder, draw, change)


def change_shape(folder: Path, draw: random.Random) -> None:
    def change(fields: dict[str, Any]) -> None:
        tensor = fields[tensor_of(fields, draw)]
        shape = tensor["shape"]
        size = [max(1, extent) for extent in shape]
        tensor["shape"] = draw.choice(
            [
                shape[::-1],
                [*shape, 1],
                [1, *shape],
                shape[:-1],
                [*size[:-1], size[-1] + 1],
                [-1],
                [2**62, 4],
            ]
        )

    edit_header(folder, draw, change)


def change_offsets(folder: Path, draw: random.Random) -> None:
    def change(fields: dict[str, Any]) -> None:
        offsets = fields[tensor_of(fields, draw)]["data_offsets"]
        offsets[draw.randrange(2)] += draw.choice([-1, 1, 8, 2**40, -(2**40)])

    edit_header(folder, draw, change)


def change_name(folder: Path, draw: random.Random) -> None:
    def change(fields: dict[str, Any]) -> None:
        name = tensor_of(fields, draw)
        new = draw.choice(
            [name + "x", name[1:], name.upper(), name.rpartition(".")[0] + ".zero_points", "é", ""]
        )
        fields[new] = fields.pop(name)

    edit_header(folder, draw, change)


def lose_tensor(folder: Path, draw: random.Random) -> None:
    edit_header(folder, draw, lambda fields: fields.pop(tensor_of(fields, draw)))


def add_tensor(folder: Path, draw: random.Random) -> None:
    def change(fields: dict[str, Any]) -> None:
        layer = tensor_of(fields, draw).rpartition(".")[0]
        name = draw.choice(["zero_points", "g_idx", "act_scales", "bias", "scales_sign", "x.y"])
        fields[f"{layer}.{name}"] = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}

    edit_header(folder, draw, change)


def change_metadata(folder: Path, draw: random.Random) -> None:
    def change(fields: dict[str, Any]) -> None:
        metadata = fields["__metadata__"]
        key = draw.choice(sorted(metadata))
        metadata[key] = draw.choice(["", "0" * 64, 5, None, []])

    edit_header(folder, draw, change)


def flip(path: Path, draw: random.Random, first: int, stop: int) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(draw.choice([1, 1, 2])):
        data[draw.randrange(first, stop)] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def flip_header(folder: Path, draw: random.Random) -> None:
    path = weights(folder, draw)
    flip(path, draw, 0, 8 + int.from_bytes(path.read_bytes()[:8], "little"))


def flip_marker(folder: Path, draw: random.Random) -> None:
    path = weights(folder, draw)
    data = path.read_bytes()
    start = data.find(b'\x02{"cols"', 8)
    if start < 0:
        flip(path, draw, 0, 8)
    else:
        flip(path, draw, start, start + 200)


def cut(folder: Path, draw: random.Random) -> None:
    path = weights(folder, draw)
    data = path.read_bytes()
    path.write_bytes(data[: draw.randrange(len(data))])


def extend(folder: Path, draw: random.Random) -> None:
    path = weights(folder, draw)
    path.write_bytes(path.read_bytes() + b"\0" * draw.choice([1, 8, 4096]))


def take_another_file(folder: Path, draw: random.Random) -> None:
    others = [
        path for path in sorted(FOLDER.glob("*/*.safetensors")) if path.parent.name != folder.name
    ]
    shutil.copy(draw.choice(others), weights(folder, draw))


def take_another_config(folder: Path, draw: random.Random) -> None:
    others = [
        path for path in sorted(FOLDER.glob("*/config.json")) if path.parent.name != folder.name
    ]
    shutil.copy(draw.choice(others), folder / "config.json")


def lose_file(folder: Path, draw: random.Random) -> None:
    shards = sorted(folder.glob("model-*.safetensors"))
    if shards:
        kept, lost = draw.sample(shards, 2)
        shutil.copy(kept, lost)
    else:
        cut(folder, draw)


KINDS = {
    kind.__name__: kind
    for kind in (
        set_value, lose_value, double_value, change_rule_or_argument, change_type, change_shape,
        change_offsets, change_name, lose_tensor, add_tensor, change_metadata, flip_header,
        flip_marker, cut, extend, take_another_file, take_another_config, lose_file,
    )
}  # fmt: skip


@pytest.fixture(autouse=True)
def _fit_for_children() -> Iterator[None]:
    with fit_for_children():
        yield


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        values: torch.Tensor = AutoModelForCausalLM.from_pretrained(folder)(IDS).logits
    return values


RIGHT, REFUSED, WRONG, UNCLEAR = range(4)


@pytest.mark.parametrize("count", MUTATIONS)
def test_mutated_checkpoints(count: int, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    draw = random.Random(seed(request))
    right = {name: logits(FOLDER / name) for name in CASES}
    found: collections.Counter[int] = collections.Counter()
    bad = []
    for number in range(count):
        name, kind = draw.choice(CASES), draw.choice(sorted(KINDS))
        auto_class = draw.choice([AutoModelForCausalLM, woq.AutoModelForCausalLM])
        folder = tmp_path / name
        shutil.copytree(FOLDER / name, folder)
        state = draw.getstate()
        KINDS[kind](folder, draw)

        def load(folder: Path = folder, auto_class: Any = auto_class, name: str = name) -> int:
            try:
                with torch.no_grad():
                    values = auto_class.from_pretrained(folder)(IDS).logits
            except (InvalidArgument, Unsupported):
                return REFUSED
            except Exception:  # noqa: BLE001
                (tmp_path / "error").write_text(traceback.format_exc(limit=1)[-300:])
                return UNCLEAR
            return RIGHT if torch.equal(values, right[name]) else WRONG

        end = in_child(load)
        if end[0] == "exit" and end[1] in (RIGHT, REFUSED):
            found[end[1]] += 1
        else:
            error = (tmp_path / "error").read_text() if end == ("exit", UNCLEAR) else ""
            bad.append(f"{number}: {kind} of {name} with {auto_class.__module__}: {end} {error}")
        draw.setstate(state)
        draw.random()
        shutil.rmtree(folder)
    print(f"{count} mutations: {found[RIGHT]} load right, {found[REFUSED]} are refused")
    assert not bad, "\n".join(bad)
    assert found[REFUSED] > count // 2
