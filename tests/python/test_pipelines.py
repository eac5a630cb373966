# SPDX-License-Identifier: Apache-2.0
"""woq.pipeline: inputs, records, tasks, and what it refuses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast
from transformers import pipeline as transformers_pipeline

import woq
from woq import InvalidArgument
from woq.generation import Completion
from woq.generation.pipeline import TextPipeline

pytest_plugins = ["tiny_models"]

PROMPTS = ["the quick brown", "a", "need several bytes each, and then some more of them"]
CHAT = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "the fox?"}]
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture
def chatty(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture
def pipe(causal: Any, chatty: PreTrainedTokenizerFast) -> TextPipeline:
    return woq.pipeline("text-generation", causal, chatty, max_new_tokens=12)


@pytest.fixture
def seq2seq(t5: Any, tokenizer: PreTrainedTokenizerFast) -> TextPipeline:
    return woq.pipeline("text2text-generation", t5, tokenizer, max_new_tokens=12)


def new_text(pipe: TextPipeline, prompt: str, **options: Any) -> str:
    return pipe.generator.generate([prompt], **options)[0][0].text


# Text generation


@pytest.mark.parametrize("full", [True, False])
def test_records_are_those_of_transformers(pipe: TextPipeline, full: bool) -> None:
    theirs = transformers_pipeline(
        "text-generation",
        model=pipe.model,
        tokenizer=pipe.tokenizer,
        device="cpu",
        max_new_tokens=12,
        do_sample=False,
    )
    for inputs in (PROMPTS[0], PROMPTS, CHAT, [CHAT, CHAT[1:]]):
        assert pipe(inputs, return_full_text=full) == theirs(inputs, return_full_text=full)
    prefilled = [*CHAT, {"role": "assistant", "content": "brown"}]
    assert pipe(prefilled, return_full_text=full) == theirs(prefilled, return_full_text=full)
    assert pipe(PROMPTS[0]) == theirs(PROMPTS[0]), "the full text is the default"


def test_transformers_pipeline_takes_a_woq_model(
    causal: Any, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    causal.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = woq.WeightOnlyQuantConfig(weight_dtype="nf4")
    ours = woq.pipeline("text-generation", tmp_path, quantization_config=config, max_new_tokens=12)
    assert any(isinstance(m, woq.WeightOnlyLinear) for m in ours.model.modules())
    theirs = transformers_pipeline(
        "text-generation", model=ours.model, tokenizer=tokenizer, max_new_tokens=12, do_sample=False
    )
    assert str(theirs.device) == "cpu"
    assert ours(PROMPTS) == theirs(PROMPTS)


@pytest.mark.parametrize(("argument", "dtype"), [("load_in_4bit", "nf4"), ("load_in_8bit", "int8")])
def test_models_by_name(
    t5: Any, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, argument: str, dtype: str
) -> None:
    t5.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    pipe = woq.pipeline(
        "summarization",
        model=str(tmp_path),
        dtype=torch.float32,
        device=-1,
        max_new_tokens=5,
        **{argument: True},
    )
    layers = [m for m in pipe.model.modules() if isinstance(m, woq.WeightOnlyLinear)]
    assert {layer.scheme["dtype"] for layer in layers} == {dtype}
    again = woq.pipeline("summarization", pipe.model, tokenizer=tmp_path, max_new_tokens=5)
    assert again("the fox") == pipe("the fox")


def test_attributes_of_a_pipeline(pipe: TextPipeline, causal: Any) -> None:
    assert pipe.task == "text-generation"
    assert pipe.model is causal
    assert pipe.tokenizer.eos_token == "</s>"
    assert pipe.device == torch.device("cpu")


def test_several_answers_and_details(pipe: TextPipeline) -> None:
    several = pipe(PROMPTS[:2], num_return_sequences=3, temperature=30.0, seed=1)
    assert [len(records) for records in several] == [3, 3]
    assert len({record["generated_text"] for record in several[0]}) == 3
    (record,) = pipe(PROMPTS[0], return_details=True, logprobs=2)
    completion = pipe.generator.generate([PROMPTS[0]], logprobs=2)[0][0]
    details = record["details"]
    for name in ("finish_reason", "prompt_tokens", "completion_tokens"):
        assert details[name] == getattr(completion, name)
    assert details["token_ids"] == list(completion.token_ids)
    assert 0 < details["time_to_first_token"] <= details["seconds"]
    assert details["tokens_per_second"] > 0
    assert [len(entry["top_logprobs"]) for entry in details["logprobs"]] == [2] * 12


def test_lists_go_through_the_model_together(
    pipe: TextPipeline, widths: Callable[[Any], list[tuple[int, ...]]]
) -> None:
    shapes = widths(pipe.model)
    pipe(PROMPTS)
    pipe(PROMPTS, batch_size=2)
    longest = len(pipe.tokenizer(PROMPTS[2])["input_ids"])
    assert [rows for rows, _ in shapes] == [3, 2, 1]
    assert shapes[0] == (3, longest)
    assert pipe([]) == []


def test_stop_and_stream(pipe: TextPipeline) -> None:
    whole = new_text(pipe, PROMPTS[0])
    stop = whole[5:8]
    expected = whole[: whole.index(stop)]
    for name in ("stop", "stop_strings", "stop_sequence"):
        assert pipe(PROMPTS[0], return_full_text=False, **{name: stop}) == [
            {"generated_text": expected}
        ]
        assert "".join(pipe.stream(PROMPTS[0], **{name: [stop]})) == expected
    pieces = list(pipe.stream(PROMPTS[0]))
    assert len(pieces) > 3
    assert "".join(pieces) == whole
    *_, last = pipe.stream(CHAT, return_details=True)
    assert isinstance(last, Completion)
    assert last.text == pipe(CHAT, return_full_text=False)[0]["generated_text"]


# Encoder-decoder tasks


@pytest.mark.parametrize(
    ("task", "key"),
    [
        ("text2text-generation", "generated_text"),
        ("summarization", "summary_text"),
        ("translation", "translation_text"),
        ("translation_en_to_de", "translation_text"),
    ],
)
def test_encoder_decoder_tasks(
    seq2seq: TextPipeline, t5: Any, tokenizer: PreTrainedTokenizerFast, task: str, key: str
) -> None:
    pipe = woq.pipeline(task, t5, tokenizer, max_new_tokens=12)
    texts = [new_text(seq2seq, prompt) for prompt in PROMPTS]
    assert pipe(PROMPTS[0]) == [{key: texts[0]}]
    assert pipe(PROMPTS) == [{key: text} for text in texts]
    assert pipe(PROMPTS[:1], num_return_sequences=2, num_beams=2)[0][1].keys() == {key}
    assert "".join(pipe.stream(PROMPTS[0])) == texts[0]


def test_the_models_parameters_for_a_task(
    t5: Any, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = {
        "summarization": {"prefix": "fox: ", "max_length": 9, "num_beams": 2},
        "translation_en_to_de": {"prefix": "dog: "},
    }
    monkeypatch.setattr(t5.config, "task_specific_params", params, raising=False)
    plain = woq.pipeline("text2text-generation", t5, tokenizer)
    pipe = woq.pipeline("summarization", t5, tokenizer)
    expected = new_text(plain, "fox: a", max_length=9, num_beams=2)
    assert pipe("a") == [{"summary_text": expected}]
    # The caller's arguments win.
    assert pipe("a", num_beams=1, max_new_tokens=3)[0]["summary_text"] == new_text(
        plain, "fox: a", max_new_tokens=3
    )
    with pytest.raises(InvalidArgument, match="streaming needs num_beams=1, got 2"):
        list(pipe.stream("a"))
    pipe = woq.pipeline("translation_en_to_de", t5, tokenizer, max_new_tokens=4)
    assert pipe("a") == [{"translation_text": new_text(plain, "dog: a", max_new_tokens=4)}]
    assert new_text(plain, "dog: a") != new_text(plain, "a")


def test_truncation(seq2seq: TextPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seq2seq.tokenizer, "model_max_length", 4)
    counts = [
        seq2seq(PROMPTS[2], truncation=cut, return_details=True)[0]["details"]["prompt_tokens"]
        for cut in (True, False)
    ]
    assert counts[0] == 4 < counts[1]


def test_truncation_without_a_limit_of_the_tokenizer(
    pipe: TextPipeline, seq2seq: TextPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in (pipe, seq2seq):
        monkeypatch.setattr(each.tokenizer, "model_max_length", int(1e30))
    monkeypatch.setattr(pipe.model.config, "max_position_embeddings", 5)
    assert len(pipe.generator.encode(PROMPTS[2], truncation=True, max_new_tokens=1)) == 4
    with pytest.raises(InvalidArgument, match=r"set tokenizer\.model_max_length"):  # T5 has none
        seq2seq(PROMPTS[2], truncation=True)


def test_languages_with_codes(t5: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    """As NLLB has them: the source's code begins the input, the target's is forced as first."""
    from tokenizers.processors import TemplateProcessing

    class Coded(PreTrainedTokenizerFast):
        @property
        def src_lang(self) -> str:
            return self._code

        @src_lang.setter
        def src_lang(self, code: str) -> None:
            self._code = code
            token = (code, self.convert_tokens_to_ids(code))
            self.backend_tokenizer.post_processor = TemplateProcessing(
                single=f"{code} $A", special_tokens=[token]
            )

    coded = Coded(tokenizer_object=tokenizer.backend_tokenizer, eos_token="</s>", pad_token="<pad>")
    coded.src_lang = "<s>"
    ids = {code: coded.convert_tokens_to_ids(code) for code in ("<s>", "<|end|>", "e")}
    pipe = woq.pipeline(
        "translation", t5, coded, src_lang="<|end|>", tgt_lang="e", max_new_tokens=4
    )
    assert pipe.generator.encode("a")[0] == ids["<|end|>"]
    (record,) = pipe("a", return_details=True)
    assert record["details"]["token_ids"][0] == ids["e"]
    assert coded.src_lang == "<s>", "the caller's tokenizer is left as it was"
    assert coded("a")["input_ids"][0] == ids["<s>"]
    with pytest.raises(InvalidArgument, match=r"language codes: pass src_lang= and tgt_lang="):
        woq.pipeline("translation", t5, coded)
    with pytest.raises(InvalidArgument, match="tgt_lang='xx' is none of the language codes"):
        woq.pipeline("translation", t5, coded, src_lang="<s>", tgt_lang="xx")
    with pytest.raises(InvalidArgument, match="for tokenizers with language codes"):
        woq.pipeline("translation", t5, tokenizer, src_lang="en", tgt_lang="de")


# What is refused


def test_unknown_tasks_and_models_that_do_not_fit(
    causal: Any, t5: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(InvalidArgument, match=r"unknown task 'summarisation'; known are 'text-gen"):
        woq.pipeline("summarisation", "nowhere")
    for task in ("summarization", "translation", "text2text-generation"):
        with pytest.raises(
            InvalidArgument,
            match=f"'{task}' needs an encoder-decoder .* LlamaForCausalLM is a decoder-only one: "
            "use task 'text-generation'",
        ):
            woq.pipeline(task, causal, tokenizer)
    with pytest.raises(InvalidArgument, match="T5ForConditionalGeneration is an encoder-decoder"):
        woq.pipeline("text-generation", t5, tokenizer)
    with pytest.raises(InvalidArgument, match="model is missing"):
        woq.pipeline("text-generation")


def test_refusals_before_loading(causal: Any, tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"tokenizer is missing: .*tokenizer=AutoTokenizer"):
        woq.pipeline("text-generation", causal)
    with pytest.raises(
        InvalidArgument, match=r"load_in_4bit is for loading, but model is a loaded"
    ):
        woq.pipeline("text-generation", causal, tokenizer, load_in_4bit=True)
    with pytest.raises(InvalidArgument, match="exclude each other"):
        woq.pipeline("text-generation", "nowhere", load_in_4bit=True, load_in_8bit=True)
    with pytest.raises(InvalidArgument, match="did you mean 'max_new_tokens'"):
        woq.pipeline("text-generation", "nowhere", max_newtokens=3)
    with pytest.raises(InvalidArgument, match="device='cuda' is not supported"):
        woq.pipeline("text-generation", causal, tokenizer, device="cuda")
    with pytest.raises(InvalidArgument, match="batch_size must be at least 1"):
        woq.pipeline("text-generation", causal, tokenizer, batch_size=0)
    causal.save_pretrained(tmp_path)
    with pytest.raises(InvalidArgument, match=f"no tokenizer could be loaded from '{tmp_path}'"):
        woq.pipeline("text-generation", tmp_path)


def test_names_of_models_that_do_not_fit(
    causal: Any, t5: Any, tokenizer: Any, tmp_path: Path
) -> None:
    for model, name in ((causal, "decoder"), (t5, "both")):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    with pytest.raises(InvalidArgument, match=r"needs a decoder-only model, and .*both is an enc"):
        woq.pipeline("text-generation", tmp_path / "both")
    with pytest.raises(InvalidArgument, match=r"an encoder-decoder model .*decoder is a dec"):
        woq.pipeline("summarization", tmp_path / "decoder")
    with pytest.raises(InvalidArgument, match=r"cannot be loaded with foo: .*'foo'"):
        woq.pipeline("text-generation", tmp_path / "decoder", model_kwargs={"foo": 1})
    with pytest.raises(InvalidArgument, match=r"WeightOnlyQuantConfig\(weight_dtype='nf4'\)"):
        woq.pipeline("text-generation", tmp_path / "decoder", quantization_config="nf4")


@pytest.mark.parametrize("inputs", [None, 5, {"role": "user", "content": "a"}, b"a"])
def test_what_is_no_input(pipe: TextPipeline, seq2seq: TextPipeline, inputs: Any) -> None:
    with pytest.raises(TypeError, match="takes a string, or a chat: a list of messages, or a list"):
        pipe(inputs)
    with pytest.raises(TypeError, match="takes a string, or a list of them"):
        seq2seq(inputs)


def test_inputs_that_do_not_fit(pipe: TextPipeline, seq2seq: TextPipeline) -> None:
    with pytest.raises(InvalidArgument, match="a stream holds new text only"):
        pipe.stream("a", return_full_text=True)
    assert "".join(pipe.stream("a", return_full_text=False, max_new_tokens=2))
    with pytest.raises(TypeError, match=r"'text-generation' is a int; .*or a chat"):
        pipe([3])
    with pytest.raises(TypeError, match="chats are for 'text-generation'"):
        seq2seq(CHAT)
    with pytest.raises(InvalidArgument, match="return_full_text is for 'text-generation'"):
        seq2seq("a", return_full_text=True)
    with pytest.raises(InvalidArgument, match="stop must hold non-empty strings"):
        pipe("a", stop=[""])
    with pytest.raises(InvalidArgument, match="unknown generation argument: 'return_text'"):
        pipe("a", return_text=True)


def test_content_in_parts_is_their_text(pipe: TextPipeline) -> None:
    whole = [{"role": "user", "content": "the fox"}, {"role": "assistant", "content": "a"}]
    parts = [
        {"role": "user", "content": [{"type": "text", "text": "the "}, "fox"]},
        {"role": "assistant", "content": [{"type": "text", "text": "a"}]},
    ]
    for count in (1, 2):
        plain = pipe(whole[:count])[0]["generated_text"]
        found = pipe(parts[:count])[0]["generated_text"]
        texts = [
            "".join(part if isinstance(part, str) else part["text"] for part in message["content"])
            for message in found
        ]
        assert texts == [message["content"] for message in plain]
    assert isinstance(parts[1]["content"], list)
    assert len(parts[1]["content"]) == 1  # the caller's own is left alone


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ([{"type": "image", "url": "a.png"}], "part of type 'image'"),
        ([{"type": "text", "text": "a"}, 3], "part of type 'int'"),
        ([{"text": "a"}], "part of type None"),
        ({"type": "text", "text": "a"}, "is a dict"),
        (3, "is a int"),
    ],
)
def test_content_that_is_no_text(pipe: TextPipeline, content: Any, named: str) -> None:
    with pytest.raises(InvalidArgument, match=f"message 0.*{named}"):
        pipe([{"role": "user", "content": content}])


def test_chats_need_a_template(
    causal: Any, tokenizer: PreTrainedTokenizerFast, chatty: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(InvalidArgument, match="the tokenizer has no chat template"):
        woq.pipeline("text-generation", causal, tokenizer)(CHAT)
    with pytest.raises(InvalidArgument, match=r"message 1 \(.*\) has no content"):
        woq.pipeline("text-generation", causal, chatty)([*CHAT[:1], {"role": "user"}])
    chatty.chat_template = "{{ raise_exception('only users and assistants') }}"
    with pytest.raises(InvalidArgument, match="roles system, user: only users and assistants"):
        woq.pipeline("text-generation", causal, chatty)(CHAT)


@pytest.mark.parametrize("name", ["/nowhere/model", "./model", "a/b/c", "model.txt"])
def test_paths_that_lead_nowhere(name: str, causal: Any, tmp_path: Path) -> None:
    if name == "model.txt":
        name = str(tmp_path / name)
        Path(name).write_text("no model")
    expected = (
        "neither a checkpoint" if name.endswith(".txt") else f"no such folder or file: {name}"
    )
    with pytest.raises(InvalidArgument, match=expected):
        woq.pipeline("text-generation", name)
    with pytest.raises(InvalidArgument, match=expected):
        woq.pipeline("text-generation", causal, name)
