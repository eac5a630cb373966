# SPDX-License-Identifier: Apache-2.0
"""woq.compat.ctransformers: scripts for ctransformers run unchanged, on packed GGUF files."""

from __future__ import annotations

import importlib
import json
import sys

import pytest
import torch
from foreign_support import GPTQ, gptq_layer, write_checkpoint
from gguf_support import build, write
from model_support import letters_checkpoint

import woq
from woq import InvalidArgument, Unsupported
from woq.compat import _arguments, ctransformers

PROMPT = "the quick brown fox"


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    ctransformers.uninstall()
    _arguments._said.clear()
    assert not [name for name in sys.modules if name.partition(".")[0] == "ctransformers"]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "letters.Q4_0.gguf"
    model = build("llama_256_tied")
    with torch.no_grad():  # answers that depend on the text, and letters only
        model.model.embed_tokens.weight.mul_(3)
    write(model, path, "llama", "Q4_0")
    return path


@pytest.fixture
def library():
    ctransformers.install()
    return importlib.import_module("ctransformers")


@pytest.fixture
def llm(library, file):
    return library.AutoModelForCausalLM.from_pretrained(str(file), model_type="llama")


def test_the_readmes_scripts(file, tmp_path, monkeypatch, capsys):
    """In our words, with a local file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.gguf").symlink_to(file)
    ctransformers.install()
    script = """
from ctransformers import AutoModelForCausalLM

llm = AutoModelForCausalLM.from_pretrained("model.gguf", model_type="llama", gpu_layers=50)
answer = llm("ai is going to", max_new_tokens=6, seed=3)
pieces = []
for text in llm("ai is going to", max_new_tokens=6, seed=3, stream=True):
    print(text, end="", flush=True)
    pieces.append(text)
tokens = llm.tokenize("ai is going to")
letters = ""
for token in llm.generate(tokens, seed=3):
    letters += llm.detokenize(token)
    if len(letters) >= len(answer):
        break
