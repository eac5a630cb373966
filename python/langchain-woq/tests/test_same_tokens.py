# SPDX-License-Identifier: Apache-2.0
"""One path: model.generate, woq.pipeline and LangChain yield the same tokens on SmolLM2."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import woq

from langchain_woq import ChatWoq, WeightOnlyQuantPipeline

QUESTION = [{"role": "user", "content": "Name three animals that live in the sea."}]
SETTINGS = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "temperature": 0.9, "top_p": 0.9, "top_k": 50},
}
TOKENS = 24
SEED = 20


@pytest.mark.parametrize("settings", list(SETTINGS))
def test_same_tokens(smollm2_int8: tuple[Any, Any], settings: str) -> None:
    model, tokenizer = smollm2_int8
    options = SETTINGS[settings]
    ids = tokenizer.apply_chat_template(
        QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    torch.manual_seed(SEED)
    output = model.generate(ids, max_new_tokens=TOKENS, **options)
    expected = output[0, ids.shape[1] :].tolist()
    text = tokenizer.decode(expected, skip_special_tokens=True)
    assert len(expected) > 8

    pipe = woq.pipeline("text-generation", model, tokenizer, max_new_tokens=TOKENS, **options)
    (record,) = pipe(QUESTION, return_full_text=False, return_details=True, seed=SEED)
    assert record["details"]["token_ids"] == expected
    assert record["generated_text"] == text
    assert "".join(pipe.stream(QUESTION, seed=SEED)) == text

    chat = ChatWoq(
        model=model,
        tokenizer=tokenizer,
        max_tokens=TOKENS,
        seed=SEED,
        generation_kwargs=options,
        logprobs=True,
    )
    message = chat.invoke(QUESTION)
    logprobs = message.response_metadata["logprobs"]["content"]
    assert [entry["token_id"] for entry in logprobs] == expected
    assert message.content == text
    assert "".join(chunk.content for chunk in chat.stream(QUESTION)) == text

    llm = WeightOnlyQuantPipeline(pipeline=pipe, pipeline_kwargs={"seed": SEED, "logprobs": True})
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, tokenize=False)
    (generation,) = llm.generate([prompt]).generations[0]
    logprobs = generation.generation_info["logprobs"]["content"]
    assert [entry["token_id"] for entry in logprobs] == expected
    assert llm.invoke(prompt) == text
