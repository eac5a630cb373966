# SPDX-License-Identifier: Apache-2.0
"""Writes vectors/bnb.npz: bitsandbytes' codes and statistics, for machines without bitsandbytes.

Run it where both packages are installed:

    pip install bitsandbytes==0.50.2 torch
    python tests/oracles/generate_bnb.py

The file is the same byte for byte on every run (numpy writes no time stamps).
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import bnb_oracle
import numpy as np
import oracle_inputs as inputs

OUTPUT = Path(__file__).resolve().parent / "vectors" / "bnb.npz"


def main() -> None:
    if not version("bitsandbytes").startswith("0.50."):
        raise SystemExit(f"need bitsandbytes 0.50, found {version('bitsandbytes')}")
    arrays: dict[str, np.ndarray] = {
        "digest": np.array(inputs.digest(inputs.TABLE_CASES)),
        "nested_digest": np.array(inputs.digest(inputs.NESTED_CASES)),
        "dynamic_map": bnb_oracle.dynamic_map(),
    }
    for scheme in inputs.TABLE_SCHEMES:
        results = [
            bnb_oracle.quantize(inputs.weights(case), scheme, case.group_size)
            for case in inputs.TABLE_CASES
            if case.scheme == scheme
        ]
        edges = bnb_oracle.near_midpoints(scheme)
        edge_codes, _ = bnb_oracle.quantize(edges, scheme, edges.shape[1])
        arrays[f"{scheme}.edges"] = edges
        arrays[f"{scheme}.edge_codes"] = edge_codes
        arrays[f"{scheme}.table"] = bnb_oracle.table(scheme)
        arrays[f"{scheme}.codes"] = np.concatenate([codes.ravel() for codes, _ in results])
        arrays[f"{scheme}.absmax"] = np.concatenate([absmax.ravel() for _, absmax in results])
    for index, case in enumerate(inputs.NESTED_CASES):
        _, scales = bnb_oracle.quantize(inputs.weights(case), case.scheme, case.group_size)
        offset = bnb_oracle.nested_offset(scales)
        centred = scales.reshape(-1) - offset
        kernel_codes, absmax = bnb_oracle.nested_kernel(centred)
        nearest = bnb_oracle.nested_nearest(centred)
        arrays[f"nested{index}.offset"] = np.array(offset)
        arrays[f"nested{index}.kernel_codes"] = kernel_codes
        arrays[f"nested{index}.nearest_codes"] = nearest
        arrays[f"nested{index}.absmax"] = absmax
        arrays[f"nested{index}.decoded"] = bnb_oracle.nested_decode(nearest, absmax, offset)
    OUTPUT.parent.mkdir(exist_ok=True)
    np.savez_compressed(OUTPUT, **arrays)
    print(f"{OUTPUT}: {OUTPUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
