# SPDX-License-Identifier: Apache-2.0
"""What `woq export` and `woq convert` share: their options, and the way from MODEL to FOLDER."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ..formats.export.names import ALL_FORMATS, GGUF
from ._command import Failure, Output
from ._models import Loading, find_model, load_tokenizer
from ._options import apply, option
from ._text import table

__all__ = ["ALL_FORMATS", "exporting_options", "run_export"]

Function = TypeVar("Function", bound=Callable[..., Any])

_OPTIONS = (
    option(
        "--round-scales",
        is_flag=True,
        help="Round scales to the type that the format's readers keep.",
    ),
    option("--dry-run", is_flag=True, help="Write nothing; show what becomes of each tensor."),
    option("--tokenizer", metavar="MODEL", help="Take the tokenizer from there."),
    option(
        "--template",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="FILE",
        help="For gguf: take metadata and tokenizer from this GGUF file of the same model.",
    ),
    option(
        "--max-shard-size",
        default="5GB",
        show_default=True,
        metavar="SIZE",
        help="Split the weights into files of this.",
    ),
    option("--overwrite", is_flag=True, help="Replace the model that is in FOLDER."),
)


def exporting_options(function: Function) -> Function:
    return apply(function, _OPTIONS)


def run_export(
    output: Output,
    loading: Loading,
    model: str,
    folder: Path,
    *,
    format: str,
    tokenizer: str | None,
    template: Path | None,
    dry_run: bool,
    overwrite: bool,
    **keywords: Any,
) -> None:
    """Load MODEL, write it to FOLDER and print what was written.

    Raises:
        Failure: with --dry-run, the format cannot hold the model; the list is printed before.
    """
    import woq

    from ..hf.export import check_target
    from ..hf.location import find_gguf

    check_target(folder, format, overwrite=overwrite, exists=not dry_run)
    source = loading.find(model)
    if format == GGUF and template is None and source.is_gguf:
        template = Path(find_gguf(source.name, source.keywords))
    words = None
    try:
        if template is None:
            words = load_tokenizer(source if tokenizer is None else find_model(tokenizer))
    except Failure as error:
        if tokenizer is not None:
            raise
        output.say(f"woq: no tokenizer is saved: {error.format_message()}")
    loaded = loading.load(source, output)
    report = woq.export(
        loaded,
        folder,
        format=format,
        tokenizer=words,
        template=template,
        dry_run=dry_run,
        overwrite=overwrite,
        **keywords,
    )
    output.result({"model": model, **report.to_dict()}, lambda: _text(report))
    if not report.possible:
        raise Failure(f"{model} cannot be written as {report.format}")


def _text(report: Any) -> str:
    if report.folder is not None:
        return str(report)
    rows = []
    for layer in report.layers:
        first, *others = list(layer.tensors.items()) or [("refused", layer.refused)]
        row = {"layer": layer.name, "is": layer.weight_dtype, "tensor": first[0], "as": first[1]}
        rows.append(row)
        rows += [{"layer": "", "is": "", "tensor": name, "as": kind} for name, kind in others]
    rows += [
        {"layer": name, "is": "float", "tensor": "weight", "as": "as it is"}
        for name in report.floats
    ]
    return f"{table(rows)}\n\n{report}"
