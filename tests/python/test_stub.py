# SPDX-License-Identifier: Apache-2.0
"""`_woq.pyi` says what the extension has: the same names, members and argument names."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import woq
from woq import _woq

STUB = ast.parse((Path(woq.__file__).parent / "_woq.pyi").read_text())

# Types that only the stub has, for annotations.
TYPES_ONLY = {"TargetInfo", "ConsideredTarget"}


def argument_names(function: ast.FunctionDef) -> list[str]:
    arguments = function.args
    return [a.arg for a in [*arguments.args, *arguments.kwonlyargs] if a.arg != "self"]


def documented_names(function: Any) -> list[str]:
    """Argument names from the signature line that pybind11 writes into the docstring."""
    signature = function.__doc__.splitlines()[0]
    inside = signature[signature.index("(") + 1 : signature.rindex(") ->")]
    return [n for n in re.findall(r"(?:^|, )(\w+)(?=:)", inside) if n not in ("self", "arg0")]


def public(owner: type | ModuleType) -> set[str]:
    return {name for name in vars(owner) if not name.startswith("_")}


def test_module_names() -> None:
    stub = {n.name for n in STUB.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    stub |= {ast.unparse(n.target) for n in STUB.body if isinstance(n, ast.AnnAssign)}
    assert stub - TYPES_ONLY == public(_woq)


def test_functions() -> None:
    for node in STUB.body:
        if isinstance(node, ast.FunctionDef):
            assert argument_names(node) == documented_names(getattr(_woq, node.name)), node.name


def test_classes() -> None:
    for node in STUB.body:
        if not isinstance(node, ast.ClassDef) or node.name in TYPES_ONLY:
            continue
        owner = getattr(_woq, node.name)
        members = {n.name: n for n in node.body if isinstance(n, ast.FunctionDef)}
        if not issubclass(owner, Exception):
            named = {name for name in members if not name.startswith("__")}
            assert named == public(owner), node.name
        for name, member in members.items():
            decorators = {d.id for d in member.decorator_list if isinstance(d, ast.Name)}
            if "property" not in decorators:
                assert argument_names(member) == documented_names(getattr(owner, name)), name
