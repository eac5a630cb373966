# SPDX-License-Identifier: Apache-2.0
"""Other libraries in the quality benchmark: the same model and samples for all, and the same score.

The libraries themselves are not needed: the one here rounds to nearest by numpy.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from model_support import benchmark_modules, letters_checkpoint  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from woq.observe.samples import token_samples  # noqa: E402

MODULES = ("common", "permutation", "quality", "quality_exchange", "quality_peers", "quantizers")


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    with benchmark_modules(*MODULES, "quantizers.llama_cpp_") as found:
        yield found


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return letters_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def common(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments of quality.py."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "test.txt").write_text("the quick brown fox jumps over the lazy dog. " * 8)
    (folder / "valid.txt").write_text("a lazy dog jumps over a quick brown fox. " * 40)
    text, learnt = folder / "test.txt", folder / "valid.txt"
    command = f"--text {text} --calibration {learnt} --model {checkpoint} --windows 3 --length 32"
    return command.split()


@pytest.fixture(scope="module")
def protocol(
    modules: dict[str, ModuleType], common: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder: Path = tmp_path_factory.mktemp("protocol") / "float"
    options = "--option nsamples=6 seqlen=24 iters=3 --seed 7".split()
    assert modules["quality"].main([*common, *options, "--export", str(folder)]) == []
    return folder


class Rounding:
    """A peer: absmax / 7, half to even, clipped to [-8, 7]; scales of 16 bits."""

    PACKAGE = "numpy"
    FORMATS = ("int4_clip",)
    OPTIONS = {"scaled": 1.0}  # noqa: RUF012

    def __init__(self, modules: dict[str, ModuleType]) -> None:
        self.quantizers, self.exchange = modules["quantizers"], modules["quality_exchange"]
        self.seen: Any = None

    def quantize(self, task: Any) -> Any:
        self.seen, model = task, task.model()
        weights = {}
        with task.measured():
            for name, layer in self.exchange.linear_layers(model).items():
                groups = layer.weight.detach().numpy().reshape(-1, task.group_size)
                scales = (np.abs(groups).max(1, keepdims=True) / 7).astype(np.float16)
                scales = scales.astype(np.float32)
                made = np.clip(np.rint(groups / scales), -8, 7) * scales * task.options["scaled"]
                weights[f"{name}.weight"] = torch.from_numpy(made).view_as(layer.weight)
        bits = self.quantizers.grouped_bits(model, task.group_size, 4, 0)
        return self.quantizers.Made(weights, bits)


@pytest.fixture
def rounding(modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> Rounding:
    peer = Rounding(modules)
    monkeypatch.setitem(modules["quantizers"].PEERS, "rounding", "none")
    monkeypatch.setattr(modules["quality_peers"], "peer_module", lambda name: peer)
    return peer


@pytest.fixture
def row_folder(
    modules: dict[str, ModuleType], rounding: Rounding, protocol: Path, tmp_path: Path
) -> Path:
    out = tmp_path / "rows" / "rounding"
    arguments = f"--protocol {protocol} --peer rounding --format int4_clip --out {out}"
    modules["quality_peers"].main(arguments.split())
    return out


def test_export_is_the_permuted_model_with_the_samples_of_woq(
    modules: dict[str, ModuleType], protocol: Path, checkpoint: Path, common: list[str]
) -> None:
    permuted = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    modules["permutation"].permute_channels(permuted, 0)
    exported = AutoModelForCausalLM.from_pretrained(protocol, dtype=torch.float32).eval()
    theirs = dict(exported.named_parameters())
    for name, parameter in permuted.named_parameters():
        assert torch.equal(parameter, theirs[name]), name

    samples, facts = modules["quality_exchange"].read_protocol(protocol)
    tokenizer = AutoTokenizer.from_pretrained(protocol)
    calibration = common[common.index("--calibration") + 1]
    assert torch.equal(samples, token_samples(calibration, lambda: tokenizer, 6, 24, 7))
    assert facts == {"model": modules["quality_exchange"].fingerprint(permuted), "seed": 7}
    original = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert facts["model"] != modules["quality_exchange"].fingerprint(original)


def test_a_peer_and_the_same_algorithm_of_woq_score_alike(
    modules: dict[str, ModuleType],
    common: list[str],
    row_folder: Path,
    rounding: Rounding,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = "--algorithm RTN --format int4_clip --group-size 32 --json --score".split()
    rows = modules["quality"].main([*common, *arguments, str(row_folder)])
    assert json.loads(capsys.readouterr().out)["results"] == rows
    _, ours, theirs = rows
    assert theirs["algorithm"] == f"rounding {np.__version__}"
    assert (theirs["format"], theirs["group"], theirs["seed"]) == ("int4_clip", 32, 7)
    assert theirs["bits/weight"] == ours["bits/weight"] == 4.5
    assert theirs["seconds"] > 0
    # The same codes and scales: only the order of the additions differs.
    assert ours["kl"] > 0.01
    for figure in ("perplexity", "kl", "top1"):
        assert theirs[figure] == pytest.approx(ours[figure], rel=1e-3), figure
    assert rounding.seen.samples.shape == (6, 24)


def test_options_are_named_in_the_row_and_checked(
    modules: dict[str, ModuleType],
    rounding: Rounding,
    protocol: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main = modules["quality_peers"].main
    arguments = f"--protocol {protocol} --peer rounding --out {tmp_path / 'row'} --format".split()
    row = main([*arguments, "int4_clip", "--nsamples", "2", "--option", "scaled=0.5"])
    assert row.algorithm == f"rounding {np.__version__} scaled=0.5"
    assert row.samples == [2, 24]
    assert row == modules["quality_exchange"].load_row(tmp_path / "row")
    for wrong, message in (
        (["nf4"], "rounding has --format int4_clip, not 'nf4'"),
        (["int4_clip", "--option", "scale=1"], "unknown option 'scale'; known: scaled"),
        (["int4_clip", "--option", "scaled=half"], "scaled=half: the value is not JSON"),
    ):
        with pytest.raises(SystemExit):
            main([*arguments, *wrong])
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"not a folder that quality\.py --export"):
        main(f"--protocol {tmp_path} --peer rounding --format int4_clip --out x".split())


def test_rows_that_cannot_be_scored_are_refused(
    modules: dict[str, ModuleType], row_folder: Path, protocol: Path
) -> None:
    exchange = modules["quality_exchange"]
    path = row_folder / "weights.safetensors"
    weights = load_file(path)
    name = "model.layers.1.mlp.down_proj.weight"

    def refused(changed: dict[str, torch.Tensor], message: str) -> None:
        save_file(changed, path)
        model = AutoModelForCausalLM.from_pretrained(protocol, dtype=torch.float32)
        with pytest.raises(SystemExit, match=message):
            exchange.restore_weights(row_folder, model)

    rest = {key: each for key, each in weights.items() if key != name}
    refused(rest, rf"unquantized layers \['{name}'\]")
    refused({**weights, "model.other": weights[name].clone()}, r"unknown tensors \['model.other'\]")
    refused({**rest, name: weights[name].T.contiguous()}, rf"{name} is \[128, 64\]")
    refused({**rest, name: weights[name] * float("nan")}, f"{name} has infinities or NaN")
    facts = json.loads((row_folder / "row.json").read_text())
    (row_folder / "row.json").write_text(json.dumps({**facts, "model": "0" * 64}))
    refused(weights, "made of another float model")


def test_stored_bits(modules: dict[str, ModuleType]) -> None:
    stored_bits = modules["quality_exchange"].stored_bits
    assert stored_bits(10, 64, 32, 4) == 10 * (64 * 4 + 2 * 16)
    assert stored_bits(10, 64, 32, 4, 4) == 10 * (64 * 4 + 2 * 20)
    assert stored_bits(10, 96, 64, 4) == 10 * (96 * 4 + 2 * 16), "the last group is shorter"
    assert stored_bits(10, 96, -1, 8) == 10 * (96 * 8 + 16)


@pytest.mark.parametrize("ordered", [True, False])
def test_gptq_layout(modules: dict[str, ModuleType], tmp_path: Path, ordered: bool) -> None:
    """A checkpoint packed here with numpy, with and without g_idx."""
    rows, columns, size = 8, 32, 16
    random = np.random.default_rng(5)
    codes = random.integers(0, 16, (rows, columns), dtype=np.uint32)
    zeros = random.integers(1, 16, (rows, columns // size), dtype=np.uint32)
    scales = random.uniform(0.5, 2, zeros.shape).astype(np.float16)
    groups = np.arange(columns) // size if ordered else random.permutation(columns) // size

    def packed(values: Any) -> torch.Tensor:
        words = sum(values[i::8] << np.uint32(4 * i) for i in range(8))
        return torch.from_numpy(np.ascontiguousarray(words, np.uint32).view(np.int32))

    stored = {
        "a.qweight": packed(codes.T),
        "a.qzeros": packed(zeros - 1).T.contiguous(),
        "a.scales": torch.from_numpy(scales.T.copy()),
    }
    if not ordered:
        stored["a.g_idx"] = torch.from_numpy(groups.astype(np.int32))
    save_file(stored, tmp_path / "model.safetensors")
    got = modules["quantizers"].gptq_weights(tmp_path)
    expected = (codes - zeros[:, groups].astype(np.float32)) * scales[:, groups]
    assert list(got) == ["a.weight"]
    assert np.array_equal(got["a.weight"].numpy(), expected.astype(np.float32))


def test_importance_matrix_is_the_mean_square_of_the_inputs(
    modules: dict[str, ModuleType], protocol: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(protocol, dtype=torch.float32).eval()
    layers = modules["quality_exchange"].linear_layers(model)
    samples, _ = modules["quality_exchange"].read_protocol(protocol)
    got = modules["quantizers.llama_cpp_"]._mean_squares(model, layers, samples)
    assert set(got) == set(layers)
    assert not any("lm_head" in name for name in got)
    # What enters the first block's projections, computed by hand; all samples at once.
    with torch.no_grad():
        embedded = model.model.embed_tokens(samples)
        norm = model.model.layers[0].input_layernorm
        scale = (embedded.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()
        expected = (embedded * scale * norm.weight).square().double().mean((0, 1))
    for name in ("q_proj", "k_proj", "v_proj"):
        mean = got[f"model.layers.0.self_attn.{name}"]
        torch.testing.assert_close(mean, expected, rtol=1e-5, atol=0)


def test_every_peer_module_says_what_it_has(modules: dict[str, ModuleType]) -> None:
    """Without its library: imports are made when it quantizes."""
    for name in modules["quantizers"].PEERS:
        peer = modules["quantizers"].peer_module(name)
        assert peer.FORMATS
        assert isinstance(peer.OPTIONS, dict)
        assert f" {peer.PACKAGE}==" in modules["quality_peers"].__doc__, peer.PACKAGE
        assert isinstance(json.loads(json.dumps(peer.OPTIONS)), dict)
        assert callable(peer.quantize)


def test_measured(modules: dict[str, ModuleType], protocol: Path, tmp_path: Path) -> None:
    """Memory held only inside counts, also where earlier work left free memory behind."""
    pieces = [torch.zeros(64 << 10, dtype=torch.uint8).add_(1) for _ in range(2048)]
    kept = pieces.pop()  # above the rest of the heap, which can't shrink below it
    del pieces
    task = SimpleNamespace()
    with modules["quantizers"].Task.measured(task):
        block = torch.zeros(64 << 20, dtype=torch.uint8).add_(1)
        del block
    assert kept.all()
    assert task.seconds > 0
    assert task.mib is None or task.mib > 48
