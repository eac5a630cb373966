# SPDX-License-Identifier: Apache-2.0
"""Importance matrices: collected, kept in llama.cpp's files, and used by round to nearest."""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path

import model_support as support
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import woq
from woq import ImportanceMatrix, InvalidArgument, RtnConfig, WeightOnlyQuantConfig
from woq.core import native
from woq.formats.imatrix_files import decode
from woq.quantizing.imatrix import collect_imatrix

gguf = pytest.importorskip("gguf")

NAMES = ["blk.0.attn_q.weight", "blk.1.ffn_down.weight"]


@pytest.fixture
def matrix(request: pytest.FixtureRequest) -> ImportanceMatrix:
    rng = np.random.default_rng(support.seed(request))
    return ImportanceMatrix(
        {name: (rng.random(40 + 8 * i) ** 4, 1024) for i, name in enumerate(NAMES)},
        datasets=["a.txt", "b é.txt"],
        chunk_size=256,
    )


def tokens(count: int = 12, length: int = 24) -> torch.Tensor:
    return torch.randint(0, 128, (count, length), generator=torch.Generator().manual_seed(1))


def collect(model: torch.nn.Module) -> ImportanceMatrix:
    return collect_imatrix(model, dataset=tokens(), nsamples=8, seqlen=16, batch_size=3)


def inputs_of(model: torch.nn.Module, name: str, batches: list[torch.Tensor]) -> torch.Tensor:
    seen = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args))
    with torch.no_grad():
        for ids in batches:
            model(input_ids=ids)
    handle.remove()
    return torch.cat([args[0].reshape(-1, args[0].shape[-1]) for args in seen])


# -- collecting ------------------------------------------------------------------------------------


def test_means_are_those_of_the_inputs() -> None:
    from woq.observe.samples import token_samples

    model = support.llama()
    matrix = collect(model)
    batches = list(token_samples(tokens(), None, 8, 16, 42).split(3))
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        x = inputs_of(model, name, batches).double()
        # Products in bfloat16 where the CPU has them: 8 bits of mantissa, several layers deep.
        np.testing.assert_allclose(matrix.mean(name), (x * x).mean(0), rtol=0.1, atol=1e-4)
        assert matrix.tokens(name) == len(x) == 8 * 16
    attention = "model.layers.1.self_attn"
    np.testing.assert_array_equal(
        matrix.mean(f"{attention}.q_proj"), matrix.mean(f"{attention}.v_proj")
    )
    assert "lm_head" not in matrix
    assert len(matrix) == 2 * 7


def test_the_head_is_not_computed_and_the_model_is_as_before() -> None:
    model = support.llama()
    model.train()
    called = []
    model.lm_head.register_forward_hook(lambda *_: called.append(1))
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    collect(model)
    assert not called
    assert model.training
    assert [len(module._forward_pre_hooks) for module in model.modules()] == hooks


def test_encoder_decoders_are_collected() -> None:
    matrix = collect(support.t5())
    assert matrix.tokens("encoder.block.0.layer.0.SelfAttention.q") == 8 * 8


@pytest.mark.parametrize("wrong", [{"nsamples": 0}, {"seqlen": 1.5}, {"batch_size": True}])
def test_counts_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument, match=next(iter(wrong))):
        collect_imatrix(support.llama(), dataset=tokens(), **wrong)


