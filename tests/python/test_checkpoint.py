# SPDX-License-Identifier: Apache-2.0
"""A checkpoint whose files do not belong together is refused before its tensors are read, by
transformers' own classes, too."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from crash_support import in_child
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForCausalLM

import woq
from woq import InvalidArgument
from woq.formats.checkpoint import check_folder, read_header

MODELS = Path(__file__).parents[1] / "models"
IDS = torch.tensor([[(7 + 3 * j) % 16 for j in range(12)]])


@pytest.fixture
def stored(tmp_path: Path) -> Callable[..., Path]:
    """A copy of a golden checkpoint."""

    def copy(name: str, version: int = 2, place: str = "model") -> Path:
        source = MODELS / ("stored" if version == 1 else "stored_2") / name
        return Path(shutil.copytree(source, tmp_path / place))

    return copy


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the quantization_config."""
    path = folder / "config.json"
    values = json.loads(path.read_text())
    change(values["quantization_config"])
    path.write_text(json.dumps(values))


def forget_digest(folder: Path) -> None:
    edit(folder, lambda settings: settings.pop("digest", None))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of model.safetensors, and keep the digest of the save."""
    path = folder / "model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    change(tensors)
    metadata.pop("woq_tensors", None)
    save_file(tensors, path, metadata)


def refused(folder: Path, match: str) -> None:
    for auto_class in (AutoModelForCausalLM, woq.AutoModelForCausalLM):
        with pytest.raises(InvalidArgument, match=match):
            auto_class.from_pretrained(folder)


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        values: torch.Tensor = AutoModelForCausalLM.from_pretrained(folder)(IDS).logits
    return values


Q_PROJ = "model.layers.0.self_attn.q_proj"

# What config.json is changed to -> what is lost without a word in version 1: as far as the tensors
# do not show it, which is None here.
SETTINGS = {
    ("nf4_double", "dtype"): ({"weight_dtype": "fp4_e2m1"}, None),
    ("nf4_double", "group size"): ({"group_size": 32}, r"scales is U8 .* expected U8"),
    ("int4_clip_asym", "scheme"): ({"scheme": "sym"}, "zero_points does not belong"),
    ("gptq_desc_act", "g_idx"): (
        {"algorithm": "RTN", "algorithm_args": {}, "mse_range": None},
        "g_idx does not belong",
    ),
    ("awq", "act_scales"): (
        {"algorithm": "RTN", "algorithm_args": {}, "mse_range": None},
        "act_scales does not belong",
    ),
    ("int8_fp16", "scales"): ({"scale_dtype": "bf16"}, r"scales is F16 .* expected BF16"),
    ("hqq", "zero points"): (
        {"algorithm": "RTN", "algorithm_args": {}, "mse_range": None},
        r"zero_points is F32 .* expected U8",
    ),
    ("int8_fp16", "a rule"): (
        {"layer_config": [["q_proj", {"weight_dtype": "int4_clip"}]]},
        r"qweight is U8 \[32, 32\], expected U8 \[32, 16\]",
    ),
    ("int8_fp16", "skipped"): (
        {"modules_to_not_convert": ["q_proj"]},
        "q_proj is quantized, and should be floating point",
    ),
}


@pytest.mark.parametrize("case", SETTINGS, ids=" ".join)
def test_settings_that_are_not_those_of_the_tensors(
    case: tuple[str, str], stored: Callable[..., Path]
) -> None:
    change, shown = SETTINGS[case]
    new, old = stored(case[0]), stored(case[0], 1, "old")
    for folder in (new, old):
        edit(folder, lambda settings: settings.update(change))
    message = r"\w+_proj: the settings ask for tensors of the form .* stored have the form"
    refused(new, message if "skipped" not in case else str(shown))
    forget_digest(new)
    refused(new, message if "skipped" not in case else str(shown))
    if shown is not None:
        refused(old, shown)


@pytest.mark.parametrize("field", ["weight_dtype", "group_size", "scheme", "scale_dtype"])
def test_a_setting_that_is_lost(field: str, stored: Callable[..., Path]) -> None:
    """What is left is the default, which a layer of this checkpoint has in no field."""
    folder = stored("int4_clip_asym")
    edit(folder, lambda settings: settings.pop(field))
    refused(folder, "the settings ask for tensors of the form")


def test_settings_that_only_say_how_to_compute_can_be_changed(
    stored: Callable[..., Path],
) -> None:
    folder = stored("awq")
    before = logits(folder)
    edit(folder, lambda settings: settings.update(compute_dtype="bf16"))
    assert not torch.equal(logits(folder), before)
    edit(folder, lambda settings: settings.update(compute_dtype="fp32"))
    assert torch.equal(logits(folder), before)


def test_a_marker_whose_layer_has_another_name(stored: Callable[..., Path]) -> None:
    """A model without a head reads the checkpoint of one with a head under shorter names."""
    folder = stored("nf4_double")
    AutoModel.from_pretrained(folder)
    edit(folder, lambda settings: settings.update(weight_dtype="fp4_e2m1"))
    with pytest.raises(InvalidArgument, match="the settings ask for"):
        AutoModel.from_pretrained(folder)


TENSORS = {
    "left over": (
        lambda tensors: tensors.update({f"{Q_PROJ}.zero_points": torch.zeros(32, 1)}),
        "q_proj.zero_points does not belong to the layer",
    ),
    "missing": (lambda tensors: tensors.pop(f"{Q_PROJ}.scales"), r"q_proj\.scales is missing"),
    "another type": (
        lambda tensors: tensors.update({f"{Q_PROJ}.scales": tensors[f"{Q_PROJ}.scales"].float()}),
        r"q_proj\.scales is F32 \[32, 1\], expected F16 \[32, 1\]",
    ),
    "integers": (
        lambda tensors: tensors.update({f"{Q_PROJ}.qweight": torch.zeros(32, 32).char()}),
        r"q_proj\.qweight is I8 \[32, 32\], expected U8 \[32, 32\]",
    ),
    "another shape": (
        lambda tensors: tensors.update({f"{Q_PROJ}.scales": torch.zeros(1, 32).half()}),
        r"q_proj\.scales is F16 \[1, 32\], expected F16 \[32, 1\]",
    ),
    "a norm of integers": (
        lambda tensors: tensors.update({"model.norm.weight": torch.ones(32).int()}),
        r"model\.norm\.weight is I32 \[32\], expected torch\.float32 \[32\]",
    ),
}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_are_not_those_of_the_settings(
    case: str, version: int, stored: Callable[..., Path]
) -> None:
    change, message = TENSORS[case]
    folder = stored("int8_fp16", version)
    rewrite(folder, change)
    refused(folder, message)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("model.norm.weight"),
        lambda tensors: tensors.update(more=torch.zeros(1)),
        lambda tensors: tensors.update({"model.norm.weight": torch.ones(32).half()}),
        lambda tensors: tensors.update({"model.norm.weight": torch.ones(4, 8)}),
    ],
    ids=["lost", "more", "type", "shape"],
)
def test_all_names_types_and_shapes_are_bound(
    change: Callable[[dict[str, torch.Tensor]], object], stored: Callable[..., Path]
) -> None:
    folder = stored("int8_fp16")
    with safe_open(folder / "model.safetensors", "pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata)
    refused(folder, "are not those that were saved")


def test_files_of_two_saves(stored: Callable[..., Path]) -> None:
    one, other = stored("awq"), stored("hqq", place="other")
    shutil.copy(other / "model.safetensors", one)
    refused(one, r"model\.safetensors and config\.json are not of the same save \(they have diff")


def test_shards_of_two_saves(tmp_path: Path) -> None:
    """Of equal settings and shapes, so that only the digest tells them apart."""
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        model = AutoModelForCausalLM.from_pretrained(MODELS / "stored_2" / "int4_clip_asym")
        if folder.name == "b":
            model.model.norm.weight.data += 1
        woq.save_pretrained(model, folder, max_shard_size="4KB")
    shard = "model-00004-of-00004.safetensors"
    assert "model.norm.weight" in read_header(str(folders[0] / shard)).tensors
    shutil.copy(folders[0] / shard, folders[1])
    refused(folders[1], f"{shard} and config.json are not of the same save")


def test_old_settings_and_new_tensors_and_the_reverse(stored: Callable[..., Path]) -> None:
    new, old = stored("hqq"), stored("hqq", 1, "old")
    before = (new / "model.safetensors").read_bytes()
    shutil.copy(old / "model.safetensors", new)
    refused(new, r"not of the same save \(it has no digest")
    forget_digest(new)
    refused(new, "has 1 bytes, expected 256")
    (old / "model.safetensors").write_bytes(before)
    refused(old, r"not of the same save \(config.json is older")


def test_without_its_digest_a_checkpoint_loads(stored: Callable[..., Path]) -> None:
    folder = stored("hqq")
    before = logits(folder)
    forget_digest(folder)
    assert torch.equal(logits(folder), before)


def test_other_formats_of_files_have_no_digest(stored: Callable[..., Path]) -> None:
    folder = stored("hqq")
    before = logits(folder)
    with safe_open(folder / "model.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    refused(folder, "woq saves safetensors files")
    forget_digest(folder)
    assert torch.equal(logits(folder), before)
    edit(folder, lambda settings: settings.update(scale_dtype="bf16"))
    refused(folder, "the settings ask for tensors of the form")


def what_it_is(folder: Path, right: Mapping[str, torch.Tensor]) -> str:
    """The name of the model that is in the folder, or "refused"."""
    try:
        values = logits(folder)
    except InvalidArgument as error:
        return "refused" if "are not of the same save" in str(error) else str(error)
    return next((name for name, each in right.items() if torch.equal(values, each)), "another")


@pytest.mark.parametrize(
    ("before", "after"),
    [("1GB", "1GB"), ("1GB", "4KB"), ("4KB", "1GB"), ("4KB", "3KB")],
    ids=["file", "file to shards", "shards to file", "shards"],
)
def test_a_kill_at_any_rename(before: str, after: str, tmp_path: Path) -> None:
    """What is there afterwards is the old model, or refused, or (from the last step on) the new
    one; and all that the next save leaves is that one's."""
    folder = tmp_path / "model"
    old, new = (
        AutoModelForCausalLM.from_pretrained(MODELS / "stored_2" / name)
        for name in ("nf4_double", "int4_fullrange_double")
    )
    with torch.no_grad():
        right = {"old": old(IDS).logits, "new": new(IDS).logits}
    seen = []
    for steps in range(1, 100):
        woq.save_pretrained(old, folder, max_shard_size=before)

        def save(limit: int = steps) -> None:
            done = [0]
            for name in ("replace", "unlink"):
                real = getattr(os, name)

                def step(*arguments: Any, real: Any = real, **keywords: Any) -> None:
                    real(*arguments, **keywords)
                    if str(arguments[0]).startswith(str(folder)):
                        done[0] += 1
                    if done[0] == limit:
                        os.kill(os.getpid(), signal.SIGKILL)

                setattr(os, name, step)
            woq.save_pretrained(new, folder, max_shard_size=after)

        if in_child(save) != ("signal", signal.SIGKILL):
            break
        seen.append(what_it_is(folder, right))
    files = {path.name for path in folder.iterdir()}
    assert not [name for name in files if name.startswith(".")]
    assert what_it_is(folder, right) == "new"
    assert seen[-1] == "new"
    assert "refused" in seen[:-1]
    assert seen == sorted(seen, key=["old", "refused", "new"].index)


