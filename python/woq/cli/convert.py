# SPDX-License-Identifier: Apache-2.0
"""`woq convert`."""

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
    short_help="A quantized checkpoint into another library's format, without loss.",
    examples=[
        "woq convert ./qwen-gptq-int4 out --format compressed-tensors",
        "woq convert ./qwen-awq out --format gptq --dry-run",
        "woq convert ./qwen-gptq-int4 model.gguf --format gguf",
    ],
)
@click.argument("source")
@click.argument("folder", type=click.Path(path_type=Path))
@option(
    "--format",
    type=Choice(list(ALL_FORMATS)),
    required=True,
    help="Whose checkpoint it becomes.",
)
@exporting_options
@model_options
@click.pass_context
def command(
    ctx: click.Context, source: str, folder: Path, loading: Loading, **settings: Any
) -> None:
    """Write SOURCE, a checkpoint that any library quantized, to FOLDER in another format.

    FOLDER is a file for gguf. The weights are loaded packed and never become floats; what the other
    format cannot hold is refused. `woq export` does the same for a model of one's own.
    """
    run_export(output_of(ctx), loading, source, folder, **settings)
