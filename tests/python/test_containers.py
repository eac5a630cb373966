# SPDX-License-Identifier: Apache-2.0
"""The core's readers of safetensors and GGUF beside the formats' own libraries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import woq
from woq.core import native
from woq.demo import DemoError, find_smollm2

FIXTURES = sorted((Path(__file__).parents[1] / "formats" / "fixtures").glob("*.safetensors"))


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_safetensors_reads_what_the_library_reads(path):
    model = native.SafetensorsModel(str(path))
    with safe_open(path, "np") as file:
        assert model.metadata == (file.metadata() or {})
        assert model.tensors.keys() == set(file.keys())
    with safe_open(path, "pt") as file:
        for name, (dtype, shape, data) in model.tensors.items():
            entry = file.get_slice(name)
            assert (dtype, list(shape)) == (entry.get_dtype(), entry.get_shape())
            expected = file.get_tensor(name).contiguous().reshape(-1).view(torch.uint8)
            np.testing.assert_array_equal(data, expected.numpy())


def test_safetensors_of_every_type_of_torch(tmp_path):
    kinds = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    kinds += (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    kinds += (torch.float8_e4m3fn, torch.float8_e5m2)
    tensors = {str(kind): torch.zeros(3, 2).to(kind) for kind in kinds}
    tensors |= {"scalar": torch.tensor(1.5), "none": torch.zeros(0, 4)}
    save_file(tensors, tmp_path / "model.safetensors")
    model = native.SafetensorsModel(str(tmp_path))
    assert {name: shape for name, (_, shape, _) in model.tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in tensors.items()
    }


def test_a_tensor_keeps_its_file_mapped(tmp_path):
    save_file({"a": torch.arange(5)}, tmp_path / "model.safetensors")
    data = native.SafetensorsModel(str(tmp_path)).tensors["a"][2]
    assert data.view(np.int64).tolist() == [0, 1, 2, 3, 4]
    assert not data.flags.writeable


def test_gguf_reads_what_the_library_reads():
    gguf = pytest.importorskip("gguf")
    try:
        path = find_smollm2()
    except DemoError as error:
        pytest.skip(str(error))
    model, reader = native.GgufModel(str(path)), gguf.GGUFReader(path)
    assert model.tensors.keys() == {tensor.name for tensor in reader.tensors}
    for tensor in reader.tensors:
        kind, shape, data = model.tensors[tensor.name]
        assert kind == tensor.tensor_type.name
        assert list(shape) == tensor.shape.tolist()[::-1]
        np.testing.assert_array_equal(data, tensor.data.reshape(-1).view(np.uint8))
    fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert model.metadata.keys() == fields.keys()
    for name, field in fields.items():
        expected, found = field.contents(), model.metadata[name]
        if isinstance(found, np.ndarray):
            found = found.tolist()
        assert found == expected, name


@pytest.mark.parametrize("kind", [native.SafetensorsModel, native.GgufModel])
def test_what_is_no_file_is_refused(kind, tmp_path):
    with pytest.raises(woq.InvalidArgument, match="No such file"):
        kind(str(tmp_path / "none.safetensors"))
    with pytest.raises(woq.InvalidArgument, match="not a regular file"):
        kind("/dev/zero")
    (tmp_path / "empty.gguf").write_bytes(b"")
    with pytest.raises(woq.InvalidArgument, match="0 are left"):
        kind(str(tmp_path / "empty.gguf"))