TENSOR = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}0'
HEADERS = {
    "a gap": b"\x35\0\0\0\0\0\0\0" + TENSOR + b"1",
    "another size": b"\x36\0\0\0\0\0\0\0"
    + TENSOR[:-1].replace(b"U8", b"F16").replace(b"[1,2]", b"[0,1]")
    + b"0",
    "empty": b"",
    "short": b"\x08\0\0\0",
    "too long": b"\xff" * 8 + b"{}",
    "no JSON": b"\x04\0\0\0\0\0\0\0[,,]",
    "no object": b"\x02\0\0\0\0\0\0\0[]",
    "deep": (100_000).to_bytes(8, "little") + b"[" * 100_000,
    "twice": b'\x12\0\0\0\0\0\0\0{"a":{},"a":{}}   ',
    "no offsets": b'\x08\0\0\0\0\0\0\0{"a":{}}',
    "backwards": b'\x35\0\0\0\0\0\0\0{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}}0',
    "more bytes": b'\x35\0\0\0\0\0\0\0{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}01',
}


@pytest.mark.parametrize("case", HEADERS)
def test_damaged_headers(case: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(HEADERS[case])
    with pytest.raises(InvalidArgument, match=r"x\.safetensors is damaged or incomplete"):
        read_header(str(path))


@pytest.mark.parametrize("name", ["../outside.safetensors", "/dev/zero", "{outside}", "device"])
def test_an_index_that_leaves_the_folder(
    name: str, stored: Callable[..., Path], tmp_path: Path
) -> None:
    folder = stored("int4_clip_asym")
    outside = tmp_path / "outside.safetensors"
    shutil.copy(folder / "model-00001-of-00004.safetensors", outside)
    (folder / "device").symlink_to("/dev/zero")
    index = folder / "model.safetensors.index.json"
    text = index.read_text()
    name = name.format(outside=outside)
    index.write_text(text.replace("model-00001-of-00004.safetensors", name))
    message = "outside of the folder|is no file"
    refused(folder, message)
    # Also where woq saved nothing, and where transformers would look at the first file for a dtype.
    values = json.loads((folder / "config.json").read_text())
    del values["quantization_config"], values["dtype"]
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(InvalidArgument, match=message):
        woq.AutoModelForCausalLM.from_pretrained(folder)


def test_a_config_that_names_a_file_outside(tmp_path: Path) -> None:
    for name, shown in (("a/../../x.safetensors", True), ("sub/x.safetensors", False)):
        (tmp_path / "config.json").write_text(json.dumps({"transformers_weights": name}))
        if shown:
            with pytest.raises(InvalidArgument, match="outside of the folder"):
                check_folder(tmp_path)
        else:
            check_folder(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": 5}'])
def test_a_damaged_config_is_not_read_twice(text: str, tmp_path: Path) -> None:
    """transformers says what is wrong with it."""
    (tmp_path / "config.json").write_text(text)
    check_folder(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": []}', '{"weight_map": {"a": 1}}'])
def test_a_damaged_index(text: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(InvalidArgument, match=r"index\.json"):
        woq.AutoModelForCausalLM.from_pretrained(tmp_path)
