# SPDX-License-Identifier: Apache-2.0
"""LangChain's page on weight-only quantization, written for ITREX, runs: its code, with the model's
id redirected to tests/models/tiny-t5, on langchain_community's own class, unmodified, and on
langchain_woq's."""

from __future__ import annotations

import warnings

import pytest
import torch
from model_support import TINY_T5, letters_checkpoint

import woq
from woq.compat import itrex

pytest.importorskip("transformers")
pytest.importorskip("langchain_core")

MODULES = {
    "community": "langchain_community.llms.weight_only_quantization",
    "woq": "langchain_woq",
}

LOADING = """
from intel_extension_for_transformers.transformers import WeightOnlyQuantConfig
from {module} import WeightOnlyQuantPipeline

conf = WeightOnlyQuantConfig(weight_dtype="nf4")
hf = WeightOnlyQuantPipeline.from_model_id(
    model_id="google/flan-t5-large",
    task="text2text-generation",
    quantization_config=conf,
    pipeline_kwargs={{"max_new_tokens": 10}},
)
"""

PASSING_A_PIPELINE = """
from intel_extension_for_transformers.transformers import AutoModelForSeq2SeqLM
from transformers import AutoTokenizer, pipeline
from {module} import WeightOnlyQuantPipeline

model_id = "google/flan-t5-large"
tokenizer = AutoTokenizer.from_pretrained(model_id)
model = AutoModelForSeq2SeqLM.from_pretrained(model_id)
pipe = pipeline(
    "text2text-generation", model=model, tokenizer=tokenizer, max_new_tokens=10
)
hf = WeightOnlyQuantPipeline(pipeline=pipe)
"""

CHAIN = '''
from langchain_core.prompts import PromptTemplate

template = """Question: {{question}}

Answer: Let's think step by step."""
prompt = PromptTemplate.from_template(template)

chain = prompt | hf

question = "What is electroencephalography?"

print(chain.invoke({{"question": question}}))
'''

CPU = """
conf = WeightOnlyQuantConfig(weight_dtype="nf4")
llm = WeightOnlyQuantPipeline.from_model_id(
    model_id="google/flan-t5-large",
    task="text2text-generation",
    quantization_config=conf,
    device={device},
    pipeline_kwargs={{"max_new_tokens": 10}},
)
"""

BATCH = """
chain = prompt | llm.bind(stop=["\\n\\n"])

questions = []
for i in range(4):
    questions.append({{"question": f"What is the number {{i}} in french?"}})

answers = chain.batch(questions)
for answer in answers:
    print(answer)
"""


@pytest.fixture(params=list(MODULES))
def module(request):
    """The module that has the class; ITREX's imports work meanwhile."""
    if request.param == "community":
        pytest.importorskip("langchain_community")
    else:
        pytest.importorskip("langchain_woq")
    itrex.install()
    with warnings.catch_warnings():
        # langchain_community says that it is archived.
        warnings.simplefilter("ignore", DeprecationWarning)
        yield MODULES[request.param]
    itrex.uninstall()


@pytest.fixture
def page(module, capsys):
    """Runs blocks of the page one after the other, as a notebook does; gives what they print."""
    names = {}

    def run(*blocks, **fields):
        for block in blocks:
            code = block.format(module=module, **fields)
            exec(code.replace("google/flan-t5-large", str(TINY_T5)), names)
        return capsys.readouterr().out.splitlines()

    run.names = names
    return run


def weight_dtypes(model):
    return {m.scheme["dtype"] for m in model.modules() if isinstance(m, woq.WeightOnlyLinear)}


def test_loading_and_chain(page):
    printed = page(LOADING, CHAIN)
    assert len(printed) == 1
    assert weight_dtypes(page.names["hf"].pipeline.model) == {"nf4"}


def test_passing_a_pipeline(page):
    page(PASSING_A_PIPELINE, CHAIN)
    hf = page.names["hf"]
    assert weight_dtypes(hf.pipeline.model) == set()  # the page quantizes nothing here
    assert hf.invoke("What is the number 80 in french?") == "quatre-vingts"


@pytest.mark.parametrize("device", ['"cpu"', "-1"])
def test_devices_and_batch(device, page):
    assert page(LOADING, CHAIN, CPU, BATCH, device=device)[1:] == ["zéro", "un", "deux", "trois"]


