# SPDX-License-Identifier: Apache-2.0
"""Real GGUF files run packed predict a text as their dequantized weights do."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf_support import gemma_file, smollm2_file

import woq

# Prose that is at hand in every checkout.
TEXT = Path(__file__).parents[2] / "docs" / "quantization.md"

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("name", "windows", "length"), [("smollm2", 8, 256), ("gemma", 4, 128)])
def test_perplexity_of_packed_files(name: str, windows: int, length: int, tmp_path: Path) -> None:
    file = smollm2_file() if name == "smollm2" else gemma_file(tmp_path)
    model = woq.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer = woq.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    text = TEXT.read_text(encoding="utf-8")
    size = {"windows": windows, "length": length}
    packed = woq.evaluate(model, tokenizer, text, **size)
    dequantized = woq.evaluate(model.dequantize(), tokenizer, text, **size)
    assert packed.perplexity == pytest.approx(dequantized.perplexity, rel=1e-3)
    # A model that has lost its weights guesses: its perplexity is the size of its vocabulary. (That
    # of Gemma is far from its best, since the protocol begins no window with its BOS.)
    assert packed.perplexity < model.config.vocab_size / 20
