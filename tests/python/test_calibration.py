# SPDX-License-Identifier: Apache-2.0
"""Calibration data: what is taken, how it becomes samples, and the errors."""

from __future__ import annotations

import logging
import sys
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_support import llama, seed, t5
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("transformers")

from woq import InvalidArgument, Unsupported
from woq.observe.samples import (
    Examples,
    calibration_batches,
    read_ahead,
    sample_from_model,
    token_samples,
)

OPTIONS = {"nsamples": 6, "seqlen": 8, "batch_size": 4, "seed": 3}


@pytest.fixture(autouse=True)
def _seed(request):
    seed(request)


class Letters:
    """Tokenizes to the letters' numbers."""

    def __init__(self):
        self.calls = 0

    def __call__(self, text, add_special_tokens=True, verbose=True):
        assert not add_special_tokens
        self.calls += 1
        return {"input_ids": [ord(letter) % 128 for letter in text]}


def samples(dataset, **overrides):
    options = {**OPTIONS, **overrides}
    return token_samples(dataset, Letters, options["nsamples"], options["seqlen"], options["seed"])


TOKENS = torch.arange(100) % 128
TEXT = "".join(chr(token) for token in TOKENS.tolist())


def padded(side):
    """The tokens in rows of different lengths, as a tokenizer pads them."""
    lengths = [40, 3, 27, 30]
    rows = [row.tolist() for row in TOKENS.split(lengths)]
    ids, mask = [], []
    for row in rows:
        fill = [99] * (40 - len(row))
        ids.append(row + fill if side == "right" else fill + row)
        ones, zeros = [1] * len(row), [0] * len(fill)
        mask.append(ones + zeros if side == "right" else zeros + ones)
    ids, mask = torch.tensor(ids), torch.tensor(mask)
    each = zip(ids, mask, strict=True)
    yield {"input_ids": ids, "attention_mask": mask}
    yield [{"input_ids": i.tolist(), "attention_mask": m.tolist()} for i, m in each]
    yield [{"input_ids": ids[:2], "attention_mask": mask[:2].bool()}, {"input_ids": rows[2:]}]
    yield list(DataLoader(TensorDataset(ids, mask), batch_size=3))


@pytest.mark.parametrize(
    "dataset",
    [
        TOKENS,
        TOKENS.reshape(10, 10),
        [TOKENS],
        TOKENS.tolist() and [TOKENS.tolist()],
        [TEXT],
        [TEXT[:37], "", TEXT[37:]],
        (piece for piece in (TEXT[:50], TEXT[50:])),
        [{"text": TEXT, "url": "x"}],
        [{"meta": 1, "body": TEXT}],
        [{"input_ids": TOKENS}],
        {"input_ids": TOKENS},
        [(TOKENS, None)],
        TOKENS.numpy()[None],
        *padded("right"),
        *padded("left"),
    ],
    ids=range(21),
)
def test_every_form_gives_the_same_samples(dataset):
    rows = samples(dataset)
    assert rows.dtype == torch.int64
    assert rows.shape == (6, 8)
    # Windows of the stream, no two alike.
    starts = {int(row[0]) for row in rows}
    assert len(starts) == 6
    for row in rows:
        assert torch.equal(row, TOKENS[int(row[0]) : int(row[0]) + 8])
        assert int(row[0]) % 8 == 0
    assert torch.equal(rows, samples([TOKENS]))


def test_a_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8", newline="")
    expected = samples([path.read_text(encoding="utf-8")])
    assert torch.equal(samples(path), expected)
    assert torch.equal(samples(str(path)), expected)


