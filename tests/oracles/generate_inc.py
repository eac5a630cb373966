# SPDX-License-Identifier: Apache-2.0
"""Writes vectors/inc.npz: neural-compressor 2.6's integers, scales and zero points.

It needs an environment of its own: it wants numpy < 2 and imports packages it does not declare.
Python 3.11 was used; any torch that takes numpy 1.26 will do, the arithmetic is IEEE fp32.

    python3 -m venv venv-inc
    venv-inc/bin/pip install torch --index-url https://download.pytorch.org/whl/cpu
    venv-inc/bin/pip install neural-compressor==2.6 six packaging "setuptools<70"
    venv-inc/bin/python tests/oracles/generate_inc.py

The file is the same byte for byte on every run (numpy writes no time stamps).
"""

from __future__ import annotations

from pathlib import Path

import neural_compressor
import numpy as np
import oracle_inputs as inputs
import torch
from neural_compressor.adaptor.torch_utils import weight_only

OUTPUT = Path(__file__).resolve().parent / "vectors" / "inc.npz"
ARGUMENTS = {
    "int4_clip": {"num_bits": 4, "scheme": "sym", "full_range": False},
    "int4_fullrange": {"num_bits": 4, "scheme": "sym", "full_range": True},
    "int4_asym": {"num_bits": 4, "scheme": "asym"},
    "int8_sym": {"num_bits": 8, "scheme": "sym", "full_range": False},
    "int8_asym": {"num_bits": 8, "scheme": "asym"},
}


def quantize(case: inputs.Case) -> dict[str, np.ndarray]:
    """INC's own numbers: signed integers for symmetric schemes, 0.. for asymmetric ones."""
    weight = torch.from_numpy(inputs.weights(case))
    quants, scales, zero_points = weight_only.quant_weight(
        weight, group_size=case.group_size, return_int=True, **ARGUMENTS[case.scheme]
    )
    if not (torch.isfinite(quants).all() and torch.isfinite(scales).all()):
        raise ValueError(f"{case}: not finite; the oracle has nothing to say about this input")
    result = {"quants": quants.numpy().astype(np.int16), "scales": scales.numpy()}
    if zero_points is not None:
        result["zero_points"] = zero_points.numpy().astype(np.int16)
    return result


def search(case: inputs.Case) -> tuple[float, float]:
    """The clip ratio that INC's search picks and the mean squared error that it leaves."""
    layer = torch.nn.Linear(case.cols, case.rows, bias=False)
    weight = torch.from_numpy(inputs.weights(case))
    layer.weight.data.copy_(weight)
    arguments = dict(ARGUMENTS[case.scheme])
    full_range = arguments.pop("full_range", False)
    ratio = weight_only.search_clip(
        layer, group_size=case.group_size, enable_full_range=full_range, **arguments
    )
    restored = weight_only.quant_weight(
        weight.clone(),
        group_size=case.group_size,
        quantile=ratio,
        full_range=full_range,
        **arguments,
    )
    return ratio, (restored.double() - weight.double()).pow(2).mean().item()


def main() -> None:
    torch.set_num_threads(1)
    if neural_compressor.__version__ != "2.6":
        raise SystemExit(f"need neural-compressor 2.6, found {neural_compressor.__version__}")
    arrays: dict[str, np.ndarray] = {"digest": np.array(inputs.digest(inputs.INTEGER_CASES))}
    for scheme in inputs.INTEGER_SCHEMES:
        results = [quantize(case) for case in inputs.INTEGER_CASES if case.scheme == scheme]
        # One flat array per kind of number, in the order of INTEGER_CASES: small, and no names to
        # keep in step.
        for name in results[0]:
            arrays[f"{scheme}.{name}"] = np.concatenate([r[name].ravel() for r in results])
    found = [search(case) for case in inputs.SEARCH_CASES]
    arrays["search_digest"] = np.array(inputs.digest(inputs.SEARCH_CASES))
    arrays["search_ratio"] = np.array([ratio for ratio, _ in found])
    arrays["search_mse"] = np.array([mse for _, mse in found])
    OUTPUT.parent.mkdir(exist_ok=True)
    np.savez_compressed(OUTPUT, **arrays)
    print(f"{OUTPUT}: {OUTPUT.stat().st_size} bytes, {len(inputs.INTEGER_CASES)} matrices")


if __name__ == "__main__":
    main()
