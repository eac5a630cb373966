# SPDX-License-Identifier: Apache-2.0
"""TextGenerator against a plain `model.generate`, for decoder-only and encoder-decoder models."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import build_causal, build_metaspace_tokenizer, build_tokenizer
from transformers import LogitsProcessor, PreTrainedTokenizerFast

from woq import InvalidArgument
from woq.generation import ChatIds, Completion, TextGenerator

pytest_plugins = ["tiny_models"]

PROMPTS = ["the quick brown", "a", "need several bytes each, and then some more of them"]
TOKENS = 24


def plain(model: Any, tokenizer: Any, prompt: str, tokens: int = TOKENS, **kwargs: Any) -> str:
    """New text by transformers alone."""
    inputs = tokenizer(prompt, return_tensors="pt")
    start = 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    output = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=tokens,
        **kwargs,
    )
    text = tokenizer.decode(
        output[0, start:], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    assert isinstance(text, str)
    return text


@pytest.fixture
def generator(model: Any, tokenizer: PreTrainedTokenizerFast) -> TextGenerator:
    return TextGenerator(model, tokenizer, {"max_new_tokens": TOKENS})


def test_new_text_only_and_equal_to_generate(generator: TextGenerator) -> None:
    for prompt in PROMPTS:
        (completion,) = generator.generate([prompt])[0]
        assert completion.text == plain(generator.model, generator.tokenizer, prompt)
        assert completion.prompt_tokens == len(generator.tokenizer(prompt)["input_ids"])


def test_a_batch_is_one_call_and_equals_single_prompts(
    generator: TextGenerator, widths: Callable[[Any], list[tuple[int, ...]]]
) -> None:
    single = [generator.generate([prompt])[0][0] for prompt in PROMPTS]
    shapes = widths(generator.model)
    together = [group[0] for group in generator.generate(PROMPTS)]
    longest = max(completion.prompt_tokens for completion in single)
    assert shapes == [(len(PROMPTS), longest)]
    assert together == single


def test_batches_are_cut_by_batch_size(
    generator: TextGenerator, widths: Callable[[Any], list[tuple[int, ...]]]
) -> None:
    shapes = widths(generator.model)
    assert len(generator.generate(PROMPTS, batch_size=2, max_new_tokens=2)) == 3
    assert [shape[0] for shape in shapes] == [2, 1]
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        generator.generate(PROMPTS, batch_size=0)


def test_the_tokenizer_is_left_as_it_was(generator: TextGenerator) -> None:
    before = (generator.tokenizer.padding_side, generator.tokenizer.pad_token)
    generator.generate(PROMPTS, max_new_tokens=1)
    assert (generator.tokenizer.padding_side, generator.tokenizer.pad_token) == before


def test_stop_is_honoured_while_generating(generator: TextGenerator) -> None:
    prompt = PROMPTS[0]
    whole = generator.generate([prompt])[0][0]
    assert whole.finish_reason == "length"
    stop = whole.text[6:9]  # somewhere, regardless of token borders
    (cut,) = generator.generate([prompt], stop=[stop])[0]
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish_reason == "stop"
    assert cut.completion_tokens < whole.completion_tokens


def test_rows_of_a_batch_stop_on_their_own(generator: TextGenerator) -> None:
    whole = [group[0] for group in generator.generate(PROMPTS)]
    stop = whole[0].text[4:7]
    cut = [group[0] for group in generator.generate(PROMPTS, stop=[stop])]
    assert cut[0].text == whole[0].text[: whole[0].text.index(stop)]
    for before, after in zip(whole[1:], cut[1:], strict=True):
        at = before.text.find(stop)
        assert after.text == (before.text if at < 0 else before.text[:at])


def test_a_stop_text_in_the_prompt_does_not_count(
    causal: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    generator = TextGenerator(causal, tokenizer, {"max_new_tokens": 4})
    assert generator.generate(["a fox"], stop=["fox"])[0][0].completion_tokens == 4
    # Nor does one that begins in the prompt and is completed by new text.
    new = generator.generate(["a fox"])[0][0].text
    stopped = generator.generate(["a fox"], stop=["x" + new[:1]])[0][0]
    assert stopped.text == new


def test_a_special_token_can_be_a_stop_text(
    causal: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Special tokens are not decoded, so their text never appears."""
    from transformers import LogitsProcessor, LogitsProcessorList

    end = tokenizer.convert_tokens_to_ids("<|end|>")

    class Force(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            if input_ids.shape[1] == 5:
                scores[:, :] = -1e9
                scores[:, end] = 0.0
            return scores

    ids = tokenizer("the quick brown")["input_ids"]
    generator = TextGenerator(
        causal,
        tokenizer,
        {"max_new_tokens": 12, "logits_processor": LogitsProcessorList([Force()])},
    )
    free = generator.generate(["the quick brown"])[0][0]
    stopped = generator.generate(["the quick brown"], stop=["<|end|>"])[0][0]
    assert free.completion_tokens == 12
    assert stopped.completion_tokens == 5 - len(ids) + 1
    assert stopped.finish_reason == "stop"
    assert free.text.startswith(stopped.text)


def test_stop_strings_option_is_cut_too(generator: TextGenerator) -> None:
    whole = generator.generate([PROMPTS[0]])[0][0].text
    stop = whole[5:8]
    (cut,) = generator.generate([PROMPTS[0]], stop_strings=[stop])[0]
    assert cut.text == whole[: whole.index(stop)]


def test_stream_pieces_join_to_the_answer(generator: TextGenerator) -> None:
    for prompt in PROMPTS:
        whole = generator.generate([prompt])[0][0]
        for stop in (None, [whole.text[7:10]]):
            expected = generator.generate([prompt], stop=stop)[0][0]
            *pieces, last = generator.stream(prompt, stop=stop)
            assert last == expected
            assert "".join(piece for piece in pieces if isinstance(piece, str)) == expected.text
            if stop is None:
                assert len(pieces) > 3, "token by token, not at once"


def test_pieces_arrive_before_the_end(generator: TextGenerator) -> None:
    """The first piece must be there while the model still runs."""
    running = threading.Event()
    held = threading.Event()
    original = generator.model.forward
    calls = 0

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 6:
            running.set()
            assert held.wait(30)
        return original(*args, **kwargs)

    generator.model.forward = forward
    try:
        stream = generator.stream(PROMPTS[0])
        assert next(stream)
        assert running.wait(30)
        held.set()
        assert isinstance(list(stream)[-1], Completion)
    finally:
        held.set()
        del generator.model.forward


def test_an_exception_in_the_thread_surfaces(
    generator: TextGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise FloatingPointError("layer 3 is broken")

    monkeypatch.setattr(generator.model, "forward", fail)
    with pytest.raises(FloatingPointError, match="layer 3 is broken"):
        list(generator.stream(PROMPTS[0]))


def test_closing_a_stream_ends_its_thread(generator: TextGenerator) -> None:
    before = threading.active_count()
    stream = generator.stream(PROMPTS[0], max_new_tokens=400)
    next(stream)
    assert threading.active_count() == before + 1
    stream.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("name", ["num_beams", "num_return_sequences"])
def test_stream_refuses_several_sequences(generator: TextGenerator, name: str) -> None:
    options = {"do_sample": True, name: 2}
    message = f"streaming needs {name}=1, got 2"
    with pytest.raises(InvalidArgument, match=message):
        generator.stream("a", **options)  # at once, not with the first piece
    with pytest.raises(InvalidArgument, match=message):
        generator.astream("a", **options)
    assert generator.can_stream
    assert not generator.with_options(options).can_stream


def test_beams_with_a_stop_text(generator: TextGenerator) -> None:
    prompt = PROMPTS[0]
    whole = plain(generator.model, generator.tokenizer, prompt, 12, num_beams=3)
    (beam,) = generator.generate([prompt], num_beams=3, max_new_tokens=12)[0]
    assert beam.text == whole
    stop = whole[3:6]
    (cut,) = generator.generate([prompt], stop=[stop], num_beams=3, max_new_tokens=12)[0]
    assert stop not in cut.text


def test_several_sequences_per_prompt(generator: TextGenerator) -> None:
    torch.manual_seed(0)
    groups = generator.generate(PROMPTS, temperature=50.0, num_return_sequences=3)
    assert [len(group) for group in groups] == [3, 3, 3]
    assert len({completion.text for completion in groups[0]}) > 1
    for group, prompt in zip(groups, PROMPTS, strict=True):
        assert group[0].prompt_tokens == len(generator.tokenizer(prompt)["input_ids"])


def test_calls_override_defaults(generator: TextGenerator) -> None:
    assert generator.generate(["a"])[0][0].completion_tokens == TOKENS
    assert generator.generate(["a"], max_new_tokens=3)[0][0].completion_tokens == 3
    # A total length is not beaten by the default number of new tokens.
    start = 1 if generator.is_encoder_decoder else len(generator.tokenizer("a")["input_ids"])
    completion = generator.generate(["a"], max_length=start + 5)[0][0]
    assert completion.completion_tokens == 5


def test_without_any_limit_256_tokens(causal: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    completion = TextGenerator(causal, tokenizer).generate(["a"], eos_token_id=None)[0][0]
    assert completion.completion_tokens <= 256
    assert completion.completion_tokens > 20 or completion.finish_reason == "stop"


def test_temperature_means_sampling(generator: TextGenerator) -> None:
    greedy = generator.generate(["a"])[0][0].text
    assert generator.generate(["a"], temperature=0)[0][0].text == greedy
    torch.manual_seed(0)
    hot = {generator.generate(["a"], temperature=50.0)[0][0].text for _ in range(3)}
    assert len(hot) > 1
    assert generator.generate(["a"], temperature=50.0, do_sample=False)[0][0].text == greedy


def test_end_token_ends_and_has_no_text(causal: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    generator = TextGenerator(causal, tokenizer, {"max_new_tokens": 12})
    inputs = tokenizer("the quick", return_tensors="pt")
    new = causal.generate(
        **{k: inputs[k] for k in ("input_ids", "attention_mask")}, max_new_tokens=12
    )
    new = new[0, inputs["input_ids"].shape[1] :].tolist()
    # Any token may be named as the end, a special one or not.
    end = next(i for i, token in enumerate(new) if i >= 3 and token not in new[:i])
    (completion,) = generator.generate(["the quick"], eos_token_id=new[end])[0]
    assert completion.finish_reason == "stop"
    assert completion.completion_tokens == end + 1
    assert completion.text == tokenizer.decode(
        new[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


def test_bos_is_not_doubled_and_starts_an_empty_prompt() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = build_tokenizer(bos=True)
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bos)]
    )
    generator = TextGenerator(build_causal(tokenizer), tokenizer, {"max_new_tokens": 3})
    plain_prompt, with_bos = generator.generate(["fox", "<s>fox"])
    assert with_bos == plain_prompt
    assert generator.generate([""])[0][0].prompt_tokens == 1


class Letters(LogitsProcessor):
    """No special tokens, and no bytes: whole letters, of whose text nothing is broken."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> Any:
        scores = scores.clone()
        scores[:, : 2 + 256] = -torch.inf
        return scores


def test_an_answer_goes_on_where_vocabularies_mark_words() -> None:
    """prompt + answer is what the tokenizer makes of their tokens, with the blank between them."""
    tokenizer = build_metaspace_tokenizer()
    generator = TextGenerator(build_causal(tokenizer), tokenizer)
    prompt = "the ox"
    options = {"max_new_tokens": 30, "num_return_sequences": 3, "seed": 3, "do_sample": True}
    options |= {"logits_processor": [Letters()], "logprobs": 1, "temperature": 5.0}
    (answers,) = generator.generate([prompt], **options)
    begun = []
    for answer in answers:
        ids = [*tokenizer(prompt)["input_ids"], *answer.token_ids]
        assert prompt + answer.text == tokenizer.decode(ids)
        begun.append(answer.text[0])
        assert answer.logprobs is not None
        assert "".join(entry.token for entry in answer.logprobs) == answer.text
    assert " " in begun, "or this test shows nothing"
    options["num_return_sequences"] = 1
    del options["logprobs"]
    pieces = [piece for piece in generator.stream(prompt, **options) if isinstance(piece, str)]
    assert "".join(pieces) == answers[0].text
    # An answer to a chat is a text of its own.
    chat = ChatIds(tokenizer(prompt)["input_ids"])
    own = generator.generate([chat], **options)[0][0]
    assert own.token_ids == answers[0].token_ids
    assert own.text == answers[0].text.removeprefix(" ")


def test_empty_prompt_without_bos_is_refused(
    causal: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    generator = TextGenerator(causal, tokenizer)
    with pytest.raises(ValueError, match=r"prompt 1 \(''\) has no tokens"):
        generator.generate(["a", ""])
    with pytest.raises(TypeError, match="prompt 0 is a int"):
        generator.generate([3])
    assert generator.generate([]) == []


def test_unknown_arguments_are_named_with_the_nearest(generator: TextGenerator) -> None:
    message = r"'max_new_token' \(did you mean 'max_new_tokens'\?\), 'zzzzqqq'\."
    with pytest.raises(ValueError, match=message):
        generator.generate(["a"], max_new_token=3, zzzzqqq=1)
    with pytest.raises(ValueError, match="did you mean 'temperature'"):
        TextGenerator(generator.model, generator.tokenizer, {"temprature": 0.5})
    with pytest.raises(ValueError, match="return_dict_in_generate"):
        generator.generate(["a"], return_dict_in_generate=True)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"seed": 2**63}, r"seed must be an integer from 0 to 2\*\*63 - 1"),
        ({"seed": True}, "seed must be an integer"),
        ({"temperature": float("nan")}, "temperature must be a number, got nan"),
        ({"temperature": "hot"}, "temperature must be a number, got 'hot'"),
        ({"temperature": -1}, "temperature must be at least 0, got -1"),
        ({"max_time": 0}, "max_time must be above 0, got 0"),
        ({"num_beams": "many"}, "num_beams must be an integer of at least 1, got 'many'"),
        ({"top_k": 2.5}, r"top_k must be an integer of at least 0, got 2\.5"),
        ({"max_length": True}, "max_length must be an integer"),
        ({"generation_config": {"max_new_tokens": 3}}, r"GenerationConfig\(\*\*fields\)"),
        ({"logprobs": 10**6}, "logprobs=1000000: the model's vocabulary has [0-9]+ tokens"),
    ],
)
def test_values_out_of_range(
    generator: TextGenerator, option: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        generator.generate(["a"], **option)
    with pytest.raises(InvalidArgument, match=message):
        list(generator.stream("a", **option))


def test_the_largest_values(generator: TextGenerator) -> None:
    vocabulary = generator.model.config.vocab_size
    ((answer,),) = generator.generate(
        ["a"], do_sample=True, seed=2**63 - 1, logprobs=vocabulary, max_new_tokens=2
    )
    assert answer.logprobs is not None
    assert [len(entry.top) for entry in answer.logprobs] == [vocabulary] * 2


@pytest.mark.parametrize("value", [0, -1, "ten", 2.5])
def test_wrong_values_fail_when_constructed(generator: TextGenerator, value: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"max_new_tokens"):
        TextGenerator(generator.model, generator.tokenizer, {"max_new_tokens": value})


def test_wrong_objects_are_refused(causal: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(TypeError, match=r"Linear without generate\(\)"):
        TextGenerator(torch.nn.Linear(2, 2), tokenizer)
    with pytest.raises(TypeError, match=r"NoneType without decode\(\)"):
        TextGenerator(causal, None)