def test_the_seed_draws(caplog):
    assert not torch.equal(samples(TOKENS, seed=1), samples(TOKENS, seed=2))
    with caplog.at_level(logging.WARNING, "woq"):
        assert samples(TOKENS, nsamples=99).shape == (12, 8)
    assert "100 tokens: 12 samples of 8 instead of 99 of 8" in caplog.text


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.lists(st.integers(0, 127), max_size=9), max_size=30),
    st.integers(1, 5),
    st.integers(2, 9),
)
def test_samples_are_windows_of_the_stream(pieces, nsamples, seqlen):
    stream = [token for piece in pieces for token in piece]
    if len(stream) < 2:
        with pytest.raises(InvalidArgument, match="is empty" if not stream else "has one token"):
            token_samples(pieces, Letters, nsamples, seqlen, 0)
        return
    seqlen = min(seqlen, len(stream))
    rows = token_samples(pieces, Letters, nsamples, seqlen, 0).tolist()
    windows = [stream[i : i + seqlen] for i in range(0, len(stream) - seqlen + 1, seqlen)]
    assert len(rows) == min(nsamples, len(windows)) or len(windows) > 8 * nsamples
    for row in rows:
        assert row in windows


def test_an_endless_iterable_is_read_as_far_as_needed():
    def endless():
        while True:
            yield TOKENS

    assert samples(endless()).shape == (6, 8)


@pytest.mark.parametrize("dataset", [[], [""], "", iter(())], ids=range(4))
def test_empty(dataset, tmp_path):
    if dataset == "":
        dataset = tmp_path / "empty.txt"
        dataset.write_text("")
    with pytest.raises(InvalidArgument, match="calibration data is empty"):
        samples(dataset)


def test_data_shorter_than_a_sample(caplog):
    with caplog.at_level(logging.WARNING, "woq"):
        rows = samples(["12345", "67"])
    assert rows.tolist() == [[ord(letter) for letter in "1234567"]]
    assert "7 tokens: 1 sample of 7 instead of 6 of 8" in caplog.text


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ([torch.tensor([1.0, float("nan")])], "sample 0 holds real numbers with NaN"),
        ([torch.tensor([1.5])], "expected token ids"),
        ([3.5], "sample 0 is 3.5"),
        ([{"label": 3}], r"neither 'input_ids' nor text: \['label'\]"),
        (3, "dataset must be"),
        ([None], "sample 0 is None"),
        (
            [{"input_ids": [1, 2, 3], "attention_mask": [1, 1]}],
            r"attention_mask of shape \[2\] and input_ids of shape \[3\]",
        ),
        ([{"content": [{"type": "image"}]}], "sample 0 holds {'type': 'image'}, expected token"),
    ],
    ids=range(8),
)
def test_what_is_no_data(dataset, message):
    with pytest.raises(InvalidArgument, match=message):
        samples(dataset)


def test_files_that_are_no_text(tmp_path):
    with pytest.raises(InvalidArgument, match=r"no file .*nowhere"):
        samples(tmp_path / "nowhere.txt")
    with pytest.raises(InvalidArgument, match=r"no file nowhere\.txt"):
        samples("nowhere.txt")
    path = tmp_path / "binary"
    path.write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(InvalidArgument, match="not a UTF-8 text file"):
        samples(path)


def test_names_of_datasets(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Unsupported, match=r"'some/name' is no file.*package 'datasets'"):
        samples("some/name")
    monkeypatch.undo()
    asked = []
    module = ModuleType("datasets")
    module.__spec__ = object()

    def load_dataset(**kwargs):
        asked.append(kwargs)
        return [{"text": TEXT}]

    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    names = ("wikitext2", "some/name", "c4", "c4-new", "ptb", "pileval")
    for name in names:
        assert torch.equal(samples(name), samples([TEXT]))
    c4 = {"train": "en/c4-train.00000-of-01024.json.gz"}
    ptb = {"train": "penn_treebank/train/*.parquet"}
    common = {"split": "train", "streaming": True}
    assert asked == [
        {"path": "Salesforce/wikitext", "name": "wikitext-2-raw-v1", **common},
        {"path": "some/name", **common},
        {"path": "allenai/c4", "data_files": c4, **common},
        {"path": "allenai/c4", "data_files": c4, **common},
        {
            "path": "ptb-text-only/ptb_text_only",
            "revision": "refs/convert/parquet",
            "data_files": ptb,
            **common,
        },
        {"path": "mit-han-lab/pile-val-backup", "split": "validation", "streaming": True},
    ]


