# SPDX-License-Identifier: Apache-2.0
"""Tokens per second of a language model in transformers: woq beside torch and bitsandbytes.

Every case is `model.generate`, greedy, batch 1, with the same prompt and number of new tokens. A
streamer takes the time of each token: the first one ends the prefill, the others are the decode.
The cases run in turn; the figures are medians over the repeats. The models differ in their linear
layers only (bitsandbytes leaves the output embedding alone, woq's is quantized by --lm-head).
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import torch
from common import (
    COMPUTE_DTYPES,
    Timing,
    add_model_arguments,
    interleave,
    load_fp32,
    machine,
    quantized,
    report,
)

from woq.demo import generation_times


def save_float(model: Any, folder: str) -> None:
    """Save as a plain checkpoint: transformers refuses to save what it loaded from a GGUF file."""
    config = copy.deepcopy(model.config)
    config.__dict__.pop("quantization_config", None)
    with torch.device("meta"):
        plain = type(model)(config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.save_pretrained(folder)


def bitsandbytes_model(folder: str, dtype: torch.dtype) -> Any:
    """bitsandbytes' nf4 from a saved fp32 checkpoint (transformers refuses it for GGUF files)."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )
    return AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, dtype=dtype, device_map={"": "cpu"}
    ).eval()


def build_models(model: Any, args: argparse.Namespace) -> dict[str, Any]:
    models = {"torch fp32": model, "torch bf16": copy.deepcopy(model).to(torch.bfloat16)}
    if not args.no_bitsandbytes:
        with tempfile.TemporaryDirectory() as folder:
            save_float(model, folder)
            models["bitsandbytes nf4 fp32"] = bitsandbytes_model(folder, torch.float32)
            models["bitsandbytes nf4 bf16"] = bitsandbytes_model(folder, torch.bfloat16)
    for dtype in args.dtype or ("nf4", "int4_clip"):
        for compute in args.compute or COMPUTE_DTYPES:
            models[f"woq {dtype} {compute}"] = quantized(
                model,
                weight_dtype=dtype,
                compute_dtype=compute,
                group_size=args.group_size,
                quantize_lm_head=False if args.lm_head == "none" else args.lm_head,
            )
    return models


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--lm-head", default="int8", help='dtype of woq\'s, or "none"')
    parser.add_argument("--no-bitsandbytes", action="store_true")
    add_model_arguments(parser)
    args = parser.parse_args(arguments)
    if args.prompt_tokens < 1 or args.new_tokens < 2 or args.repeats < 1:
        parser.error("--prompt-tokens and --repeats must be at least 1, --new-tokens at least 2")

    facts = machine(args.threads)
    model, _, facts["model"] = load_fp32(args.model)
    facts["protocol"] = (
        f"{args.prompt_tokens} prompt tokens, {args.new_tokens} new tokens, median of "
        f"{args.repeats} interleaved repeats, woq's output embedding {args.lm_head}"
    )
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(
        model.config.vocab_size, (1, args.prompt_tokens), generator=generator, dtype=torch.long
    )
    prefills: dict[str, list[float]] = {}

    def decode_rate(name: str, candidate: Any) -> Callable[[], float]:
        def case() -> float:
            times = generation_times(candidate, prompt, args.new_tokens)
            prefills.setdefault(name, []).append(args.prompt_tokens / times.prefill)
            return times.tokens_per_second

        return case

    models = build_models(model, args)
    decodes = interleave(
        {name: decode_rate(name, candidate) for name, candidate in models.items()}, args.repeats
    )
    rows = []
    best_other = max(t.median for name, t in decodes.items() if not name.startswith("woq"))
    for name, decode in decodes.items():
        prefill = Timing(tuple(prefills[name][1:]))  # the first round doesn't count
        rows.append(
            {
                "case": name,
                "decode_tok/s": decode.median,
                "spread": decode.spread,
                "vs_torch_fp32": decode.median / decodes["torch fp32"].median,
                "vs_best_other": decode.median / best_other,
                "prefill_tok/s": prefill.median,
            }
        )
    report(facts, rows, as_json=args.json)
    return rows


if __name__ == "__main__":
    main()