same = AutoModelForCausalLM.from_pretrained(".", model_file="model.gguf", temperature=0)
"""
    seen: dict[str, object] = {}
    exec(script, seen)
    assert seen["answer"]
    assert "".join(seen["pieces"]) == seen["answer"] == seen["letters"] == capsys.readouterr().out
    assert len(seen["pieces"]) > 1
    assert seen["same"].config.temperature == 0


def test_as_a_transformers_model(library, file, caplog):
    from transformers import pipeline

    model = library.AutoModelForCausalLM.from_pretrained(str(file), model_type="llama", hf=True)
    tokenizer = library.AutoTokenizer.from_pretrained(model)
    assert any(isinstance(module, woq.WeightOnlyLinear) for module in model.modules())
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
    text = pipe(PROMPT, max_new_tokens=6, do_sample=False)[0]["generated_text"]
    assert text.startswith(PROMPT)
    assert len(text) > len(PROMPT)
    with pytest.raises(InvalidArgument, match="loaded with hf=True, got str"):
        library.AutoTokenizer.from_pretrained("gpt2")


def test_greedy_answers_are_transformers_own(llm, library, file):
    model = woq.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    ids = torch.tensor([llm.tokenize(PROMPT)])
    with torch.no_grad():
        out = model.generate(ids, max_new_tokens=12, do_sample=False, repetition_penalty=1.3)
    tokens = []
    for token in llm.generate(ids[0].tolist(), temperature=0, repetition_penalty=1.3):
        tokens.append(token)
        if len(tokens) == 12:
            break
    assert tokens == out[0, ids.shape[1] :].tolist()[: len(tokens)]


def test_the_low_level_methods(llm):
    ids = llm.tokenize(PROMPT)
    assert ids == [llm.bos_token_id, *llm.tokenize(PROMPT, add_bos_token=False)]
    assert llm.detokenize(ids) == PROMPT
    assert llm.detokenize(ids, decode=False) == PROMPT.encode()
    assert llm.is_eos_token(llm.eos_token_id)
    assert not llm.is_eos_token(ids[1])
    assert (llm.vocab_size, llm.context_length) == (128, 256)
    assert llm.logits == []
    llm.eval(ids)
    whole = llm.logits
    assert len(whole) == 128
    llm.reset()
    llm.eval(ids[:5], batch_size=2, threads=1)
    llm.eval(ids[5:])
    torch.testing.assert_close(torch.tensor(llm.logits), torch.tensor(whole), rtol=1e-4, atol=1e-4)
    assert llm.sample(temperature=0, repetition_penalty=1) == max(range(128), key=whole.__getitem__)
    assert llm.sample(top_k=1) == llm.sample(top_p=0) == llm.sample(temperature=0)
    embedding = llm.embed(PROMPT)
    assert len(embedding) == 256
    assert llm.embed(ids) == embedding == llm.embeddings


def test_sampling(llm):
    """The shares of many draws are those of the softmax over what is left, here computed anew."""
    llm.eval(llm.tokenize(PROMPT))
    logits = torch.tensor(llm.logits)
    counts = torch.zeros(128)
    for seed in range(1500):
        counts[
            llm.sample(top_k=4, top_p=1.0, temperature=2.0, repetition_penalty=1, seed=seed)
        ] += 1
    best = logits.topk(4).indices
    expected = torch.softmax(logits[best] / 2, 0)
    assert counts.nonzero().flatten().tolist() == sorted(best.tolist())
    # Three standard deviations of a share of 1,500 draws are at most 0.039.
    torch.testing.assert_close(counts[best] / 1500, expected, rtol=0, atol=0.039)
    one = [llm.sample(seed=5) for _ in range(3)]
    assert len(set(one)) == 1


def test_a_penalty_takes_the_last_tokens_only(llm):
    ids = llm.tokenize(PROMPT)
    llm.eval(ids)
    logits = torch.tensor(llm.logits)
    first = int(logits[ids].argmax())
    best = ids[first]
    changed = logits.clone()
    last = sorted(set(ids[-3:]))
    changed[last] = torch.where(changed[last] > 0, changed[last] / 50, changed[last] * 50)
    options = {"temperature": 0, "repetition_penalty": 50.0}
    assert llm.sample(last_n_tokens=3, **options) == int(changed.argmax())
    assert llm.sample(last_n_tokens=0, **options) == int(logits.argmax())
    assert best in ids


def test_stops(llm):
    whole = llm(PROMPT, max_new_tokens=30, temperature=0)
    stop = whole[7:10]
    cut = whole[: whole.find(stop)]
    for stops in (stop, [stop, "zzzz"], ["", stop]):
        assert llm(PROMPT, max_new_tokens=30, temperature=0, stop=stops) == cut
        pieces = list(llm(PROMPT, max_new_tokens=30, temperature=0, stop=stops, stream=True))
        assert "".join(pieces) == cut
    # The beginning of a stop that never comes is held back, then said.
    late = whole[-2:] + "\n"
    assert llm(PROMPT, max_new_tokens=30, temperature=0, stop=[late]) == whole
    assert llm(PROMPT, max_new_tokens=0) == ""


def test_reset(llm):
    first = llm("abc", max_new_tokens=4, temperature=0)
    assert llm("abc", max_new_tokens=4, temperature=0) == first
    llm.reset()
    llm.eval(llm.tokenize("some other text before"))
    continued = llm("abc", max_new_tokens=4, temperature=0, reset=False)
    assert len(llm._read) > 20
    llm.reset()
    llm.eval(llm.tokenize("some other text before") + llm.tokenize("abc"))
    assert continued.startswith(llm.detokenize(llm.sample(temperature=0)))


def test_the_context_is_kept_to(library, file):
    llm = library.AutoModelForCausalLM.from_pretrained(file, context_length=24, temperature=0)
    assert llm.context_length == 24
    answer = llm(PROMPT, max_new_tokens=100)
    assert len(llm._read) <= 24
    assert len(answer) <= 24 - len(llm.tokenize(PROMPT)) + 1
    with pytest.raises(InvalidArgument, match="more than the context of 24"):
        llm("a" * 40)


def test_a_folders_smallest_file_and_settings(library, file, tmp_path):
    (tmp_path / "big.gguf").write_bytes(file.read_bytes() + b"\0" * 64)
    (tmp_path / "small.gguf").symlink_to(file)
    params = {"text-generation": {"top_k": 1, "temperature": 0.3, "nonsense": 1}}
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "llama", "task_specific_params": params})
    )
    llm = library.AutoModelForCausalLM.from_pretrained(tmp_path, top_p=0.5)
    assert llm.model_path.endswith("small.gguf")
    assert (llm.config.top_k, llm.config.temperature, llm.config.top_p) == (1, 0.3, 0.5)
    assert llm.model_type == "llama"
    config = library.AutoConfig.from_pretrained(tmp_path, max_new_tokens=2)
    assert (config.model_type, config.config.max_new_tokens) == ("llama", 2)
    llm = library.AutoModelForCausalLM.from_pretrained(tmp_path, config=config)
    assert llm.config is config.config


def test_a_gptq_checkpoint(library, tmp_path):
    from transformers import AutoModelForCausalLM

    folder = letters_checkpoint(tmp_path / "letters")
    target = tmp_path / "letters-gptq"
    write_checkpoint(target, AutoModelForCausalLM.from_pretrained(folder), gptq_layer, GPTQ)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (target / name).symlink_to(folder / name)
    llm = library.AutoModelForCausalLM.from_pretrained(target)
    assert any(isinstance(module, woq.WeightOnlyLinear) for module in llm.model.modules())
    text = llm("abc", max_new_tokens=5, seed=1)
    assert 0 < len(text) <= 5


def test_bytes_of_tokens():
    """Letters of several tokens, in both ways that tokenizers split them."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    from woq.compat._ct_llm import _Pieces

    def made(tokens, decoder):
        core = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
        core.decoder = decoder
        return _Pieces(PreTrainedTokenizerFast(tokenizer_object=core))

    pieces = made(["\u2581caf", "<0xC3>", "<0xA9>"], decoders.ByteFallback())
    assert b"".join(map(pieces.of, range(3))) == " caf\u00e9".encode()
    pieces = made(["\u0120caf", "\u00c3", "\u00a9"], decoders.ByteLevel())
    assert b"".join(map(pieces.of, range(3))) == " caf\u00e9".encode()


