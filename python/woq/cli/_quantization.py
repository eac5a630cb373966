# SPDX-License-Identifier: Apache-2.0
"""The options that make a WeightOnlyQuantConfig."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from woq.config.quant_config import WeightOnlyQuantConfig
from woq.config.registry import algorithm_names, known_algorithms
from woq.core import native

from ._options import Choice, apply, option

__all__ = [
    "COMPUTE_DTYPES",
    "DTYPES",
    "algorithm_options",
    "config_from",
    "format_options",
    "name_and_value",
]

Function = TypeVar("Function", bound=Callable[..., Any])

DTYPES = (*native.dtype_names(), *native.dtype_aliases())
COMPUTE_DTYPES = (*native.compute_dtype_names(), "auto")
_DEFAULT = WeightOnlyQuantConfig()
_DATA_FREE = " and ".join(a.name for a in known_algorithms() if not a.needs_calibration)
# Options of the algorithms that have an option of the command line.
_COUNTS = ("nsamples", "seqlen", "batch_size", "seed")


def format_options(function: Function) -> Function:
    """What the weights become."""
    of_format = functools.partial(option, group="Format of the weights")
    return apply(
        function,
        [
            of_format(
                "--dtype",
                type=Choice(DTYPES),
                show_default=_DEFAULT.weight_dtype,
                help="Weights are stored as this.",
            ),
            of_format(
                "--group-size",
                type=int,
                metavar="N",
                show_default=str(_DEFAULT.group_size),
                help="Weights that share a scale; -1: a row.",
            ),
            of_format(
                "--scheme",
                type=Choice(("sym", "asym")),
                show_default=_DEFAULT.scheme,
                help="asym: with zero points, for integers.",
            ),
            of_format(
                "--compute-dtype",
                type=Choice(COMPUTE_DTYPES),
                show_default=_DEFAULT.compute_dtype,
                help="Products are made in this.",
            ),
            of_format(
                "--scale-dtype",
                type=Choice(native.scale_dtype_names()),
                show_default=_DEFAULT.scale_dtype,
                help="Scales are stored as this.",
            ),
            of_format("--double-quant", is_flag=True, help="Store the scales in 8 bits."),
            of_format(
                "--lm-head", type=Choice(DTYPES), help="Quantize the output embedding to this."
            ),
            of_format(
                "--embedding",
                type=Choice(("none", *DTYPES)),
                show_default="with --lm-head: the head's, if they are tied",
                help="Quantize the input embedding to this.",
            ),
            of_format(
                "--skip",
                multiple=True,
                metavar="PATTERN",
                help="Leave modules in floating point: a name, suffix or regular expression.",
            ),
            of_format(
                "--layer",
                "layers",
                multiple=True,
                nargs=2,
                metavar="PATTERN SETTINGS",
                help="Other settings for some layers: a dtype, 'none', or group_size=64,scheme=asym"
                " and the like. The first pattern that matches counts.",
            ),
        ],
    )


def algorithm_options(function: Function) -> Function:
    """How the weights are rounded, and on which data."""
    of_algorithm = functools.partial(option, group="Rounding, and the data for it")
    return apply(
        function,
        [
            of_algorithm(
                "--algorithm",
                type=Choice(algorithm_names(), case_sensitive=False),
                default="RTN",
                show_default=True,
                help=f"{_DATA_FREE} need no data.",
            ),
            of_algorithm(
                "--mse-range/--no-mse-range",
                default=None,
                show_default="where data weighs the error",
                help="Search the ranges for the least error.",
            ),
            of_algorithm(
                "--dataset",
                metavar="TEXT",
                help="Calibration data: a text file, the name of a data set, or 'self'.",
            ),
            of_algorithm(
                "--nsamples", type=click.IntRange(1), metavar="N", help="Calibration samples."
            ),
            of_algorithm("--seqlen", type=click.IntRange(2), metavar="N", help="Tokens of each."),
            of_algorithm(
                "--batch-size", type=click.IntRange(1), metavar="N", help="Samples at a time."
            ),
            of_algorithm("--seed", type=click.IntRange(0), metavar="N", help="Draws the samples."),
            of_algorithm(
                "--option",
                "options",
                multiple=True,
                metavar="NAME=VALUE",
                help="Another option of the algorithm.",
            ),
            of_algorithm(
                "--imatrix",
                type=click.Path(path_type=Path),
                help="An importance matrix (RTN).",
            ),
            of_algorithm(
                "--work-dir",
                type=click.Path(path_type=Path),
                help="Keep finished layers here: an interrupted run goes on from there.",
            ),
            of_algorithm(
                "--activation-memory",
                metavar="SIZE",
                show_default=str(_DEFAULT.activation_memory),
                help="Beyond this, activations go to a file.",
            ),
        ],
    )


def config_from(
    *,
    dtype: str | None = None,
    group_size: int | None = None,
    scheme: str | None = None,
    compute_dtype: str | None = None,
    scale_dtype: str | None = None,
    double_quant: bool = False,
    lm_head: str | None = None,
    embedding: str | None = None,
    skip: Sequence[str] = (),
    layers: Sequence[tuple[str, str]] = (),
    algorithm: str | None = None,
    mse_range: bool | None = None,
    dataset: str | None = None,
    nsamples: int | None = None,
    seqlen: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    options: Sequence[str] = (),
    imatrix: Path | None = None,
    work_dir: Path | None = None,
    activation_memory: str | None = None,
) -> Any:
    """The config that the options amount to; the defaults of those left out are the config's.

    Raises:
        click.UsageError: they contradict each other, or one has no meaning here.
    """
    import woq

    counts = dict(zip(_COUNTS, (nsamples, seqlen, batch_size, seed), strict=True))
    arguments = {name: value for name, value in counts.items() if value is not None}
    arguments |= dict(name_and_value("--option", text) for text in options)
    fields: dict[str, Any] = {
        "weight_dtype": dtype,
        "group_size": group_size,
        "scheme": scheme,
        "compute_dtype": compute_dtype,
        "scale_dtype": scale_dtype,
        "use_double_quant": double_quant or None,
        "quantize_lm_head": lm_head,
        "quantize_embedding": {None: lm_head and "tied", "none": None}.get(embedding, embedding),
        "modules_to_not_convert": list(skip) or None,
        "layer_config": {pattern: _settings(text) for pattern, text in layers} or None,
        "algorithm": algorithm,
        "algorithm_args": arguments or None,
        "mse_range": mse_range,
        "dataset": dataset,
        "imatrix": imatrix,
        "work_dir": work_dir,
        "activation_memory": activation_memory,
    }
    try:
        config = woq.WeightOnlyQuantConfig(
            **{name: value for name, value in fields.items() if value is not None}
        )
    except woq.InvalidArgument as error:
        raise click.UsageError(str(error).removeprefix("WeightOnlyQuantConfig.")) from error
    if imatrix is not None and not imatrix.is_file():
        raise click.UsageError(f"--imatrix: no file {imatrix}")
    if dataset is not None and Path(dataset).suffix == ".txt" and not Path(dataset).is_file():
        raise click.UsageError(f"--dataset: no file {dataset}")
    for name, value in (("--dataset", dataset), ("--work-dir", work_dir)):
        if value is not None and not config.needs_calibration:
            raise click.UsageError(f"{name}: {config.algorithm} looks at no data")
    return config


def _value(text: str) -> Any:
    """A number, true, false or null, as JSON has them; else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def name_and_value(option: str, text: str) -> tuple[str, Any]:
    """What NAME=VALUE says; a value is JSON or else a text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise click.UsageError(f"{option} {text}: expected NAME=VALUE")
    return name, _value(value)


def _settings(text: str) -> dict[str, Any] | None:
    """The settings of a rule of --layer."""
    if text.lower() == "none":
        return None
    settings: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if equals:
            settings[name.strip()] = _value(value.strip())
        else:
            settings["weight_dtype"] = name.strip()
    return settings