def test_a_data_set_that_cannot_be_had(monkeypatch):
    """Whatever the package raises, at once or while it is read: one error that says what to do."""
    module = ModuleType("datasets")
    module.__spec__ = object()

    def at_once(**kwargs):
        raise ConnectionError("Couldn't reach the hub\nTraceback ...")

    def later(**kwargs):
        yield {"text": "a"}
        raise RuntimeError

    monkeypatch.setitem(sys.modules, "datasets", module)
    for load, said in ((at_once, "Couldn't reach the hub; give"), (later, "RuntimeError; give")):
        module.load_dataset = load
        with pytest.raises(InvalidArgument) as caught:
            samples("c4")
        text = str(caught.value)
        assert "'c4' is no file" in text
        assert f"(allenai/c4) it cannot be read: {said} the path of a text file" in text


# -- chats ----------------------------------------------------------------------------------------


class Talker(Letters):
    chat_template = "is there"

    def apply_chat_template(self, messages, tokenize):
        assert not tokenize
        if messages[0]["role"] == "nobody":
            import jinja2

            raise jinja2.TemplateError("roles!")
        return "".join(f"<{message['role'][0]}>{message['content']}" for message in messages)


CHAT = [{"role": "user", "content": "what is it"}, {"role": "assistant", "content": "a fox"}]


@pytest.mark.parametrize(
    "dataset",
    [
        [{"messages": CHAT, "prompt": "another"}],
        {"messages": CHAT},
        [{"conversations": [{"from": "human", "value": "what is it"}, CHAT[1]]}],
        [{"prompt": CHAT}],
        [CHAT],
        CHAT,
        [[{"role": "user", "content": [{"text": "what "}, {"text": "is it"}]}, CHAT[1]]],
    ],
    ids=range(7),
)
def test_chats_go_through_the_template(dataset):
    text = "<u>what is it<a>a fox"
    rows = token_samples(dataset, Talker, 9, len(text), 0)
    assert rows.tolist() == [[ord(letter) for letter in text]]


def test_chats_that_cannot_be_used():
    with pytest.raises(InvalidArgument, match="sample 0 is a chat, and the tokenizer has no chat"):
        samples([CHAT])
    image = [{"role": "user", "content": [{"type": "image", "url": "x"}]}]
    with pytest.raises(InvalidArgument, match="sample 1 has a part of a message that is no text"):
        token_samples([CHAT, image], Talker, 9, 8, 0)
    nobody = [{"role": "nobody", "content": "a"}]
    with pytest.raises(InvalidArgument, match="refuses messages of the roles nobody: roles!"):
        token_samples([nobody], Talker, 9, 8, 0)


# -- for a model ----------------------------------------------------------------------------------


def test_batches():
    batches = calibration_batches(llama(), TOKENS, None, OPTIONS)
    assert [batch["input_ids"].shape for batch in batches] == [(4, 8), (2, 8)]
    assert all(batch.keys() == {"input_ids"} for batch in batches)


def test_examples_are_samples_as_they_are(caplog):
    pieces = [torch.arange(n) for n in (43, 7, 43, 300, 1)]
    dataset = Examples([{"input_ids": p, "attention_mask": torch.ones(len(p))} for p in pieces])
    with caplog.at_level(logging.WARNING, "woq"):
        found = calibration_batches(llama(vocab_size=512), dataset, None, OPTIONS)
    # Those of one length together; 300 tokens are more than the model's 256 positions.
    assert [batch["input_ids"].shape for batch in found] == [
        (2, 43),
        (1, 7),
        (1, 256),
        (1, 44),
        (1, 1),
    ]
    assert found[1]["input_ids"].tolist() == [list(range(7))]
    assert found[3]["input_ids"].tolist() == [list(range(256, 300))]
    assert not caplog.messages
    halved = calibration_batches(t5(), Examples(pieces[:3] + pieces[4:]), None, OPTIONS)
    assert [batch["decoder_input_ids"].shape for batch in halved] == [(2, 22), (1, 4)]
    for empty in ([], [[]], [[5]]):
        with pytest.raises(InvalidArgument, match="hold fewer than two tokens"):
            calibration_batches(llama(), Examples(empty), None, OPTIONS)


