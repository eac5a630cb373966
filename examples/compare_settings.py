# SPDX-License-Identifier: Apache-2.0
"""What each setting costs a model: size, perplexity, and KL divergence to the float model.

python examples/compare_settings.py HuggingFaceTB/SmolLM2-135M-Instruct corpus.txt
"""

from __future__ import annotations

import argparse
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

import woq

SETTINGS = {
    "int8": woq.WeightOnlyQuantConfig("int8", scale_dtype="bf16"),
    "nf4": woq.WeightOnlyQuantConfig("nf4", scale_dtype="fp16"),
    "nf4, groups of 128": woq.WeightOnlyQuantConfig("nf4", group_size=128, scale_dtype="fp16"),
    "int4": woq.WeightOnlyQuantConfig("int4", scale_dtype="fp16"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="compare settings on one model")
    parser.add_argument("model", help="a folder, or an id on the hub")
    parser.add_argument("text", type=Path, help="a text file to score")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    options = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    reference = AutoModelForCausalLM.from_pretrained(options.model, dtype="float32")
    text = options.text.read_text(encoding="utf-8")
    print(f"{'setting':20}  {'MiB':>8}  {'perplexity':>10}  {'KL':>7}")
    for name, config in SETTINGS.items():
        model = AutoModelForCausalLM.from_pretrained(options.model, quantization_config=config)
        scored = woq.evaluate(
            model,
            tokenizer,
            text,
            reference=reference,
            windows=options.windows,
            length=options.length,
        )
        size = model.woq_report.bytes_after / 2**20
        print(f"{name:20}  {size:8.1f}  {scored.perplexity:10.2f}  {scored.kl:7.4f}")


if __name__ == "__main__":
    main()
