# SPDX-License-Identifier: Apache-2.0
"""`woq.evaluate`: its figures beside transformers' own loss and a plain formula. (The arithmetic at
the size of real models is tested through benchmarks/perplexity.py.)"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from model_support import letters_checkpoint, t5  # noqa: E402

import woq  # noqa: E402

TEXT = "the quick brown fox jumps over the lazy dog. " * 8


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return letters_checkpoint(tmp_path_factory.mktemp("letters"))


@pytest.fixture(scope="module")
def models(checkpoint: Path) -> tuple[Any, Any, Any]:
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    quantized = woq.quantize(copy.deepcopy(model), woq.WeightOnlyQuantConfig(weight_dtype="nf4"))
    return model, quantized, transformers.AutoTokenizer.from_pretrained(checkpoint)


def test_figures_are_those_of_the_definitions(models: tuple[Any, Any, Any]) -> None:
    model, quantized, tokenizer = models
    found = woq.evaluate(quantized, tokenizer, TEXT, reference=model, windows=3, length=32)
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    windows = torch.tensor(ids[: 3 * 32]).view(3, 32)
    with torch.inference_mode():
        losses = [
            sum(each(input_ids=w[None], labels=w[None]).loss.item() for w in windows) / 3
            for each in (model, quantized)
        ]
        p, q = (
            torch.log_softmax(each(windows).logits[:, :-1].double(), -1)
            for each in (model, quantized)
        )
    assert (found.windows, found.length, found.tokens) == (3, 32, 93)
    assert found.reference_perplexity == pytest.approx(math.exp(losses[0]), rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(losses[1]), rel=1e-5)
    assert found.kl == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-3)
    assert found.top1 == pytest.approx((p.argmax(-1) == q.argmax(-1)).double().mean().item())
    assert found.kl > 1e-4


def test_without_a_reference_there_is_perplexity_only(models: tuple[Any, Any, Any]) -> None:
    model, quantized, tokenizer = models
    both = woq.evaluate(quantized, tokenizer, TEXT, reference=model, windows=2, length=16)
    alone = woq.evaluate(quantized, tokenizer, TEXT, windows=2, length=16)
    assert alone.perplexity == pytest.approx(both.perplexity, rel=1e-12)
    assert (alone.reference_perplexity, alone.kl, alone.top1) == (None, None, None)


def test_a_bar_is_shown_when_asked(
    models: tuple[Any, Any, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    model, _, tokenizer = models
    woq.evaluate(model, tokenizer, TEXT, windows=2, length=16)
    assert capsys.readouterr() == ("", "")
    woq.evaluate(model, tokenizer, TEXT, windows=2, length=16, progress=True)
    assert "Scoring: 100%" in capsys.readouterr().err


def test_what_cannot_be_scored_is_refused(models: tuple[Any, Any, Any]) -> None:
    model, _, tokenizer = models
    with pytest.raises(woq.InvalidArgument, match="9 windows of 200 need 1800"):
        woq.evaluate(model, tokenizer, TEXT, windows=9, length=200)
    with pytest.raises(woq.InvalidArgument, match="the model has 256 positions"):
        woq.evaluate(model, tokenizer, TEXT, windows=1, length=300)
    with pytest.raises(woq.InvalidArgument, match="the text is empty"):
        woq.evaluate(model, tokenizer, " \n", windows=1, length=300)
    with pytest.raises(woq.InvalidArgument, match="got 0 windows of 16"):
        woq.evaluate(model, tokenizer, TEXT, windows=0, length=16)
    with pytest.raises(woq.InvalidArgument, match="encoder-decoder"):
        woq.evaluate(t5(), tokenizer, TEXT, windows=1, length=16)
    smaller = copy.deepcopy(model)
    smaller.resize_token_embeddings(29)
    with pytest.raises(woq.InvalidArgument, match="vocabularies of 30 and 29 tokens"):
        woq.evaluate(smaller, tokenizer, "abc " * 20, reference=model, windows=1, length=16)
