# SPDX-License-Identifier: Apache-2.0
"""What `woq export` and `woq convert` share: their options, and the way from MODEL to FOLDER."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ..formats.export.names import EXPORT_FORMATS
from ._command import Failure, Output
from ._models import Loading, find_model, load_tokenizer
from ._options import apply, option
from ._text import table

__all__ = ["EXPORT_FORMATS", "exporting_options", "run_export"]

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

    if not dry_run:
        check_target(folder, overwrite=overwrite)
    source = loading.find(model)
    words = None
    try:
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