def test_nan_in_the_model_is_named() -> None:
    model = support.llama()
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight[3] = float("nan")
    with pytest.raises(InvalidArgument, match=r"input of model\.layers\.0\.self_attn\.q_proj"):
        collect(model)


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".gguf", ".dat"])
def test_files_round_trip(matrix: ImportanceMatrix, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"i{suffix}"
    matrix.save(path)
    again = ImportanceMatrix.load(path)
    assert again.names == sorted(NAMES)
    for name in NAMES:
        # Two roundings to float32: of the sum, and of the mean.
        np.testing.assert_allclose(again.mean(name), matrix.mean(name), rtol=2**-23)
    if suffix == ".gguf":
        assert (again.datasets, again.chunk_size) == (["a.txt", "b é.txt"], 256)
        assert again.tokens(NAMES[0]) == 1024
    else:  # four chunks, of 512 tokens for all that the file says
        assert again.datasets == ["b é.txt"]
        assert again.tokens(NAMES[0]) == 4 * 512
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_the_gguf_package_reads_what_is_written(matrix: ImportanceMatrix, tmp_path: Path) -> None:
    path = tmp_path / "i.gguf"
    matrix.save(path)
    reader = gguf.GGUFReader(path)
    assert reader.get_field("general.type").contents() == "imatrix"
    assert reader.get_field("imatrix.datasets").contents() == ["a.txt", "b é.txt"]
    assert reader.get_field("imatrix.chunk_count").contents() == 4
    assert reader.get_field("imatrix.chunk_size").contents() == 256
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert sorted(tensors) == sorted(
        name + end for name in NAMES for end in (".in_sum2", ".counts")
    )
    for name in NAMES:
        sums, counts = tensors[f"{name}.in_sum2"], tensors[f"{name}.counts"]
        assert list(sums.shape) == [len(matrix.mean(name)), 1]  # GGUF's order
        assert counts.data.tolist() == [[1024.0]]
        np.testing.assert_allclose(sums.data[0] / 1024, matrix.mean(name), rtol=2**-23)


@pytest.mark.parametrize("experts", [1, 3])
@pytest.mark.parametrize("alignment", [32, 64])
def test_what_the_gguf_package_writes_is_read(tmp_path: Path, experts: int, alignment: int) -> None:
    path = tmp_path / "i.gguf"
    sums = np.arange(experts * 16, dtype=np.float32).reshape(experts, 16)
    counts = np.array([[4.0], [0.0], [2.0]][:experts], dtype=np.float32)
    writer = gguf.GGUFWriter(path, "unused")
    writer.add_type("imatrix")
    writer.add_custom_alignment(alignment)
    writer.add_array("imatrix.datasets", ["x"])
    writer.add_array("other", [1.5, 2.5])
    writer.add_uint32("imatrix.chunk_size", 128)
    writer.add_tensor("blk.0.ffn_up.weight.in_sum", sums)  # newer files have the plain sums too
    writer.add_tensor("blk.0.ffn_up.weight.in_sum2", sums)
    writer.add_tensor("blk.0.ffn_up.weight.counts", counts)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    matrix = ImportanceMatrix.load(path)
    expected = sums / np.maximum(counts, 1)
    np.testing.assert_array_equal(matrix.mean("blk.0.ffn_up.weight"), expected.squeeze())
    assert matrix.tokens("blk.0.ffn_up.weight") == counts.sum()
    assert (matrix.datasets, matrix.chunk_size) == (["x"], 128)


def legacy_file(entries: list[tuple[bytes, int, list[float]]], trailer: bytes) -> bytes:
    parts = [struct.pack("<i", len(entries))]
    for name, calls, values in entries:
        parts.append(struct.pack("<i", len(name)) + name)
        parts.append(struct.pack(f"<ii{len(values)}f", calls, len(values), *values))
    return b"".join(parts) + trailer


@pytest.mark.parametrize("trailer", [b"", struct.pack("<ii3s", 7, 3, b"abc")])
def test_a_legacy_file_byte_by_byte(tmp_path: Path, trailer: bytes) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(legacy_file([(b"blk.0.attn_k.weight", 4, [2.0, 8.0, 0.0])], trailer))
    matrix = ImportanceMatrix.load(path)
    np.testing.assert_array_equal(matrix.mean("blk.0.attn_k.weight"), [0.5, 2.0, 0.0])
    assert matrix.datasets == (["abc"] if trailer else [])


def test_what_is_written_as_legacy_is_the_format(tmp_path: Path) -> None:
    path = tmp_path / "x"
    ImportanceMatrix({NAMES[0]: ([1.0, 0.25], 700)}, datasets=["d"]).save(path, legacy=True)
    entry = (NAMES[0].encode(), 2, [2.0, 0.5])  # 700 tokens: two chunks of 512
    assert path.read_bytes() == legacy_file([entry], struct.pack("<ii1s", 2, 1, b"d"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "number of entries"),
        (struct.pack("<i", -3), "-3 entries"),
        (struct.pack("<ii", 1, 2**31 - 1), "2147483647 bytes, 0 are left"),
        (legacy_file([(b"a", 0, [1.0])], b""), "0 calls"),
        (legacy_file([(b"a", 1, [-1.0])], b""), "negative"),
        (legacy_file([(b"a", 1, [float("nan")])], b""), "not finite"),
        (legacy_file([(b"a", 1, [1.0])] * 2, b""), "was there before"),
        (legacy_file([(b"\xff", 1, [1.0])], b""), "UTF-8"),
        (legacy_file([(b"a", 1, [1.0])], b"\0\0\0\0\0\0\0\0\0"), "1 bytes after the end"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "general.type is missing"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63), "metadata 0"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**64 - 1), "18446744073709551615 bytes"),
    ],
)
def test_damaged_files_say_what_is_wrong(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "bad"
    path.write_bytes(data)
    with pytest.raises(InvalidArgument, match=message) as error:
        ImportanceMatrix.load(path)
    assert str(path) in str(error.value)


def valid_file(kind: str, folder: Path) -> bytes:
    path = folder / f"i.{kind}"
    entries = {name: (np.linspace(0, 3, 40), 600) for name in NAMES}
    ImportanceMatrix(entries, datasets=["text"]).save(path)
    return path.read_bytes()


@pytest.mark.parametrize("kind", ["gguf", "dat"])
def test_every_truncation_is_an_error(tmp_path: Path, kind: str) -> None:
    data = valid_file(kind, tmp_path)
    # A legacy file may end after its entries; GGUF's last bytes are padding.
    whole = {len(data) - 12} if kind == "dat" else range(len(data) - 31, len(data))
    for size in range(len(data)):
        if size not in whole:
            with pytest.raises(InvalidArgument):
                decode(data[:size], "file")


@pytest.mark.parametrize("kind", ["gguf", "dat"])
def test_corrupt_bytes_give_an_error_or_a_matrix(
    kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = valid_file(kind, tmp_path_factory.mktemp("fuzz"))

    @settings(
        max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
    )
    @given(
        changes=st.lists(
            st.tuples(st.integers(0, len(data) - 1), st.binary(min_size=1, max_size=8)),
            min_size=1,
            max_size=4,
        )
    )
    def check(changes: list[tuple[int, bytes]]) -> None:
        damaged = bytearray(data)
        for at, patch in changes:
            damaged[at : at + len(patch)] = patch
        try:
            contents = decode(bytes(damaged), "file")
        except InvalidArgument:
            return
        for entry in contents.entries.values():
            assert np.isfinite(entry.mean).all()
            assert entry.mean.size <= len(data)

    check()


@settings(max_examples=200, deadline=None, database=None)
@given(data=st.binary(max_size=200), gguf_magic=st.booleans())
def test_noise_is_refused(data: bytes, gguf_magic: bool) -> None:
    with pytest.raises(InvalidArgument):
        decode((b"GGUF" if gguf_magic else b"\xff\xff\xff\xff") + data, "file")


def test_a_failed_save_leaves_the_old_file(
    matrix: ImportanceMatrix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "i.gguf"
    matrix.save(path)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        ImportanceMatrix({NAMES[0]: ([1.0], 1)}).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["i.gguf"]


def test_missing_files_and_bad_entries(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="no file"):
        ImportanceMatrix.load(tmp_path / "none.gguf")
    for wrong in ([-1.0], [float("inf")], [[[1.0]]]):
        with pytest.raises(InvalidArgument, match="'x'"):
            ImportanceMatrix({"x": (wrong, 1)})


# -- names -----------------------------------------------------------------------------------------


def test_a_collected_matrix_gets_llama_cpps_names(tmp_path: Path) -> None:
    model = support.llama()
    matrix = collect(model)
    path = tmp_path / "i.gguf"
    matrix.save(path)
    again = ImportanceMatrix.load(path)
    roles = "attn_q attn_k attn_v attn_output ffn_gate ffn_up ffn_down".split()
    assert set(again.names) == {f"blk.{block}.{role}.weight" for block in (0, 1) for role in roles}
    means = again.of_model(model, matrix.names)
    assert set(means) == set(matrix.names)
    for name, mean in means.items():
        np.testing.assert_allclose(mean, matrix.mean(name), rtol=2**-23)


@pytest.mark.parametrize("make", [support.gpt2, support.t5])
def test_other_architectures_have_names(make: object, tmp_path: Path) -> None:
    model = make()
    matrix = collect(model)
    matrix.save(tmp_path / "i.gguf")
    again = ImportanceMatrix.load(tmp_path / "i.gguf")
    assert set(again.of_model(model, matrix.names)) == set(matrix.names)


def test_without_gguf_the_message_says_so(
    matrix: ImportanceMatrix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = support.llama()
    collected = collect(model)
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(woq.Unsupported, match="pip install gguf"):
        collected.save(tmp_path / "i.gguf")
    with pytest.raises(woq.Unsupported, match="pip install gguf"):
        matrix.of_model(model, ["model.layers.0.self_attn.q_proj"])
    assert len(collected.of_model(model, collected.names)) == 14


# -- rounding --------------------------------------------------------------------------------------


def quantized(model: torch.nn.Module, **fields: object) -> torch.nn.Module:
    return woq.quantize(model, WeightOnlyQuantConfig(**fields))


@pytest.mark.parametrize("as_file", [False, True])
def test_layers_are_those_of_the_core(tmp_path: Path, as_file: bool) -> None:
    torch.manual_seed(3)
    model = support.llama()
    name = "model.layers.0.mlp.down_proj"
    weight = model.get_submodule(name).weight.detach().clone()
    matrix: object = collect(model)
    if as_file:
        matrix.save(tmp_path / "i.gguf")
        matrix = ImportanceMatrix.load(tmp_path / "i.gguf").of_model(model, [name])
        importance, given = matrix[name], tmp_path / "i.gguf"
    else:
        importance, given = matrix.mean(name), matrix
    quantized(model, weight_dtype="nf4", imatrix=given)
    expected = native.quantize_rtn(weight, dtype="nf4", group_size=32, importance=importance)
    np.testing.assert_array_equal(model.get_submodule(name).dequantize(), expected.dequantize())
    plain = native.quantize_rtn(weight, dtype="nf4", group_size=32, mse_range=True)
    assert (expected.dequantize() != plain.dequantize()).any()
    assert all(layer.algorithm == "RTN" and not layer.note for layer in model.woq_report.layers)


def test_a_layer_without_an_entry_is_searched_by_squared_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = support.llama()
    name = "model.layers.1.mlp.up_proj"
    weight = model.get_submodule(name).weight.detach().clone()
    full = collect(model)
    entries = {key: (full.mean(key), full.tokens(key)) for key in full.names if key != name}
    with caplog.at_level("WARNING", "woq"):
        quantized(model, imatrix=ImportanceMatrix(entries))
    assert f"no entry for {name}:" in caplog.text
    expected = native.quantize_rtn(weight, dtype="int4_fullrange", group_size=32, mse_range=True)
    np.testing.assert_array_equal(model.get_submodule(name).dequantize(), expected.dequantize())
    assert [layer.name for layer in model.woq_report.fallbacks] == [name]
    assert "has no entry" in str(model.woq_report)


def test_a_wrong_length_names_layer_and_sizes() -> None:
    model = support.llama()
    before = model.model.layers[0].mlp.down_proj
    matrix = ImportanceMatrix({"model.layers.0.mlp.down_proj": (np.ones(95), 10)})
    with pytest.raises(InvalidArgument, match=r"95 channels .*mlp\.down_proj.* 96 input"):
        quantized(model, imatrix=matrix)
    assert model.model.layers[0].mlp.down_proj is before


def test_another_models_matrix_is_refused() -> None:
    matrix = ImportanceMatrix({"blk.7.attn_q.weight": (np.ones(64), 1)})
    with pytest.raises(InvalidArgument, match=r"not this model's.*blk\.7"):
        quantized(support.llama(), imatrix=matrix)


def test_from_pretrained_takes_it(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = support.llama()
    matrix = collect(model)
    model.save_pretrained(tmp_path / "float")
    matrix.save(tmp_path / "i.gguf")
    config = RtnConfig(weight_dtype="nf4", imatrix=str(tmp_path / "i.gguf"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "float", quantization_config=config)
    in_place = quantized(
        model, weight_dtype="nf4", imatrix=ImportanceMatrix.load(tmp_path / "i.gguf")
    )
    torch.testing.assert_close(support.logits(loaded), support.logits(in_place), rtol=0, atol=0)
    woq.save_pretrained(loaded, tmp_path / "saved")
    assert "imatrix" not in (tmp_path / "saved" / "config.json").read_text()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(support.logits(again), support.logits(loaded), rtol=0, atol=0)


@pytest.mark.parametrize("algorithm", ["GPTQ", "AWQ", "TEQ", "AUTOROUND"])
def test_only_rtn_takes_one(matrix: ImportanceMatrix, algorithm: str) -> None:
    with pytest.raises(InvalidArgument, match=f"imatrix is for algorithm RTN; {algorithm}"):
        WeightOnlyQuantConfig(algorithm=algorithm, imatrix=matrix)
    with pytest.raises(InvalidArgument, match=r"imatrix must be a path"):
        RtnConfig(imatrix=3)
