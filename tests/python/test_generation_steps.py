# SPDX-License-Identifier: Apache-2.0
"""Seeds, log-probabilities, timings and cancellation of TextGenerator."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from model_support import run_python
from transformers import PreTrainedTokenizerFast

from woq import InvalidArgument
from woq.core import native
from woq.generation import Completion, TextGenerator

pytest_plugins = ["tiny_models"]

PROMPTS = ["the quick brown", "a", "need several bytes each, and then some more of them"]
SAMPLING = {"do_sample": True, "temperature": 30.0, "top_k": 40, "top_p": 0.95}


@pytest.fixture
def generator(model: Any, tokenizer: PreTrainedTokenizerFast) -> TextGenerator:
    return TextGenerator(model, tokenizer, {"max_new_tokens": 16})


def one(generator: TextGenerator, prompt: str = PROMPTS[0], **options: Any) -> Completion:
    return generator.generate([prompt], **options)[0][0]


def by_transformers(generator: TextGenerator, prompt: str, **kwargs: Any) -> tuple[int, ...]:
    inputs = generator.tokenizer(prompt, return_tensors="pt")
    start = 1 if generator.is_encoder_decoder else inputs["input_ids"].shape[1]
    output = generator.model.generate(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], **kwargs
    )
    return tuple(output[0, start:].tolist())


def test_tokens_are_those_of_generate(generator: TextGenerator) -> None:
    for prompt in PROMPTS:
        greedy = by_transformers(generator, prompt, max_new_tokens=16, do_sample=False)
        assert one(generator, prompt).token_ids == greedy
        for seed in (0, 1234):
            torch.manual_seed(seed)
            sampled = by_transformers(generator, prompt, max_new_tokens=16, **SAMPLING)
            assert one(generator, prompt, seed=seed, **SAMPLING).token_ids == sampled
            assert sampled != greedy


def test_a_seed_leaves_torch_alone(generator: TextGenerator) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = one(generator, seed=7, **SAMPLING)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert one(generator, seed=7, **SAMPLING) == first
    assert list(generator.stream(PROMPTS[0], seed=7, **SAMPLING))[-1] == first
    assert one(generator, seed=8, **SAMPLING) != first
    # Without a seed it is torch's own generator that draws.
    torch.manual_seed(9)
    drawn = one(generator, **SAMPLING)
    assert one(generator, **SAMPLING) != drawn
    torch.manual_seed(9)
    assert one(generator, **SAMPLING) == drawn


def test_a_seeded_answer_does_not_depend_on_its_batch(generator: TextGenerator) -> None:
    single = [one(generator, prompt, seed=3, **SAMPLING) for prompt in PROMPTS]
    assert [group[0] for group in generator.generate(PROMPTS, seed=3, **SAMPLING)] == single
    several = generator.generate(PROMPTS, seed=2, num_return_sequences=3, **SAMPLING)
    assert [group[1] for group in several] == single
    assert len({completion.text for completion in several[0]}) == 3


def test_seeds_and_logprobs_refuse_beams(generator: TextGenerator) -> None:
    with pytest.raises(InvalidArgument, match=r"seed works .* not with beam_sample: .*num_beams=1"):
        one(generator, seed=1, num_beams=2, do_sample=True)
    with pytest.raises(InvalidArgument, match=r"logprobs works .* not with beam_search"):
        one(generator, logprobs=True, num_beams=2)
    # A greedy beam search draws nothing: a seed that holds for all calls is no obstacle.
    assert one(generator, seed=1, num_beams=2) == one(generator, num_beams=2)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"seed": -1}, r"seed must be an integer from 0 .* got -1"),
        ({"seed": True}, "seed must be an integer"),
        ({"seed": 1.5}, "seed must be an integer"),
        ({"logprobs": -1}, "logprobs must be True, or how many"),
        ({"logprobs": "all"}, "logprobs must be True, or how many"),
        ({"stop": 3}, "stop must be a string or a list of strings, got 3"),
        ({"stop": [""]}, "stop must hold non-empty strings"),
        ({"stop_sequence": ["a", None]}, "stop must hold non-empty strings"),
    ],
)
def test_wrong_values_are_named(
    causal: Any, tokenizer: PreTrainedTokenizerFast, option: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        TextGenerator(causal, tokenizer, option)
    with pytest.raises(InvalidArgument, match=message):
        TextGenerator(causal, tokenizer).generate(["a"], **option)


def test_stop_has_three_names_and_a_call_replaces_it(generator: TextGenerator) -> None:
    whole = one(generator).text
    early, late = whole[4:7], whole[8:11]
    for name in ("stop", "stop_strings", "stop_sequence"):
        stopping = generator.with_options({name: early})
        assert one(stopping).text == whole[: whole.index(early)]
        assert one(stopping, stop=[late]).text == whole[: whole.index(late)]
        assert one(stopping, stop=None).text == whole[: whole.index(early)]
        assert one(stopping, stop=[]).text == whole


def test_a_whole_generation_config(generator: TextGenerator) -> None:
    from transformers import GenerationConfig

    config = GenerationConfig(max_new_tokens=5, repetition_penalty=1.7)
    plain = TextGenerator(generator.model, generator.tokenizer)
    expected = one(plain, max_new_tokens=5, repetition_penalty=1.7)
    assert one(plain, generation_config=config) == expected
    assert one(plain, generation_config=config, max_new_tokens=3).completion_tokens == 3


@pytest.mark.parametrize("sampling", [{}, {"seed": 11, **SAMPLING}])
def test_logprobs_are_the_models_own(generator: TextGenerator, sampling: dict[str, Any]) -> None:
    assert one(generator, **sampling).logprobs is None
    answer = one(generator, logprobs=3, repetition_penalty=1.4, **sampling)
    assert answer.logprobs is not None
    assert [entry.token_id for entry in answer.logprobs] == list(answer.token_ids)

    model, prompt = generator.model, generator.tokenizer(PROMPTS[0], return_tensors="pt")
    new = torch.tensor([answer.token_ids])
    with torch.no_grad():
        if generator.is_encoder_decoder:
            start = torch.tensor([[model.config.decoder_start_token_id]])
            logits = model(**prompt, decoder_input_ids=torch.cat([start, new[:, :-1]], 1)).logits
        else:
            ids = torch.cat([prompt["input_ids"], new[:, :-1]], 1)
            logits = model(input_ids=ids).logits[:, prompt["input_ids"].shape[1] - 1 :]
    expected = torch.log_softmax(logits[0], -1)  # [tokens, vocab]
    tolerance = 1e-5 * logits.abs().max().item()  # a cache sums in another order
    for row, entry in zip(expected, answer.logprobs, strict=True):
        assert entry.logprob == pytest.approx(row[entry.token_id].item(), abs=tolerance)
        values = [value for _, _, value in entry.top]
        assert values == pytest.approx(row.topk(3).values.tolist(), abs=tolerance)
        assert entry.token == generator.tokenizer.decode([entry.token_id])
    if not sampling:
        assert any(e.logprob < max(v for _, _, v in e.top) for e in answer.logprobs), "penalties"


def test_logprobs_of_a_batch_and_of_a_stop(generator: TextGenerator) -> None:
    single = [one(generator, prompt, logprobs=True) for prompt in PROMPTS]
    together = [group[0] for group in generator.generate(PROMPTS, logprobs=True)]
    for alone, batched in zip(single, together, strict=True):
        assert alone.logprobs is not None
        assert batched.logprobs is not None
        assert [entry.top for entry in batched.logprobs] == [()] * batched.completion_tokens
        assert [entry.logprob for entry in batched.logprobs] == pytest.approx(
            [entry.logprob for entry in alone.logprobs], abs=1e-2
        )
    stopped = one(generator, stop=[single[0].text[5:8]], logprobs=True)
    assert stopped.logprobs == single[0].logprobs[: stopped.completion_tokens]


def test_timings(generator: TextGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = generator.model.forward

    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.02)
        return forward(*args, **kwargs)

    slow.__signature__ = __import__("inspect").signature(forward)  # generate() looks at it
    monkeypatch.setattr(generator.model, "forward", slow)
    answer = one(generator, max_new_tokens=5, eos_token_id=None)
    assert answer.completion_tokens == 5
    assert answer.time_to_first_token >= 0.02
    assert answer.seconds >= answer.time_to_first_token + 4 * 0.02
    assert answer.tokens_per_second is not None
    assert 0 < answer.tokens_per_second <= 1 / 0.02
    assert one(generator, max_new_tokens=1).tokens_per_second is None
    details = answer.details()
    assert details["token_ids"] == list(answer.token_ids)
    assert details["tokens_per_second"] == answer.tokens_per_second


class CancelAfter:
    """A stopping criterion that stops nothing, but cancels after some steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps
        self.event = threading.Event()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.left -= 1
        if self.left == 0:
            self.event.set()
        return torch.zeros(len(input_ids), dtype=torch.bool)


