#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks who may include whom (docs/design.md): C++ headers by layer, Python modules likewise.

    check_includes.py [ROOT]

Every rule is a line of a table below; a new layer or module is added there.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

# A layer is a folder of include/woq, or a header right in it; it may include itself and these.
CPP_LAYERS = {
    "core": "",
    "linalg": "core",
    "quant": "core linalg",
    "pack": "core linalg quant",
    "kernels": "core linalg quant pack",
    "linear": "core linalg quant pack kernels",
    "woq": "core linalg quant pack kernels linear",
}

# What a user may include: neither parts of a target region nor a single target.
PRIVATE_HEADER = re.compile(r"-inl\.h$|^kernels/targets/|^kernels/target_(begin|end)\.h$")
TARGET_HEADER = re.compile(r"^kernels/targets/(\w+)\.h$")
INCLUDE = re.compile(r'^\s*#\s*include\s+"(?:woq/)?([^"]+)"', re.MULTILINE)

# The modules that `woq` itself may import when they are imported; heavy ones load on first use.
HEAVY_IMPORTS = {
    "accelerate", "gguf", "langchain_core", "llguidance", "matplotlib", "ml_dtypes", "safetensors",
    "torch", "tqdm", "transformers",
}  # fmt: skip

# A module may import those on the lines above it, anywhere in its text; the second column says
# whether its own import may be heavy. `__init__` resolves lazily, so it is free to name any module.
PYTHON_LAYERS = {
    "_woq": "light",
    "_native": "light",
    "_pages": "light",
    "_options": "light",
    "_location": "light",
    "_units": "light",
    "_imatrix_files": "light",
    "config": "light",
    "algorithm_configs": "light",
    "report": "light",
    "_histograms": "light",
    "_environment": "light",
    "_safetensors": "heavy",
    "_stand_in": "heavy",
    "_tensors": "heavy",
    "linear": "heavy",
    "_selection": "heavy",
    "_attention": "heavy",
    "_blocks": "heavy",
    "algorithms": "heavy",
    "calibration": "heavy",
    "imatrix": "heavy",
    "_work_dir": "heavy",
    "_driver": "heavy",
    "planning": "heavy",
    "quantization": "heavy",
    "saving": "heavy",
    "transformers": "heavy",
    "auto_model": "heavy",
    "evaluation": "heavy",
    "_inspection": "heavy",
    "report_page": "heavy",
    "generation": "heavy",
    "pipelines": "heavy",
    "compat": "heavy",
    "_autoload": "light",
    "demo": "light",
    "cli": "light",
    "__main__": "light",
}

# Imports against the order, inside functions only: a model that transformers made must be told of
# its quantizer, and quantize() takes any torch model.
LAZY_EXCEPTIONS = {("quantization", "transformers")}


def layer_of(header: str) -> str:
    return header.split("/")[0].removesuffix(".h")


def included(path: Path) -> list[str]:
    return INCLUDE.findall(path.read_text())


def check_cpp_layers(root: Path) -> Iterator[str]:
    base = root / "include" / "woq"
    for path in sorted(base.rglob("*.h")):
        layer = layer_of(str(path.relative_to(base)))
        if layer not in CPP_LAYERS:
            yield f"{path}: layer '{layer}' has no line in CPP_LAYERS"
            continue
        allowed = {layer, *CPP_LAYERS[layer].split()}
        for header in included(path):
            if layer_of(header) not in allowed:
                yield f"{path}: '{layer}' must not include {header} (only {sorted(allowed)})"


def check_targets(root: Path) -> Iterator[str]:
    """Two targets in one translation unit could share, and so leak, an inline function's code."""
    folders = (root / "include/woq/kernels/targets", root / "src/kernels/targets")
    for path in sorted(file for folder in folders for file in folder.glob("*.*")):
        for header in included(path):
            target = TARGET_HEADER.match(header)
            if target and target[1] != path.stem:
                yield f"{path}: a target must not include another one ({header})"


def check_bindings(root: Path) -> Iterator[str]:
    for path in sorted((root / "python/woq/bindings").glob("*.*")):
        for header in included(path):
            if PRIVATE_HEADER.search(header):
                yield f"{path}: bindings use public headers only, not {header}"


def imported_modules(tree: ast.AST) -> Iterator[tuple[str, ast.stmt]]:
    """Absolute names of the imported modules; a relative import counts as woq's."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = ".".join(part for part in ("woq" if node.level else "", node.module) if part)
            if module == "woq":
                yield from ((f"woq.{alias.name}", node) for alias in node.names)
            else:
                yield module, node


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def statements_run_on_import(tree: ast.Module) -> Iterator[ast.stmt]:
    """Everything outside function bodies and `if TYPE_CHECKING`."""
    pending: list[ast.AST] = [tree]
    while pending:
        for child in ast.iter_child_nodes(pending.pop()):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) or is_type_checking(child):
                continue
            if isinstance(child, ast.stmt):
                yield child
            pending.append(child)


def check_python(root: Path) -> Iterator[str]:
    order = list(PYTHON_LAYERS)
    for path in sorted((root / "python/woq").glob("*.py")):
        name = path.stem
        tree = ast.parse(path.read_text(), str(path))
        if name != "__init__" and name not in PYTHON_LAYERS:
            yield f"{path}: module '{name}' has no line in PYTHON_LAYERS"
            continue
        on_import = set(statements_run_on_import(tree))
        may_be_heavy = PYTHON_LAYERS.get(name, "light") == "heavy"
        for module, node in imported_modules(tree):
            where = f"{path}:{node.lineno}"
            package, _, rest = module.partition(".")
            imported = rest.partition(".")[0]
            if package in HEAVY_IMPORTS and node in on_import and not may_be_heavy:
                yield f"{where}: '{name}' must import {package} inside the function that needs it"
            if package != "woq" or imported not in PYTHON_LAYERS:
                continue
            if (name, imported) in LAZY_EXCEPTIONS and node not in on_import:
                continue
            if name != "__init__" and order.index(imported) >= order.index(name):
                yield f"{where}: '{name}' must not import '{imported}', a layer above it"
            elif PYTHON_LAYERS[imported] == "heavy" and node in on_import and not may_be_heavy:
                yield f"{where}: '{name}' must import '{imported}' lazily, for it imports torch"


def violations(root: Path) -> list[str]:
    checks = (check_cpp_layers, check_targets, check_bindings, check_python)
    return [message for check in checks for message in check(root)]


def main() -> int:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    messages = violations(root)
    print("\n".join(messages) if messages else "include rules: no violation")
    return 1 if messages else 0


if __name__ == "__main__":
    sys.exit(main())
