# SPDX-License-Identifier: Apache-2.0
"""Quality of every algorithm x dtype x group size: perplexity, KL divergence to fp32, top-1
agreement, with time and peak memory.

The model is first permuted (`permutation.py`): its weights come from a 4-bit file, whose grid would
flatter quantizers with the same one; that fp32 perplexity stays what it was is checked. Calibration
sees `--calibration` only, the figures are over `--text`: the first `--windows` pieces of `--length`
tokens, without special tokens, as `woq.reports.evaluation` defines them. Peak memory is what the
process holds at most while it quantizes, beyond what it held before (the float model and its copy).
RTN+mse is RTN with mse_range; RTN+imatrix collects an importance matrix first, in the time that is
shown. HQQ does asymmetric formats only.

Other libraries take part through folders: `--export DIR` writes the permuted model and the
calibration samples that `quality_peers.py` quantizes, and `--score DIR ...` adds rows for what it
wrote:

    quality.py --text TEST --calibration VALID --option nsamples=128 --export float
    quality_peers.py --protocol float --peer hqq --format int4_asym --group-size 32 --out peers/hqq
    quality.py --text TEST --calibration VALID --algorithm --score peers/*
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from common import load_fp32, machine, print_header, windows_of_file
from permutation import permute_channels
from quality_exchange import (
    PeakMemory,
    load_row,
    restore_weights,
    save_protocol,
    stored_bits,
)

import woq
from woq.observe.samples import token_samples
from woq.reports.evaluation import log_probabilities, score

ALGORITHMS = (
    *("RTN", "RTN+mse", "RTN+imatrix", "HQQ", "GPTQ", "AWQ", "TEQ", "AUTOROUND"),
    *("AWQ+GPTQ", "TEQ+GPTQ"),
)
# dtype and scheme, as the columns are called.
FORMATS = {
    "int4_clip": ("int4_clip", "sym"),
    "int4_fullrange": ("int4_fullrange", "sym"),
    "int4_asym": ("int4_clip", "asym"),
    "nf4": ("nf4", "sym"),
    "fp4_e2m1": ("fp4_e2m1", "sym"),
    "int8": ("int8", "sym"),
}
_DATA_FREE = ("RTN", "HQQ")
_PERMUTATION_TOLERANCE = 1e-4
_REFERENCE_BYTES = 2 << 30


def bits_per_weight(model: Any) -> float:
    """Bits of the stored tensors of the quantized layers for each of their weights, with scales as
    the exchange formats store them (16 bits)."""
    bits = count = 0.0
    for layer in model.modules():
        if not isinstance(layer, woq.WeightOnlyLinear):
            continue
        rows, cols, scheme = layer.out_features, layer.in_features, layer.scheme
        width = scheme.bits
        stored = layer.stored_tensors().get("zero_points") if scheme.asym else None
        real = stored is not None and stored.is_floating_point()  # HQQ's
        zeros = (32 if real else width) if scheme.asym else 0
        bits += stored_bits(rows, cols, scheme.group_size, width, zeros)
        count += rows * cols
    return bits / count


def config_for(
    algorithm: str, form: str, group_size: int, options: Mapping[str, Any], data: Mapping[str, Any]
) -> woq.WeightOnlyQuantConfig:
    dtype, scheme = FORMATS[form]
    name, _, variant = algorithm.partition("+")
    if variant == "GPTQ":
        name = algorithm
    fields: dict[str, Any] = {
        "weight_dtype": dtype,
        "scheme": scheme,
        "group_size": group_size,
        "scale_dtype": "fp16",
        "algorithm": name,
        "mse_range": True if variant == "mse" else None,
        "algorithm_args": {} if name == "RTN" else dict(options),
    }
    if name not in _DATA_FREE:
        fields |= data
    return woq.WeightOnlyQuantConfig(**fields)


def has_form(algorithm: str, form: str) -> bool:
    return algorithm != "HQQ" or FORMATS[form][1] == "asym"


def permuted(model: Any, windows: torch.Tensor, seed: int) -> dict[str, float]:
    """Permute `model`; the fp32 figures, checked to be what they were."""
    before = score_of(model, windows[:4])
    permute_channels(model, seed)
    after = score_of(model, windows[:4])
    moved = abs(after / before - 1)
    if not moved < _PERMUTATION_TOLERANCE:
        raise SystemExit(f"the permutation moved fp32 perplexity from {before} to {after}")
    return {"fp32_moved_by": moved}


def export(
    folder: Path, model: Any, tokenizer: Any, calibration: str, options: Mapping[str, Any]
) -> None:
    """Write the protocol folder, with the samples that woq's own algorithms draw by `options`:
    nsamples, seqlen, seed."""
    numbers = (options["nsamples"], options["seqlen"], options["seed"])
    samples = token_samples(calibration, lambda: tokenizer, *numbers)
    save_protocol(folder, model, tokenizer, samples, options["seed"])


class RowFile:
    """Rows that were measured, one JSON line each, so that a table can be made in several runs:
    what was measured with the same settings is not measured again. Without a path: nothing."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._rows: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists():
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                try:
                    entry = json.loads(line)
                except ValueError:
                    print(f"{path}:{number}: a run was stopped here; left out", file=sys.stderr)
                    continue
                self._rows[self._name(entry["settings"])] = entry["row"]

    def get(self, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        return self._rows.get(self._name(settings))

    def add(self, settings: Mapping[str, Any], row: dict[str, Any]) -> None:
        self._rows[self._name(settings)] = row
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"settings": settings, "row": row}) + "\n")

    @staticmethod
    def _name(settings: Mapping[str, Any]) -> str:
        return json.dumps(settings, sort_keys=True)


