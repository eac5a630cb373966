# SPDX-License-Identifier: Apache-2.0
"""`woq eval`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from ._command import Command, output_of
from ._models import Loading, check_float, find_model, load_tokenizer, model_options
from ._options import option
from ._quantization import config_from, format_options
from ._scoring import Protocol, score, scoring_options, text_of


@click.command(
    cls=Command,
    short_help="Perplexity of MODEL, and how near it is to the float one.",
    examples=[
        "woq eval smollm2-nf4 --reference ./SmolLM2-135M-Instruct --text corpus.txt",
        "woq eval ./SmolLM2-135M-Instruct --dtype nf4 --text corpus.txt   # quantized in memory",
        "woq eval ./SmolLM2-135M-Instruct --text corpus.txt --windows 64 --json",
    ],
)
@click.argument("model")
@option("--reference", metavar="MODEL", help="The unquantized model.  [with --dtype: MODEL itself]")
@scoring_options
@format_options
@model_options
@click.pass_context
def command(
    ctx: click.Context,
    model: str,
    reference: str | None,
    text: Path | None,
    windows: int,
    length: int,
    loading: Loading,
    **settings: Any,
) -> None:
    """Perplexity of MODEL, and how close it is to the unquantized one.

    Protocol: the text is tokenized as a whole, without special tokens; its first windows are scored
    each on its own. Over all predicted tokens (all but the first of each window): perplexity =
    exp(mean of -log p); KL = mean of KL(unquantized || MODEL) in nats; top-1 = share of positions
    where both rank the same token first. benchmarks/perplexity.py uses the same code.
    """
    output = output_of(ctx)
    protocol = Protocol.from_options(text, windows, length)
    if protocol is None:
        raise click.UsageError("Missing option '--text'")
    quantizes = any(value for value in settings.values())
    config = config_from(**settings) if quantizes else None
    source = loading.find(model)
    other = None
    if reference is not None:
        other = find_model(reference, trust_remote_code=loading.trust_remote_code)
        check_float(other)
    elif quantizes:
        other = source
    if quantizes:
        check_float(source)
    tokenizer = load_tokenizer(source)
    loaded = loading.load(source, output, config=config)
    base = None if other is None else loading.load(other, output)
    figures = score(protocol, loaded, tokenizer, output, reference=base)
    values = {
        "model": model,
        "reference": reference or (model if quantizes else None),
        "text": str(text),
        "config": None if config is None else config.to_dict(),
        **dataclasses.asdict(figures),
    }
    output.result(values, lambda: text_of(figures))
