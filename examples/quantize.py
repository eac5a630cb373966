# SPDX-License-Identifier: Apache-2.0
"""Quantizes a model, saves it, loads it again, and lets it go on with a text.

python examples/quantize.py HuggingFaceTB/SmolLM2-135M-Instruct smollm2-nf4
"""

from __future__ import annotations

import argparse

from transformers import AutoModelForCausalLM, AutoTokenizer

import woq


def main() -> None:
    parser = argparse.ArgumentParser(description="quantize, save, load, generate")
    parser.add_argument("model", help="a folder, or an id on the hub")
    parser.add_argument("out", help="folder to write")
    parser.add_argument("--dtype", default="nf4")
    parser.add_argument("--group-size", type=int, default=32)
    parser.add_argument("--prompt", default="The capital of France is")
    options = parser.parse_args()

    config = woq.WeightOnlyQuantConfig(
        options.dtype, group_size=options.group_size, scale_dtype="bf16", compute_dtype="auto"
    )
    model = AutoModelForCausalLM.from_pretrained(options.model, quantization_config=config)
    print(model.woq_report)
    woq.save_pretrained(model, options.out)
    AutoTokenizer.from_pretrained(options.model).save_pretrained(options.out)
    del model

    pipe = woq.pipeline("text-generation", model=options.out)
    print(pipe(options.prompt, max_new_tokens=20)[0]["generated_text"])


if __name__ == "__main__":
    main()
