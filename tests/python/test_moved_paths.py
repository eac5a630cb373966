# SPDX-License-Identifier: Apache-2.0
"""Module paths of earlier releases still import, as other names of the same modules."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys

import pytest

pytest.importorskip("transformers", exc_type=ImportError)
pytest.importorskip("matplotlib", exc_type=ImportError)

import woq
from woq.core.moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_an_old_path_is_the_module_that_it_became(old: str) -> None:
    new = importlib.import_module(f"woq.{MOVED[old]}")
    assert importlib.import_module(f"woq.{old}") is new
    assert getattr(woq, old) is new
    # The module keeps its own name, so that reloading and pickling find it.
    assert new.__name__ == new.__spec__.name == f"woq.{MOVED[old]}"


def test_old_paths_load_nothing_before_they_are_used() -> None:
    code = (
        "import sys, woq\n"
        "assert not {'torch', 'numpy', 'woq._woq', 'woq.modules'} & set(sys.modules)\n"
        "from woq.linear import WeightOnlyLinear\n"
        "import woq.modules.layer\n"
        "assert WeightOnlyLinear is woq.modules.layer.WeightOnlyLinear is woq.WeightOnlyLinear\n"
    )
    # torch imports woq itself, through its entry point; without torch's import nothing else may.
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_paths_are_still_errors() -> None:
    assert importlib.util.find_spec("woq.lineal") is None
    with pytest.raises(ModuleNotFoundError, match=r"woq\.lineal"):
        importlib.import_module("woq.lineal")
    with pytest.raises(AttributeError, match="lineal"):
        _ = woq.lineal