def test_cancelling_ends_after_the_current_token(generator: TextGenerator) -> None:
    whole = one(generator)
    cancel = CancelAfter(3)
    groups = generator.generate(
        PROMPTS[:2] + PROMPTS[:1],
        batch_size=2,
        cancelled=cancel.event,
        stopping_criteria=[cancel],
    )
    first, _, never_begun = (group[0] for group in groups)
    assert first.finish_reason == "cancelled"
    assert first.token_ids == whole.token_ids[: first.completion_tokens]
    assert first.completion_tokens in (3, 4)
    assert (never_begun.text, never_begun.finish_reason) == ("", "cancelled")
    assert never_begun.prompt_tokens == first.prompt_tokens


class Busy:
    """The core's limit of a machine that is busy from the third question on until the eighth."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[int] = []
        monkeypatch.setattr(native, "allowed_threads", self)

    def __call__(self, wanted: int) -> int:
        self.asked.append(wanted)
        return max(1, wanted // 2) if 3 <= len(self.asked) < 8 else wanted


def torch_threads() -> int:
    """As torch's report has it: the calling thread's number, which MKL, if any, agrees with."""
    found = re.findall(
        r"^\s*(?:at::get_num_threads|omp_get_max_threads|mkl_get_max_threads)\(\) : (\d+)$",
        torch.__config__.parallel_info(),
        flags=re.MULTILINE,
    )
    assert len(found) == 2 + torch.backends.mkl.is_available()
    (number,) = set(found)
    return int(number)


class SeenThreads:
    """A stopping criterion that stops nothing; torch's threads in the step that follows each."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.numbers.append(torch_threads())
        return torch.zeros(len(input_ids), dtype=torch.bool)


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("four_threads")
def test_torch_gets_no_more_threads_than_layers(
    generator: TextGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, busy, seen = one(generator), Busy(monkeypatch), SeenThreads()
    answer = one(generator, eos_token_id=None, max_new_tokens=9, stopping_criteria=[seen])
    assert answer.token_ids[: whole.completion_tokens] == whole.token_ids[:9]
    # The first question is before the first step; all are about what the caller has.
    assert busy.asked == [4] * 10
    assert seen.numbers == [4, 2, 2, 2, 2, 2, 4, 4, 4]
    assert torch_threads() == 4


@pytest.mark.usefixtures("four_threads")
def test_threads_are_given_back_however_it_ends(
    generator: TextGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "allowed_threads", lambda wanted: 1)
    assert one(generator).completion_tokens
    assert torch_threads() == 4

    cancel, seen = CancelAfter(3), SeenThreads()
    (cancelled,) = generator.generate(
        PROMPTS[:1], cancelled=cancel.event, stopping_criteria=[cancel, seen]
    )
    assert cancelled[0].finish_reason == "cancelled"
    assert set(seen.numbers) == {1}
    assert torch_threads() == 4

    def fail(input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        one(generator, stopping_criteria=[fail])
    assert torch_threads() == 4


@pytest.mark.usefixtures("four_threads")
def test_threads_that_are_set_meanwhile_stay(
    generator: TextGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(
        native, "allowed_threads", lambda wanted: asked.append(wanted) or wanted // 2
    )

    def set_threads(input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if len(asked) == 3:
            torch.set_num_threads(6)
        return torch.zeros(len(input_ids), dtype=torch.bool)

    one(generator, eos_token_id=None, max_new_tokens=5, stopping_criteria=[set_threads])
    assert asked == [4, 4, 4, 6, 6, 6]
    assert torch_threads() == 6


@pytest.mark.usefixtures("four_threads")
def test_a_thread_of_a_stream_has_its_own_number(
    generator: TextGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy, numbers = Busy(monkeypatch), []
    for _ in generator.stream(PROMPTS[0], eos_token_id=None, max_new_tokens=9):
        numbers.append(torch_threads())
    assert busy.asked == [4] * 10, "a new thread has torch's number"
    assert set(numbers) == {4}


def test_threads_of_the_calling_thread_alone() -> None:
    here = torch.get_num_threads()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == here
        pool.submit(native.set_calling_threads, here + 3).result()
        assert pool.submit(torch.get_num_threads).result() == here + 3
        assert pool.submit(lambda: native.cpu_info()["usable_threads"]).result() == here + 3
    assert torch.get_num_threads() == here
    assert 1 <= native.allowed_threads(4) <= 4
    for function in (native.allowed_threads, native.set_calling_threads):
        with pytest.raises(InvalidArgument, match="at least 1 thread is needed, got 0"):
            function(0)


def test_async_forms_equal_the_others(generator: TextGenerator) -> None:
    async def run() -> tuple[list[list[Completion]], list[str | Completion]]:
        streamed = [piece async for piece in generator.astream(PROMPTS[0])]
        return await generator.agenerate(PROMPTS), streamed

    groups, streamed = asyncio.run(run())
    assert groups == generator.generate(PROMPTS)
    assert streamed == list(generator.stream(PROMPTS[0]))


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("woq-")]


def wait_for_no_threads() -> None:
    deadline = time.monotonic() + 30
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads() == []


def test_the_event_loop_stays_free_and_cancelling_ends_the_thread(
    generator: TextGenerator,
) -> None:
    turns = 0

    def pause(input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        time.sleep(0.005)
        return torch.zeros(len(input_ids), dtype=torch.bool)

    async def tick() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0.005)

    async def run() -> None:
        ticking = asyncio.create_task(tick())
        long = {"max_new_tokens": 400, "eos_token_id": None, "stopping_criteria": [pause]}
        task = asyncio.create_task(generator.agenerate(PROMPTS[:1], **long))
        await asyncio.sleep(0.15)
        assert turns >= 5
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        stream = generator.astream(PROMPTS[0], **long)
        assert isinstance(await anext(stream), str)
        await stream.aclose()
        ticking.cancel()

    asyncio.run(run())
    wait_for_no_threads()


def test_errors_come_out_of_the_async_forms(
    generator: TextGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise FloatingPointError("layer 3 is broken")

    monkeypatch.setattr(generator.model, "generate", fail)

    async def stream() -> None:
        async for _ in generator.astream("a"):
            pytest.fail("no piece can come")

    with pytest.raises(FloatingPointError, match="layer 3"):
        asyncio.run(stream())
    with pytest.raises(FloatingPointError, match="layer 3"):
        asyncio.run(generator.agenerate(["a"]))


def test_threads_do_not_disturb_each_other(generator: TextGenerator) -> None:
    seeds = range(4)
    expected = [one(generator, seed=seed, logprobs=1, **SAMPLING) for seed in seeds]
    with ThreadPoolExecutor(4) as pool:
        together = list(
            pool.map(lambda seed: one(generator, seed=seed, logprobs=1, **SAMPLING), seeds)
        )
    assert together == expected


def test_the_models_own_stop_strings_with_a_seed(
    generator: TextGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = one(generator, seed=3, **SAMPLING)
    stop = whole.text[4:7]
    monkeypatch.setattr(generator.model.generation_config, "stop_strings", [stop])
    for options in ({}, {"stop": ["zzz"]}):
        stopped = one(generator, seed=3, **SAMPLING, **options)
        assert stopped.text == whole.text[: whole.text.index(stop)]
        assert stopped.finish_reason == "stop"
    assert generator.model.generation_config.stop_strings == [stop]


def test_the_program_may_end_within_a_stream() -> None:
    """The core must not be running when the interpreter is torn down: that aborts the process."""
    run_python(
        """
        import asyncio
        import os
        import sys

        sys.path.insert(0, os.environ["TESTS"])
        from tiny_models import build_tokenizer
        from transformers import LlamaConfig, LlamaForCausalLM
        import woq
        from woq.generation import TextGenerator

        tokenizer = build_tokenizer()
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=512, intermediate_size=2048,
            num_hidden_layers=4, num_attention_heads=8,
        )
        model = woq.quantize(LlamaForCausalLM(config), woq.WeightOnlyQuantConfig("nf4"))
        model.generation_config.eos_token_id = None
        generator = TextGenerator(model, tokenizer, {"max_new_tokens": 100000})

        async def begin():
            async for piece in generator.astream("the fox"):
                break

        asyncio.run(begin())
        left_open = generator.stream("the dog")
        next(left_open)
        """,
        TESTS=str(Path(__file__).parent),
    )