def score_of(model: Any, windows: torch.Tensor) -> float:
    logs = list(log_probabilities(model, windows))
    return score(windows, logs, logs)["perplexity"]


def print_markdown(rows: Sequence[Mapping[str, Any]]) -> None:
    columns = list(rows[0])
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(_cell(column, row[column]) for column in columns) + " |")


_DECIMALS = {"perplexity": 2, "kl": 4, "top1": 3, "seconds": 1, "MiB": 0, "bits/weight": 3}


def _cell(column: str, value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.{_DECIMALS[column]}f}" if column in _DECIMALS else str(value)


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", required=True, metavar="FILE", help="UTF-8 text to score")
    parser.add_argument("--calibration", required=True, metavar="FILE", help="UTF-8 text to learn")
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--model", metavar="DIR_OR_GGUF", help="default: SmolLM2-135M-Instruct")
    parser.add_argument("--algorithm", nargs="*", default=list(ALGORITHMS), help="none: only fp32")
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=list(FORMATS)[:5])
    parser.add_argument("--group-size", nargs="+", type=int, default=[32, 64, 128, -1])
    parser.add_argument("--seed", nargs="+", type=int, default=[42], help="of the calibration")
    parser.add_argument(
        "--option", nargs="+", default=[], metavar="NAME=VALUE", help="e.g. nsamples=64 iters=100"
    )
    parser.add_argument("--permutation-seed", type=int, default=0)
    parser.add_argument("--no-permutation", action="store_true")
    parser.add_argument("--threads", type=int, help="default: as torch chooses")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--rows", type=Path, metavar="FILE", help="keep rows there, and take those it has from it"
    )
    parser.add_argument("--export", type=Path, metavar="DIR", help="write what peers need, and end")
    parser.add_argument("--score", nargs="+", type=Path, default=[], metavar="DIR", help="of peers")
    args = parser.parse_args(arguments)
    if unknown := set(args.algorithm) - set(ALGORITHMS):
        parser.error(f"--algorithm: unknown {sorted(unknown)}; known: {', '.join(ALGORITHMS)}")
    if args.windows < 1 or args.length < 2:
        parser.error("--windows must be at least 1 and --length at least 2")
    given = dict(option.partition("=")[::2] for option in args.option)
    try:
        options = {name: json.loads(value) for name, value in given.items()}
    except ValueError as error:
        parser.error(f"--option wants NAME=VALUE with a JSON value: {error}")
    usable = {name for algorithm in args.algorithm for name in _known(algorithm, options)}
    if unused := set(options) - usable - (set(_COUNTS) if args.export or args.score else set()):
        parser.error(f"--option: no chosen algorithm has {', '.join(sorted(unused))}")

    facts = machine(args.threads)
    model, tokenizer, facts["model"] = load_fp32(args.model)
    windows = windows_of_file(tokenizer, args.text, args.windows, args.length)
    facts["text"] = f"{Path(args.text).name}, {args.windows} windows of {args.length} tokens"
    facts["calibration"] = f"{Path(args.calibration).name} {options or ''}".rstrip()
    if not args.no_permutation:
        facts |= permuted(model, windows, args.permutation_seed)
    if args.export:
        drawn = {"nsamples": 128, "seqlen": 512, **options, "seed": args.seed[0]}
        export(args.export, model, tokenizer, args.calibration, drawn)
        return []
    data = {"dataset": args.calibration, "tokenizer": tokenizer}

    def row(name: str, **figures: Any) -> dict[str, Any]:
        empty = dict.fromkeys(("format", "group", "seed", "bits/weight"))
        values = {"algorithm": name, **empty, **figures}
        return {key: values[key] for key in ("algorithm", *empty, *_FIGURES)}

    kept: list[torch.Tensor] = []

    def compare(candidate: Any) -> dict[str, float]:
        # Computed again each time where keeping it is too much: 6 GB for 64 windows.
        if not kept and windows.numel() * model.config.vocab_size * 4 <= _REFERENCE_BYTES:
            kept.extend(log_probabilities(model, windows))
        reference = kept or log_probabilities(model, windows)
        return score(windows, reference, log_probabilities(candidate, windows))

    protocol = {
        "model": facts["model"],
        "text": facts["text"],
        "calibration": Path(args.calibration).name,
        "permutation": None if args.no_permutation else args.permutation_seed,
    }
    measured = RowFile(args.rows)

    base = score_of(model, windows)
    rows = [row("fp32", perplexity=base, kl=0.0, top1=1.0, seconds=None, MiB=None)]
    for algorithm, form, group in itertools.product(args.algorithm, args.format, args.group_size):
        if not has_form(algorithm, form):
            continue
        for seed in [None] if algorithm in ("RTN", "RTN+mse", "HQQ") else args.seed:
            chosen = options if seed is None else {**options, "seed": seed}
            known = _known(algorithm, chosen)
            config = config_for(algorithm, form, group, known, data)
            settings = {
                **protocol,
                "algorithm": algorithm,
                "config": config.to_dict(),
                "counts": {key: known[key] for key in _COUNTS if key in known},
                "threads": torch.get_num_threads(),
            }
            if (found := measured.get(settings)) is not None:
                rows.append(found)
                continue
            candidate = copy.deepcopy(model)
            started = time.perf_counter()
            with PeakMemory() as peak:
                if algorithm == "RTN+imatrix":
                    counts = {key: chosen[key] for key in _COUNTS if key in chosen}
                    config.imatrix = woq.collect_imatrix(candidate, **data, **counts)
                woq.quantize(candidate, config)
            seconds = time.perf_counter() - started
            figures = compare(candidate)
            rows.append(
                row(
                    algorithm,
                    format=form,
                    group=group,
                    seed=seed,
                    **{"bits/weight": bits_per_weight(candidate)},
                    **figures,
                    seconds=seconds,
                    MiB=peak.mib,
                )
            )
            measured.add(settings, rows[-1])
            del candidate
    candidate = copy.deepcopy(model) if args.score else None
    for folder in args.score:
        made = load_row(folder)
        candidate.load_state_dict(model.state_dict())
        restore_weights(folder, candidate)
        rows.append(
            row(
                made.algorithm,
                format=made.format,
                group=made.group,
                seed=made.seed,
                **{"bits/weight": made.bits_per_weight},
                **compare(candidate),
                seconds=made.seconds,
                MiB=made.mib,
            )
        )
    if args.json:
        print(json.dumps({"machine": facts, "results": rows}, indent=1))
    else:
        print_header(facts)
        print()
        print_markdown(rows)
    return rows


_COUNTS = ("nsamples", "seqlen", "batch_size", "seed")
_FIGURES = ("perplexity", "kl", "top1", "seconds", "MiB")


def _known(algorithm: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that `algorithm` has: one command line serves all."""
    from woq.config.registry import find_algorithm

    rtn = algorithm == "RTN+imatrix"
    names = _COUNTS if rtn else find_algorithm(algorithm.removesuffix("+mse")).options
    return {name: value for name, value in options.items() if name in names}


if __name__ == "__main__":
    main()
