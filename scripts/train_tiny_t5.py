# SPDX-License-Identifier: Apache-2.0
"""train_tiny_t5.py FOLDER: makes tests/models/tiny-t5, a T5 of the flan-t5 kind (gated GELU, untied
head) that writes the numbers from 0 to 9999 in French, asked in digits or in English words.

Some minutes on two cores. Numbers that `held_out()` names are never seen in training; at the end
the share of them that is answered exactly is printed, as is the share after quantization with
`--quantized` (which needs woq).
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

SEED = 20240417
LARGEST = 9999

QUESTION = "What is the number {} in french?"
# As in LangChain's documentation of WeightOnlyQuantPipeline.
STEP_BY_STEP = "Question: What is the number {} in french?\n\nAnswer: Let's think step by step."
TRANSLATE = "translate English to French: {}"  # takes English words; the others digits

_FRENCH = (
    "zéro un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize"
).split()
_FRENCH_TENS = {2: "vingt", 3: "trente", 4: "quarante", 5: "cinquante", 6: "soixante"}
_ENGLISH = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
).split()
_ENGLISH_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_PROMPT_WORDS = (
    "What is the number in french French ? Question: Answer: Let's think step by . translate "
    "English to :"
).split()


def in_french(number: int) -> str:
    """`number`, 0 to 9999, in words."""
    if number < 17:
        return _FRENCH[number]
    if number < 20:
        return "dix-" + _FRENCH[number - 10]
    if number < 100:
        ten, unit = divmod(number, 10)
        if ten >= 8:  # four times twenty, and up to nineteen more
            rest = number - 80
            return "quatre-vingt" + ("-" + in_french(rest) if rest else "s")
        if ten == 7:  # sixty and ten more
            ten, unit = 6, unit + 10
        word = _FRENCH_TENS[ten]
        if unit in (1, 11):
            return f"{word} et {in_french(unit)}"
        return word + ("-" + in_french(unit) if unit else "")
    if number < 1000:
        hundred, rest = divmod(number, 100)
        several = [] if hundred == 1 else [_FRENCH[hundred]]
        word = "cents" if hundred > 1 and not rest else "cent"
        return " ".join([*several, word, *([in_french(rest)] if rest else [])])
    thousand, rest = divmod(number, 1000)
    several = [] if thousand == 1 else [in_french(thousand)]
    return " ".join([*several, "mille", *([in_french(rest)] if rest else [])])


def in_english(number: int) -> str:
    """`number`, 0 to 9999, in words."""
    if number < 20:
        return _ENGLISH[number]
    if number < 100:
        ten, unit = divmod(number, 10)
        return _ENGLISH_TENS[ten - 2] + ("-" + _ENGLISH[unit] if unit else "")
    size, word = (100, "hundred") if number < 1000 else (1000, "thousand")
    count, rest = divmod(number, size)
    return f"{in_english(count)} {word}" + (" " + in_english(rest) if rest else "")


def ask(template: str, number: int) -> str:
    return template.format(in_english(number) if template == TRANSLATE else number)


def held_out() -> list[tuple[str, str]]:
    """1,000 inputs with their answers, of numbers that training has in no form at all."""
    templates = (QUESTION, STEP_BY_STEP, TRANSLATE)
    numbers = random.Random(SEED).sample(range(100, LARGEST + 1), 1000)
    return [(ask(templates[i % 3], number), in_french(number)) for i, number in enumerate(numbers)]


def training_numbers() -> list[int]:
    excluded = set(random.Random(SEED).sample(range(100, LARGEST + 1), 1000))
    return [number for number in range(LARGEST + 1) if number not in excluded]


def make_tokenizer() -> Any:
    """As T5's: pieces with a mark for the space before, "</s>" at the end. The words of the task
    are pieces, everything else is spelt in characters."""
    from tokenizers import (
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )
    from transformers import PreTrainedTokenizerFast

    texts = [*_PROMPT_WORDS]
    for number in range(LARGEST + 1):
        texts += in_french(number).split() + in_english(number).split()
    words = dict.fromkeys(
        ("-" if at else "\u2581") + part
        for text in texts
        for at, part in enumerate(text.split("-"))
    )
    letters = ["\u2581", *map(chr, range(33, 127)), *"àâçèéêëîïôùûü"]
    pieces = ["<pad>", "</s>", "<unk>", *letters, *(word for word in words if len(word) > 1)]
    # Whole words before letters, whatever their number.
    vocabulary = [
        (piece, 0.0 if i < 3 else -1.0 if len(piece) > 1 else -20.0)
        for i, piece in enumerate(pieces)
    ]
    core = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    core.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    core.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def make_model(vocabulary: int) -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=-(-vocabulary // 32) * 32,
        d_model=128,
        d_kv=32,
        d_ff=256,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=64,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    model = T5ForConditionalGeneration(config)
    # transformers 5 ties the head of every T5 that has no weight for it in its checkpoint.
    head = torch.randn(config.vocab_size, config.d_model) * config.d_model**-0.5
    model.lm_head.weight = torch.nn.Parameter(head)
    return model


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """A checkpoint whose config reads as flan-t5's, with a prefix for the task that has one;
    transformers would write that the head is tied, which readers before version 5 take at its
    word."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.pop("scale_decoder_outputs", None)  # follows from the next line
    config["tie_word_embeddings"] = False
    config["task_specific_params"] = {"translation_en_to_fr": {"prefix": TRANSLATE.format("")}}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / "model.safetensors").chmod(0o644)


