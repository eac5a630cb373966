# SPDX-License-Identifier: Apache-2.0
"""What a figure or a bug report must carry: versions, CPU, instruction sets, threads."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from typing import Any

from . import native

__all__ = ["environment", "version_of"]

_PACKAGES = (
    *("torch", "transformers", "numpy", "safetensors", "accelerate", "gguf", "datasets"),
    *("langchain-core", "langchain-woq", "matplotlib", "click"),
)
_VARIABLES = (
    *("WOQ_FORCE_TARGET", "OMP_NUM_THREADS", "OMP_PROC_BIND", "GOMP_CPU_AFFINITY"),
    *("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"),
)


def version_of(package: str) -> str | None:
    """Installed version; None where it is not installed. Nothing is imported."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def environment() -> dict[str, Any]:
    """Plain values: versions (None: not installed), CPU, targets, threads, settings."""
    cpu, build, targets = native.cpu_info(), native.build_info(), native.targets()
    # torch's own number only if somebody has loaded it: importing it takes seconds.
    torch = sys.modules.get("torch")
    return {
        "woq": build["version"],
        "build": {key: value for key, value in build.items() if key != "version"},
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": cpu["brand"],
        "features": [name for name, present in cpu["features"].items() if present],
        "logical_cpus": cpu["logical_cpus"],
        "threads": torch.get_num_threads() if torch is not None else cpu["usable_threads"],
        "targets": [target["name"] for target in targets if target["available"]],
        "missing": {
            # The features that the CPU lacks, or that it is not in this build.
            target["name"]: f"({target['missing']})"
            if target["missing"].startswith("not ")
            else f"(needs {target['missing']})"
            for target in targets
            if not target["available"]
        },
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "versions": {package: version_of(package) for package in _PACKAGES},
    }
