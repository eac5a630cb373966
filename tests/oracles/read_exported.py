# SPDX-License-Identifier: Apache-2.0
"""Reads a folder that `woq.export` wrote, by the packages of the format's owners.

    python read_exported.py FOLDER OUT.npz

Run by tests/python/test_export_oracles.py with the Python of an environment that has
compressed-tensors and autoawq beside torch and transformers, and not woq. OUT gets the float32
weight [N, K] of each quantized layer by its name; for compressed-tensors also `logits`, those that
transformers computes after it has loaded the folder. It does not load zero points: it makes room
for them unpacked (transformers 5.24), so that such folders have none.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file


def layers_of(folder: Path, mark: str) -> dict[str, dict[str, torch.Tensor]]:
    """{layer: its tensors} of the layers that have a tensor `mark`."""
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for path in folder.glob("*.safetensors"):
        for key, tensor in load_file(path).items():
            name, _, last = key.rpartition(".")
            layers.setdefault(name, {})[last] = tensor
    return {name: tensors for name, tensors in layers.items() if mark in tensors}


def compressed_tensors(folder: Path, settings: dict[str, Any]) -> dict[str, np.ndarray]:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig
    from transformers import AutoModelForCausalLM

    schemes = QuantizationConfig.model_validate(settings).config_groups
    read = BaseCompressor.get_value_from_registry(settings["format"]).decompress
    weights = {}
    for name, tensors in layers_of(folder, "weight_scale").items():
        named = [scheme for scheme in schemes.values() if name in scheme.targets]
        scheme = (named or [each for each in schemes.values() if "Linear" in each.targets])[0]
        in_float = tensors | {"weight_scale": tensors["weight_scale"].float()}
        weights[name] = read(in_float, scheme)["weight"].float().numpy()
    if not all(scheme.weights.symmetric for scheme in schemes.values()):
        return weights
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        weights["logits"] = model(torch.arange(12)[None]).logits.numpy()
    return weights


def awq_packing() -> ModuleType:
    """AutoAWQ's packing by itself: the package imports half of the world."""
    (folder,) = importlib.util.find_spec("awq").submodule_search_locations  # type: ignore[union-attr]
    path = Path(folder) / "utils" / "packing_utils.py"
    spec = importlib.util.spec_from_file_location("awq_packing", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def awq(folder: Path, settings: dict[str, Any]) -> dict[str, np.ndarray]:
    read = awq_packing().dequantize_gemm
    return {
        name: read(
            tensors["qweight"],
            tensors["qzeros"],
            tensors["scales"].float(),
            settings["bits"],
            settings["group_size"],
        )
        .T.float()
        .contiguous()
        .numpy()
        for name, tensors in layers_of(folder, "qweight").items()
    }


def main() -> None:
    folder, out = Path(sys.argv[1]), sys.argv[2]
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    readers = {"compressed-tensors": compressed_tensors, "awq": awq}
    np.savez(out, **readers[settings["quant_method"]](folder, settings))


if __name__ == "__main__":
    main()