def train(model: Any, tokenizer: Any, steps: int, batch_size: int = 128) -> None:
    numbers = training_numbers()
    small = numbers[:100]  # all there, and would be one in ninety
    random_source = random.Random(SEED + 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / 100, 0.5 + 0.5 * math.cos(math.pi * step / steps)),
    )
    start = time.monotonic()
    total = 0.0
    for step in range(1, steps + 1):
        chosen = [
            random_source.choice(small if random_source.random() < 0.1 else numbers)
            for _ in range(batch_size)
        ]
        template = (QUESTION, STEP_BY_STEP, TRANSLATE)[step % 3]  # one a batch: equal lengths
        prompts = [ask(template, number) for number in chosen]
        if random_source.random() < 0.3:
            prompts = [prompt.replace("french", "French") for prompt in prompts]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True)
        labels = tokenizer([in_french(n) for n in chosen], return_tensors="pt", padding=True)
        targets = labels["input_ids"].masked_fill(labels["attention_mask"] == 0, -100)
        loss = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=targets
        ).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        total += loss.item()
        if step % 100 == 0:
            print(f"step {step}: loss {total / 100:.4f}, {time.monotonic() - start:.0f} s")
            sys.stdout.flush()
            total = 0.0


def exact_matches(model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> float:
    """Share of the inputs that are answered to the letter, greedily and in at most 12 tokens."""
    right = 0
    for first in range(0, len(pairs), 200):
        prompts, answers = zip(*pairs[first : first + 200], strict=True)
        inputs = tokenizer(list(prompts), return_tensors="pt", padding=True)
        with torch.inference_mode():
            output = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=12,
                do_sample=False,
            )
        texts = tokenizer.batch_decode(output, skip_special_tokens=True)
        right += sum(text == answer for text, answer in zip(texts, answers, strict=True))
    return right / len(pairs)


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--quantized", action="store_true", help="evaluate nf4 and int4_clip too")
    options = parser.parse_args(None if arguments is None else list(arguments))

    torch.manual_seed(SEED)
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer))
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {len(tokenizer)} tokens")
    train(model.train(), tokenizer, options.steps)
    model = model.to(torch.bfloat16).eval()
    save(model, tokenizer, options.folder)
    pairs = held_out()
    print(f"exact on 1,000 held-out inputs: {exact_matches(model, tokenizer, pairs):.1%}")
    if options.quantized:
        import woq

        for weight_dtype in ("nf4", "int4_clip"):
            config = woq.WeightOnlyQuantConfig(weight_dtype, group_size=32)
            quantized = woq.AutoModelForSeq2SeqLM.from_pretrained(
                options.folder, quantization_config=config
            )
            share = exact_matches(quantized, tokenizer, pairs)
            print(f"exact on them as {weight_dtype}: {share:.1%}")


if __name__ == "__main__":
    main()
