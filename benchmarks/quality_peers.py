# SPDX-License-Identifier: Apache-2.0
"""Quantize quality.py's permuted model with another library, for quality.py to score.

One run is one row: the library reads the float model and the calibration samples of a protocol
folder, and its weights are written, dequantized to fp32, with time, peak memory and bits a weight,
into --out. The figures come from quality.py --score, where all rows pass through the same code.
What is timed is the library's own quantization, with its calibration, without loading and saving.

Run it in an environment that has torch, transformers, safetensors and the library; woq is not
needed. The libraries want different versions of transformers, so each gets an environment of its
own, torch's CPU build first:

    auto-round         torch==2.13.0 auto-round==0.16.1
    gptqmodel          torch==2.13.0 gptqmodel==7.6.0
    hqq                torch==2.13.0 transformers accelerate hqq==0.2.8.post1
    llama.cpp          torch==2.13.0 transformers gguf llama-cpp-python==0.3.36 (compiles)
    llm-compressor     torch==2.13.0 llmcompressor==0.14.0.1
    neural-compressor  torch==2.13.0 transformers neural-compressor-pt==3.10
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from quality_exchange import Row, linear_layers, read_protocol, save_row
from quantizers import PEERS, Task, peer_module


def main(arguments: Sequence[str] | None = None) -> Row:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--protocol", type=Path, required=True, metavar="DIR", help="of --export")
    parser.add_argument("--peer", required=True, choices=PEERS)
    parser.add_argument("--format", required=True, help="one of the peer's")
    parser.add_argument("--group-size", type=int, default=32)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the row")
    parser.add_argument("--nsamples", type=int, help="the first so many samples; default: all")
    parser.add_argument(
        "--option", nargs="+", default=[], metavar="NAME=VALUE", help="values as in JSON"
    )
    parser.add_argument("--threads", type=int, help="default: as torch chooses")
    args = parser.parse_args(arguments)
    peer = peer_module(args.peer)
    if args.format not in peer.FORMATS:
        parser.error(f"{args.peer} has --format {', '.join(peer.FORMATS)}, not {args.format!r}")
    given = _options(parser, args.option, peer.OPTIONS)
    if args.threads:
        torch.set_num_threads(args.threads)

    samples, facts = read_protocol(args.protocol)
    samples = samples[: args.nsamples]
    torch.manual_seed(facts["seed"])
    with tempfile.TemporaryDirectory(prefix="quality-") as scratch:
        task = Task(
            protocol=args.protocol,
            samples=samples,
            format=args.format,
            group_size=args.group_size,
            options={**peer.OPTIONS, **given},
            seed=facts["seed"],
            scratch=Path(scratch),
        )
        made = peer.quantize(task)
        float_weights = linear_layers(task.model()).values()
    if task.seconds is None:
        raise SystemExit(f"quantizers.{PEERS[args.peer]} measured nothing")
    versions = {name: _version(name) for name in (peer.PACKAGE, "torch", "transformers")}
    details = [f"{name}={json.dumps(value)}" for name, value in given.items()]
    row = Row(
        algorithm=" ".join([args.peer, versions[peer.PACKAGE], *details]),
        format=args.format,
        group=args.group_size,
        seed=facts["seed"],
        bits_per_weight=made.bits / sum(layer.weight.numel() for layer in float_weights),
        seconds=task.seconds,
        mib=task.mib,
        model=facts["model"],
        samples=list(samples.shape),
        versions=versions,
    )
    save_row(args.out, row, made.weights)
    return row


def _options(
    parser: argparse.ArgumentParser, given: Sequence[str], known: dict[str, Any]
) -> dict[str, Any]:
    options = {}
    for option in given:
        name, _, value = option.partition("=")
        if name not in known:
            parser.error(f"unknown option {name!r}; known: {', '.join(known) or 'none'}")
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:
            parser.error(f"--option {option}: the value is not JSON")
    return options


def _version(package: str) -> str:
    return importlib.metadata.version(package)


if __name__ == "__main__":
    made_row = main()
    print(
        f"{made_row.algorithm} {made_row.format} g{made_row.group}: "
        f"{made_row.bits_per_weight:.4f} bits/weight, {made_row.seconds:.1f} s, {made_row.mib} MiB"
    )
