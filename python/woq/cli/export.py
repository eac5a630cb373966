# SPDX-License-Identifier: Apache-2.0
"""`woq export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ._command import Command, output_of
from ._exporting import ALL_FORMATS, exporting_options, run_export
from ._models import Loading, model_options
from ._options import Choice, option


@click.command(
    cls=Command,
    short_help="Write MODEL for vLLM, SGLang, transformers or llama.cpp.",
    examples=[
        "woq export smollm2-int4 out                       # compressed-tensors, for vLLM",
        "woq export smollm2-int4 out --format gptq --round-scales",
        "woq export smollm2-int4 out --format awq --dry-run",
        "woq export smollm2-int4 model.gguf --format gguf  # for llama.cpp",
    ],
)
@click.argument("model")
@click.argument("folder", type=click.Path(path_type=Path))
@option(
    "--format",
    type=Choice(list(ALL_FORMATS)),
    default=next(iter(ALL_FORMATS)),
    show_default=True,
    help="Whose checkpoint it becomes.",
)
@exporting_options
@model_options
@click.pass_context
def command(
    ctx: click.Context, model: str, folder: Path, loading: Loading, **settings: Any
) -> None:
    """Write the quantized MODEL to FOLDER as a checkpoint of another library.

    FOLDER is a file for gguf. Codes, zero points and scales go over as they are. What the format
    has no place for is refused before anything is written. The end says what loads the result.
    """
    run_export(output_of(ctx), loading, model, folder, **settings)
