# SPDX-License-Identifier: Apache-2.0
"""`woq quantize`."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from ._command import Command, Failure, Output, output_of
from ._folders import whole_folder
from ._models import Loading, Source, check_float, find_model, load_tokenizer, model_options
from ._options import option
from ._quantization import algorithm_options, config_from, format_options
from ._scoring import Protocol, score, scoring_options


@click.command(
    cls=Command,
    examples=[
        "woq quantize HuggingFaceTB/SmolLM2-135M-Instruct smollm2-nf4 --dtype nf4",
        "woq quantize model.gguf out --dtype int4 --lm-head int8 --float-dtype bf16",
        "woq quantize ./model out --algorithm gptq --dataset corpus.txt --work-dir work",
        "woq quantize ./model out --layer model.layers.0. none --layer down_proj int8",
        "woq quantize ./model out --report out.html --text corpus.txt",
    ],
)
@click.argument("model")
@click.argument("folder", type=click.Path(path_type=Path))
@format_options
@algorithm_options
@option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="HTML",
    help="Write a page about the errors of all layers.",
)
@scoring_options
@option("--tokenizer", metavar="MODEL", help="Take the tokenizer from there.")
@option(
    "--max-shard-size",
    default="50GB",
    show_default=True,
    metavar="SIZE",
    help="Split the weights into files of this.",
)
@option("--overwrite", is_flag=True, help="Replace the model that is in FOLDER.")
@model_options
@click.pass_context
def command(
    ctx: click.Context,
    model: str,
    folder: Path,
    report: Path | None,
    text: Path | None,
    windows: int,
    length: int,
    tokenizer: str | None,
    max_shard_size: str,
    overwrite: bool,
    loading: Loading,
    **settings: Any,
) -> None:
    """Quantize MODEL and save it in FOLDER.

    MODEL is a checkpoint folder, a GGUF file or an id on the hub. FOLDER appears when all of it is
    written; after an error or Ctrl-C it is not there, or is what it was.

    With --text the result is scored beside the unquantized model, which needs memory for both.
    """
    output = output_of(ctx)
    config = config_from(**settings)
    protocol = Protocol.from_options(text, windows, length)
    _check_report(report)
    source = loading.find(model)
    check_float(source)
    if folder.is_dir() and Path(source.name).is_dir() and folder.samefile(source.name):
        raise Failure(f"{folder} is where MODEL is, and would be replaced: name another folder")
    try:
        with whole_folder(folder, overwrite=overwrite) as scratch:
            words = _tokenizer(source, tokenizer, output, needed=protocol is not None)
            loaded = loading.load(source, output, config=config, tokenizer=words)
            _save(loaded, words, scratch, folder, max_shard_size)
    except KeyboardInterrupt:
        kept = f"; {settings['work_dir']} has the finished layers" if settings["work_dir"] else ""
        output.say(f"\nwoq: {_unchanged(folder)}{kept}")
        raise
    figures = None
    if protocol is not None:
        reference = loading.load(source, output)
        figures = score(protocol, loaded, words, output, reference=reference)
    if report is not None:
        import woq

        facts = {
            "model": model,
            "command": shlex.join(["woq", *sys.argv[1:]]),
            **_calibration(config),
        }
        woq.write_report(loaded, report, title=source.label, evaluation=figures, facts=facts)
    values = {
        "model": model,
        "folder": str(folder),
        "config": {
            **config.to_dict(),
            # What became of it, where that depends on the model.
            "quantize_embedding": loaded.config.quantization_config.quantize_embedding,
        },
        "report": None if report is None else str(report),
        "evaluation": None if figures is None else dataclasses.asdict(figures),
        **loaded.woq_report.to_dict(),
    }
    output.result(values, lambda: _text(loaded.woq_report, folder, report, figures))


def _check_report(report: Path | None) -> None:
    """Before hours of work."""
    if report is None:
        return
    if importlib.util.find_spec("matplotlib") is None:
        raise Failure("--report needs matplotlib: pip install 'woq[report]'")
    if report.is_dir() or not os.access(report.absolute().parent, os.W_OK):
        raise Failure(f"--report: cannot write {report}")


def _calibration(config: Any) -> dict[str, Any]:
    """What a stored config does not say."""
    if not config.needs_calibration:
        return {"importance matrix": config.imatrix} if config.imatrix is not None else {}
    return {"calibration data": config.dataset or "sampled from the model"}


def _tokenizer(source: Source, other: str | None, output: Output, *, needed: bool) -> Any:
    """The tokenizer that is saved with the model; without one only that is missing."""
    if other is not None:
        return load_tokenizer(find_model(other))
    try:
        return load_tokenizer(source)
    except Failure as error:
        if needed:
            raise
        output.say(f"woq: no tokenizer is saved: {error.format_message()}")
        return None


def _save(model: Any, tokenizer: Any, scratch: Path, folder: Path, max_shard_size: str) -> None:
    import woq

    try:
        woq.save_pretrained(model, scratch, max_shard_size=max_shard_size)
        if tokenizer is not None:
            tokenizer.save_pretrained(scratch)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise Failure(f"cannot save the model: {reason}; {_unchanged(folder)}") from error


def _unchanged(folder: Path) -> str:
    return f"{folder} is as it was" if folder.exists() else f"{folder} was not made"


def _text(report: Any, folder: Path, page: Path | None, figures: Any) -> str:
    lines = [str(report)]
    if figures is not None:
        from ._scoring import text_of

        lines.append(text_of(figures))
    lines.append(f"saved in {folder}" + (f", the report in {page}" if page is not None else ""))
    return "\n".join(lines)