def test_what_has_no_effect_is_said_once(library, file, caplog):
    for _ in range(2):
        library.AutoModelForCausalLM.from_pretrained(file, gpu_layers=50, lib="avx2", threads=2)
    said = [line for line in caplog.messages if line.startswith("ctransformers: ")]
    assert len(said) == 2
    assert "gpu_layers=50 has no effect: woq runs on the CPU" in said[0]


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"temperatur": 1}, InvalidArgument, "did you mean temperature?"),
        ({"temperature": -1}, InvalidArgument, "temperature must be a number from 0"),
        ({"temperature": "hot"}, InvalidArgument, "temperature must be a number"),
        ({"top_k": 1.5}, InvalidArgument, "top_k must be an integer of at least 0"),
        ({"repetition_penalty": 0}, InvalidArgument, "repetition_penalty must be above 0"),
        ({"stop": 5}, InvalidArgument, "stop must be a text or a list of texts"),
        ({"model_file": "no.gguf"}, InvalidArgument, "has no no.gguf, which model_file names"),
        ({"model_file": "old.bin"}, Unsupported, "does not read GGML"),
        ({"model_file": "broken.gguf"}, InvalidArgument, "broken.gguf"),
        ({"config": {"top_k": 1}}, InvalidArgument, "config must be an AutoConfig"),
    ],
)
def test_mistakes(library, file, tmp_path, arguments, error, said):
    (tmp_path / "a.gguf").symlink_to(file)
    (tmp_path / "old.bin").write_bytes(b"ggjt")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF\3\0\0\0")
    with pytest.raises(error) as raised:
        library.AutoModelForCausalLM.from_pretrained(tmp_path, **arguments)
    assert said in str(raised.value)


def test_mistakes_in_calls(llm, library, tmp_path):
    for call, said in (
        (lambda: llm.eval([5, 128]), "token 128 is not one of the model's, 0 to 127"),
        (lambda: llm.sample(), "call eval first"),
        (lambda: llm(5), "expected a text, got 5"),
        (lambda: llm("a", top_p=2.0), "top_p must be a number from 0 to 1"),
        (lambda: llm("a", max_new_tokens=-1), "max_new_tokens must be an integer"),
        (lambda: llm.embed([]), "no tokens to embed"),
        (lambda: library.LLM(tmp_path / "no.gguf"), "there is no model file"),
        (lambda: library.AutoModelForCausalLM.from_pretrained(tmp_path), "has no GGUF file"),
        (
            lambda: library.AutoModelForCausalLM.from_pretrained(tmp_path / "no" / "a.gguf"),
            "no such folder or file",
        ),
    ):
        with pytest.raises(InvalidArgument) as raised:
            call()
        assert said in str(raised.value)
    with pytest.raises(OSError, match="nowhere"):
        library.AutoModelForCausalLM.from_pretrained("no-one/nowhere", model_file="a.gguf")


def test_modules(library):
    from ctransformers.hub import AutoModelForCausalLM
    from ctransformers.llm import LLM

    assert (library.AutoModelForCausalLM, library.LLM) == (AutoModelForCausalLM, LLM)
    with pytest.raises(ModuleNotFoundError, match=r"no ctransformers\.lib: it covers"):
        importlib.import_module("ctransformers.lib")
