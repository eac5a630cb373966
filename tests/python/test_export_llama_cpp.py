# SPDX-License-Identifier: Apache-2.0
"""GGUF files that `woq.export` wrote, run by llama.cpp: the same texts become the same tokens, and
the same tokens follow. Run by scripts/test_oracles.sh, with WOQ_ORACLE_PYTHON naming the Python of
an environment that has xllamacpp (tests/oracles/run_gguf.py); skipped without it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_support import build, smollm2_file
from tokenizer_support import TEXTS, byte_tokenizer, sentence_tokenizer

import woq
from woq import WeightOnlyQuantConfig

PYTHON = os.environ.get("WOQ_ORACLE_PYTHON")
RUN = Path(__file__).parents[1] / "oracles" / "run_gguf.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="WOQ_ORACLE_PYTHON names no environment of oracles"),
]

PROMPTS = [
    "The capital of France is",
    "In 2024, 1,234.5 people said: it's I'LL\n\n\tx = 1 ",
    "<|im_start|>user\nWhat is a quantized model?<|im_end|>\n<|im_start|>assistant\n",
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
]


def check(model: Any, tokenizer: Any, texts: list[str], folder: Path, file: Path) -> float:
    """Compares what llama.cpp makes of `file` with what the model says to its tokens; returns the
    share of tokens that were compared.

    llama.cpp rounds the inputs of every product to 8 bits and the cache of keys and values to 16.
    A layer's output is then off by about 2^-8 of its size, where woq's is exact. So a token is
    compared where the best two logits are further apart than a tenth of the logits' deviation.
    """
    (folder / "texts.json").write_text(json.dumps(texts))
    done = subprocess.run(
        [str(PYTHON), str(RUN), str(file), str(folder / "texts.json"), str(folder / "out.json")],
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    compared = total = 0
    found = json.loads((folder / "out.json").read_text())
    for text, said in zip(texts, found, strict=True):
        tokens, following = said["tokens"], said["next"]
        assert tokens == tokenizer(text)["input_ids"], text
        with torch.no_grad():
            logits = model(torch.tensor([tokens + following])).logits[0, len(tokens) - 1 : -1]
        best = logits.topk(2)
        clear = best.values[:, 0] - best.values[:, 1] > 0.1 * logits.std()
        assert torch.equal(best.indices[clear, 0], torch.tensor(following)[clear]), text
        compared, total = compared + int(clear.sum()), total + len(following)
    return compared / total


@pytest.fixture(scope="module")
def smollm2() -> tuple[Any, Any]:
    file = smollm2_file()
    place = {"gguf_file": file.name}
    tokenizer = woq.AutoTokenizer.from_pretrained(file.parent, **place)
    return file, tokenizer


SETTINGS = {
    "packed": None,  # the file's own Q4_1
    "int8": {"weight_dtype": "int8"},
    "int4": {"weight_dtype": "int4", "quantize_lm_head": True, "quantize_embedding": True},
    "iq4_nl": {"weight_dtype": "iq4_nl"},
}


@pytest.mark.parametrize("case", SETTINGS)
def test_smollm2(case: str, smollm2: tuple[Any, Any], tmp_path: Path) -> None:
    source, tokenizer = smollm2
    settings = SETTINGS[case]
    more: dict[str, Any] = {}
    if settings is not None:
        more["quantization_config"] = WeightOnlyQuantConfig(**settings, scale_dtype="fp16")
    model = woq.AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32, **more
    )
    out = tmp_path / "x.gguf"
    woq.export(model, out, format="gguf", tokenizer=tokenizer)
    assert check(model, tokenizer, PROMPTS, tmp_path, out) > 0.5


KINDS = ["llama", "llama_bias", "llama_3", "qwen2", "qwen3", "gemma3", "gemma3_linear"]


@pytest.mark.parametrize("kind", KINDS)
def test_small_models(kind: str, tmp_path: Path) -> None:
    """All architectures, with either kind of tokenizer."""
    config = build(kind).config
    config.vocab_size, config.initializer_range = 384, 0.2
    torch.manual_seed(0)
    model = type(build(kind))(config).eval()
    woq.quantize(model, WeightOnlyQuantConfig("int8", scale_dtype="fp16"))
    pieces = kind.startswith("gemma") or kind == "llama_bias"
    tokenizer = (
        sentence_tokenizer(prefix=not kind.startswith("gemma"))
        if pieces
        else byte_tokenizer(use_regex=True)
    )
    out = tmp_path / "x.gguf"
    woq.export(model, out, format="gguf", tokenizer=tokenizer)
    assert check(model, tokenizer, TEXTS, tmp_path, out) > 0.5