@pytest.mark.parametrize("task", ["text2text-generation", "summarization"])
@pytest.mark.parametrize(
    "arguments",
    [{"config": "instance"}, {"config": "class"}, {"load_in_4bit": True}, {"load_in_8bit": True}],
    ids=str,
)
def test_tasks_and_ways_to_quantize(task, arguments, page):
    page(LOADING)
    configuration = page.names["WeightOnlyQuantConfig"]
    arguments = dict(arguments)
    given = {None: None, "instance": configuration(), "class": configuration}[
        arguments.pop("config", None)
    ]
    llm = page.names["WeightOnlyQuantPipeline"].from_model_id(
        model_id=str(TINY_T5),
        task=task,
        quantization_config=given,
        pipeline_kwargs={"max_new_tokens": 10},
        **arguments,
    )
    assert weight_dtypes(llm.pipeline.model) == {"int8" if "load_in_8bit" in arguments else "nf4"}
    prompts = ["What is the number 71 in french?", "translate English to French: ninety-nine"]
    assert llm.batch(prompts) == ["soixante et onze", "quatre-vingt-dix-neuf"]
    assert llm.invoke(prompts[0], stop=[" et"]) == "soixante"


@pytest.mark.parametrize("compute_dtype", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("weight_dtype", ["int8", "int4_fullrange", "int4_clip", "nf4", "fp4_e2m1"])
def test_data_types(weight_dtype, compute_dtype, page):
    page(LOADING)
    llm = page.names["WeightOnlyQuantPipeline"].from_model_id(
        model_id=str(TINY_T5),
        task="text2text-generation",
        quantization_config=page.names["WeightOnlyQuantConfig"](
            weight_dtype=weight_dtype, compute_dtype=compute_dtype
        ),
        pipeline_kwargs={"max_new_tokens": 10},
    )
    assert weight_dtypes(llm.pipeline.model) == {weight_dtype}
    assert llm.invoke("What is the number 3 in french?") == "trois"


@pytest.mark.parametrize("algorithm", ["RTN", "AWQ", "TEQ", "GPTQ", "AUTOROUND"])
def test_algorithms(algorithm, page):
    page(LOADING)
    texts = [f"What is the number {number} in french?" for number in range(0, 4000, 13)]
    config = page.names["WeightOnlyQuantConfig"](
        weight_dtype="int4_clip",
        algorithm=algorithm,
        algorithm_args=None if algorithm == "RTN" else {"nsamples": 8, "seqlen": 64},
        calib_dataset=texts,
    )
    if algorithm in ("TEQ", "AUTOROUND"):
        config.algorithm_args["iters"] = 3
    llm = page.names["WeightOnlyQuantPipeline"].from_model_id(
        model_id=str(TINY_T5),
        task="text2text-generation",
        quantization_config=config,
        pipeline_kwargs={"max_new_tokens": 10},
    )
    assert llm.pipeline.model.config.quantization_config.algorithm == algorithm
    assert weight_dtypes(llm.pipeline.model) == {"int4_clip"}
    assert llm.invoke("What is the number 3 in french?") == "trois"


def test_text_generation(page, tmp_path):
    """The task that transformers' own pipeline() still has: the same tokens as model.generate."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    letters_checkpoint(tmp_path)
    page(LOADING)
    config = page.names["WeightOnlyQuantConfig"](weight_dtype="int8")
    llm = page.names["WeightOnlyQuantPipeline"].from_model_id(
        model_id=str(tmp_path),
        task="text-generation",
        quantization_config=config,
        pipeline_kwargs={"max_new_tokens": 12, "do_sample": False},
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config)
    prompt = "the cat sat"
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        out = model.generate(ids, max_new_tokens=12, do_sample=False)
    text = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    if page.names["WeightOnlyQuantPipeline"].__module__.startswith("langchain_woq"):
        # Behind the prompt, where the community's class joins "the cat sat" and "on" to "saton".
        text = tokenizer.decode(out[0], skip_special_tokens=True).removeprefix(
            tokenizer.decode(ids[0])
        )
        assert text.startswith(" ")
    assert weight_dtypes(llm.pipeline.model) == {"int8"}
    assert llm.invoke(prompt) == text
    assert text
    # The class's docstring hands in transformers' own pipeline.
    from transformers import pipeline

    handed_in = page.names["WeightOnlyQuantPipeline"](
        pipeline=pipeline(
            "text-generation",
            model=model,
            tokenizer=tokenizer,
            max_new_tokens=12,
            do_sample=False,
        )
    )
    assert handed_in.invoke(prompt) == text
    assert handed_in.invoke(prompt, stop=[text[3]]) == text[: text.index(text[3])]


def test_a_gpu_is_refused(page):
    page(LOADING)
    with pytest.raises(ValueError, match=r"GPU|CPU"):
        page.names["WeightOnlyQuantPipeline"].from_model_id(
            model_id=str(TINY_T5), task="text2text-generation", device=0
        )
