# SPDX-License-Identifier: Apache-2.0
"""Models that HQQ quantized, packed with numpy (foreign_support.py) and loaded without it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from foreign_support import HQQ, edit_layer, hqq_layer, same_model, write_checkpoint
from model_support import llama

import woq


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_a_model_runs_packed(tmp_path, bits):
    model = llama()
    write_checkpoint(tmp_path, model, lambda rng, shape: hqq_layer(rng, shape, bits=bits), HQQ)
    loaded = same_model(tmp_path, model, 14)
    layers = [m for m in loaded.modules() if isinstance(m, woq.WeightOnlyLinear)]
    assert {layer.scheme.zeros for layer in layers} == {"float"}


def put(name, value):
    return lambda tensors: tensors.update({name: torch.from_numpy(np.asarray(value))})


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (put("axis", np.int32(0)), woq.Unsupported, "along axis 0, across rows"),
        (put("quant_zero", np.uint8(1)), woq.Unsupported, "stored with quant_zero"),
        (put("view_as_float", np.uint8(1)), woq.Unsupported, "stored with view_as_float"),
        (
            put("packing", np.frombuffer(b"4bit_32", np.uint8).copy()),
            woq.Unsupported,
            "4 bits are packed as '4bit_32'",
        ),
        (put("group_size", np.int32(0)), woq.InvalidArgument, "group_size is 0"),
        (put("group_size", np.int32(48)), woq.Unsupported, "groups of 48 weights do not divide"),
        (put("group_size", np.int32(16)), woq.InvalidArgument, r"expected \[128, 16\]"),
        (put("nbits", np.int32(9)), woq.Unsupported, "its 9 bits are packed as '4bit_u8'"),
        (put("nbits", np.float32(4)), woq.InvalidArgument, "'nbits' is no integer"),
        (put("shape", np.array([32, 128])), woq.InvalidArgument, r"shape is \[32, 128\]"),
        (lambda t: t.pop("axis"), woq.InvalidArgument, "'axis' is missing"),
        (lambda t: t.pop("zero"), woq.InvalidArgument, "'zero' is missing"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, edit, error, message):
    write_checkpoint(tmp_path, llama(), hqq_layer, HQQ)
    edit_layer(tmp_path, edit)
    with pytest.raises(error, match=f"(?s)q_proj.*{message}"):
        woq.AutoModelForCausalLM.from_pretrained(tmp_path)