def test_encoder_decoder_batches():
    model = t5()
    (batch,) = calibration_batches(model, TOKENS, None, {**OPTIONS, "nsamples": 2})
    assert batch["input_ids"].shape == batch["decoder_input_ids"].shape == (2, 4)
    start = batch["decoder_input_ids"]
    assert (start[:, 0] == model.config.decoder_start_token_id).all()
    # Shifted by one: the token after the encoder's last comes second.
    assert torch.equal(start[:, 1], batch["input_ids"][:, -1] + 1)


def test_seqlen_is_cut_to_the_positions():
    model = llama(max_position_embeddings=16)
    batches = calibration_batches(model, TOKENS, None, {**OPTIONS, "seqlen": 64, "nsamples": 2})
    assert batches[0]["input_ids"].shape == (2, 16)


def test_tokens_of_another_tokenizer():
    with pytest.raises(InvalidArgument, match=r"from .* to 500, the model knows 0 to 127"):
        calibration_batches(llama(), torch.full((100,), 500), None, OPTIONS)


class Unsaid(nn.Module):
    """As CLIP and CANINE: it does not say which of its modules embeds tokens."""

    def get_input_embeddings(self):
        raise NotImplementedError("not auto-handled")


def test_a_model_that_does_not_name_its_embedding():
    (batch, _) = calibration_batches(Unsaid(), TOKENS, None, OPTIONS)
    assert batch["input_ids"].shape == (4, 8)
    with pytest.raises(InvalidArgument, match="Unsaid cannot generate text"):
        calibration_batches(Unsaid(), "self", None, OPTIONS)
    with pytest.raises(InvalidArgument, match=r"from -1 to .*the model knows 0 to"):
        calibration_batches(Unsaid(), TOKENS - 1, None, {**OPTIONS, "nsamples": 99})


@pytest.mark.parametrize("positions", [256, 6])
def test_data_read_ahead_gives_the_same_batches(positions):
    model = llama(max_position_embeddings=positions)
    pieces = [TEXT[i : i + 7] for i in range(0, 100, 7)] * 8
    ahead = read_ahead(iter(pieces), Letters(), "/nowhere", OPTIONS)
    once = calibration_batches(model, pieces, Letters(), OPTIONS)
    again = calibration_batches(model, ahead, None, OPTIONS)
    for one, other in zip(once, again, strict=True):
        assert torch.equal(one["input_ids"], other["input_ids"])
    assert read_ahead("self", None, "", OPTIONS) == "self"
    assert read_ahead(None, None, "", OPTIONS) is None


def test_text_without_a_tokenizer():
    with pytest.raises(InvalidArgument, match="pass tokenizer="):
        calibration_batches(llama(), [TEXT], None, OPTIONS)
    with pytest.raises(InvalidArgument, match="none was found at '/nowhere'"):
        calibration_batches(llama(), [TEXT], "/nowhere", OPTIONS)
    assert calibration_batches(llama(), [TEXT], Letters(), OPTIONS)


@pytest.mark.parametrize("make", [llama, t5])
def test_the_model_itself(make, caplog):
    model = make()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with caplog.at_level(logging.WARNING, "woq"):
        batches = calibration_batches(model, None, None, OPTIONS)
    assert "sampled from the model itself" in caplog.text
    caplog.clear()
    again = calibration_batches(model, "self", None, OPTIONS)
    assert not caplog.records
    for one, other in zip(batches, again, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert torch.equal(torch.get_rng_state(), before), "the caller's random numbers go on"
    rows = sample_from_model(model, 5, 8, 1)
    assert rows.shape == (5, 8)
    assert len({tuple(row) for row in rows.tolist()}) > 1


def test_a_model_that_cannot_generate():
    with pytest.raises(InvalidArgument, match="Linear cannot generate text"):
        calibration_batches(nn.Linear(2, 2), None, None, OPTIONS)
