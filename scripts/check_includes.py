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
    "simd": "core",
    "linalg": "core simd",
    "ops": "core simd linalg",
    "quant": "core simd linalg",
    "io": "core simd linalg quant",
    "pack": "core simd linalg quant",
    "kernels": "core simd linalg quant pack",
    "linear": "core simd linalg quant pack kernels",
    "woq": "core simd linalg ops quant io pack kernels linear",
}

# What a user may include: neither parts of a target region nor a single target.
PRIVATE_HEADER = re.compile(
    r"-inl\.h$|^kernels/targets/|^simd/(?:target_begin|target_end|for_each_target)\.h$"
)
TARGET_HEADER = re.compile(r"^kernels/targets/(\w+)\.h$")
# Instructions are named in the vocabulary only, those of AMX in a file of their own.
INTRINSIC = re.compile(r"\b_mm\d*_\w+\(|\b__m(?:64|128|256|512)[a-z]*\b|\btarget\(\"|mmintrin\.h")
INTRINSICS_ALLOWED = re.compile(r"^(?:simd/.*|kernels/amx-inl\.h)$")
INCLUDE = re.compile(r'^\s*#\s*include\s+"(?:woq/)?([^"]+)"', re.MULTILINE)

# What a package may not import when a light module of it is imported; light modules load these on
# first use.
HEAVY_IMPORTS = {
    "accelerate", "gguf", "langchain_core", "llguidance", "matplotlib", "ml_dtypes", "safetensors",
    "torch", "tqdm", "transformers",
}  # fmt: skip

# The rooms of the two Python packages, in order: a module may import from its own room and from
# those above it, anywhere in its text. A room is a folder of python/woq, or a module right in it.
# The second column says whether its modules may import heavy packages when they are imported; the
# third names those of its modules for which the opposite holds. `__init__` of woq resolves lazily,
# so it is free to name any module.
PYTHON_ROOMS = {
    "core": ("light", ""),
    "config": ("light", ""),
    "formats": ("heavy", "__init__ files gguf imatrix_files names pages"),
    "modules": ("heavy", "__init__"),
    "observe": ("heavy", "__init__"),
    "algorithms": ("light", "finished folding scaled tuned_rounding"),
    "quantizing": ("heavy", "__init__ histograms report"),
    "reports": ("heavy", "__init__"),
    "hf": ("heavy", "__init__ autoload location"),
    "generation": ("heavy", ""),
    "compat": ("heavy", ""),
    "langchain_woq": ("heavy", ""),
    "demo": ("light", ""),
    "cli": ("light", ""),
    "__main__": ("light", ""),
}
PYTHON_PACKAGES = {"woq": "python/woq", "langchain_woq": "python/langchain-woq/langchain_woq"}


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


def check_intrinsics(root: Path) -> Iterator[str]:
    headers = root / "include" / "woq"
    for folder in (headers, root / "src", root / "python/woq/bindings"):
        for path in sorted(file for file in folder.rglob("*.*") if file.suffix in (".h", ".cc")):
            if folder == headers and INTRINSICS_ALLOWED.match(str(path.relative_to(headers))):
                continue
            for number, line in enumerate(path.read_text().splitlines(), 1):
                if found := INTRINSIC.search(line.partition("//")[0]):
                    yield f"{path}:{number}: {found[0]} belongs in the vocabulary, simd/*-inl.h"


def check_bindings(root: Path) -> Iterator[str]:
    for path in sorted((root / "python/woq/bindings").glob("*.*")):
        for header in included(path):
            if PRIVATE_HEADER.search(header):
                yield f"{path}: bindings use public headers only, not {header}"


def python_modules(root: Path) -> dict[str, Path]:
    """The modules of the two packages by their dotted name; a folder's is that of `__init__`."""
    modules = {}
    for package, folder in PYTHON_PACKAGES.items():
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            modules[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return modules


def room_of(module: str) -> str:
    """The room of a dotted name: `woq.hf.saving` -> hf; that of the package itself is ""."""
    package, _, rest = module.partition(".")
    return rest.partition(".")[0] if package == "woq" else package


def imported_modules(tree: ast.AST, package: str) -> Iterator[tuple[str, ast.stmt]]:
    """Absolute names of what is imported by a module that lies in `package`, a dotted name; a name
    that `from` takes out of a module is its last part."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((f"{module}.{alias.name}", node) for alias in node.names)


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


def may_be_heavy(name: str, path: Path) -> bool:
    weight, others = PYTHON_ROOMS.get(room_of(name), ("light", ""))
    return (weight == "heavy") != (path.stem in others.split())


def check_python(root: Path) -> Iterator[str]:
    order = list(PYTHON_ROOMS)
    modules = python_modules(root)
    edges: dict[str, set[str]] = {name: set() for name in modules}
    for name, path in modules.items():
        room = room_of(name)
        if room and room not in PYTHON_ROOMS:
            yield f"{path}: room '{room}' has no line in PYTHON_ROOMS"
            continue
        tree = ast.parse(path.read_text(), str(path))
        on_import = set(statements_run_on_import(tree))
        package = name if path.stem == "__init__" else name.rpartition(".")[0]
        for imported, node in imported_modules(tree, package):
            where = f"{path}:{node.lineno}"
            heavy = node in on_import and not may_be_heavy(name, path)
            if imported.partition(".")[0] in HEAVY_IMPORTS and heavy:
                yield f"{where}: '{name}' must import {imported} inside the function that needs it"
            if imported.partition(".")[0] not in PYTHON_PACKAGES:
                continue
            module = imported if imported in modules else imported.rpartition(".")[0]
            other = room_of(imported)
            if module in modules and "woq" not in (name, module):
                edges[name].add(module)
            if other == "_woq" and room != "core":
                yield f"{where}: '{name}' must not import {imported}: woq.core.native loads it"
            if other not in PYTHON_ROOMS:
                continue  # a name that the package itself offers
            if heavy and module in modules and may_be_heavy(module, modules[module]):
                yield f"{where}: '{name}' must import '{module}' lazily, for it imports torch"
            if not room or other == room:
                continue
            private = [part for part in imported.split(".")[2:] if part.startswith("_")]
            if private:
                yield f"{where}: '{name}' must not import {imported}, which is private to '{other}'"
            if order.index(other) > order.index(room):
                yield f"{where}: '{name}' must not import '{imported}': '{other}' is above '{room}'"
    yield from circles(edges)


def circles(edges: dict[str, set[str]]) -> Iterator[str]:
    """One message for each circle that a depth-first walk closes."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> Iterator[str]:
        if name in path:
            yield "circle of imports: " + " -> ".join([*path[path.index(name) :], name])
        elif name not in done:
            for imported in sorted(edges[name]):
                yield from walk(imported, [*path, name])
            done.add(name)

    for name in edges:
        yield from walk(name, [])


def violations(root: Path) -> list[str]:
    checks = (check_cpp_layers, check_targets, check_intrinsics, check_bindings, check_python)
    return [message for check in checks for message in check(root)]


def main() -> int:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    messages = violations(root)
    print("\n".join(messages) if messages else "include rules: no violation")
    return 1 if messages else 0


if __name__ == "__main__":
    sys.exit(main())
