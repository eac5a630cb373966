# SPDX-License-Identifier: Apache-2.0
"""Importance matrices: for each linear layer the mean square of every input channel. What rounding
does wrong counts by them (`WeightOnlyQuantConfig.imatrix`). llama.cpp's files are read and written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..config.quant_config import WeightOnlyQuantConfig
from ..core.native import InvalidArgument, Unsupported
from ..formats.files import replace_file
from ..formats.imatrix_files import Contents, Entry, decode, encode_dat, encode_gguf
from ..modules.targets import Target, output_embeddings, select
from ..observe.activations import check_finite
from ..observe.block import fast_products, for_calibration, observed_inputs, product_dtype
from ..observe.samples import calibration_batches, check_counts

__all__ = ["NO_IMPORTANCE", "ImportanceMatrix", "collect_imatrix", "with_importance"]

logger = logging.getLogger("woq")

# Model types that GGUF calls otherwise. Of the others, "-" and "_" make no difference.
_GGUF_NAMES = {
    "cohere": "command-r",
    "gemma3_text": "gemma3",
    "gemma4_text": "gemma4",
    "gpt_neox": "gptneox",
    "mistral": "llama",
    "mixtral": "llama",
    "umt5": "t5",
}
_SUFFIX = ".weight"

# What the report says of a layer that the matrix lacks.
NO_IMPORTANCE = "the importance matrix has no entry for it"


class ImportanceMatrix:
    """The mean square of every input channel of linear layers, and the tokens that went into it.

    Entries are called as in llama.cpp's files ("blk.0.attn_q.weight") if they come from one, or by
    the model's module names ("model.layers.0.self_attn.q_proj") if they were collected.

    Args:
        entries: {name: (mean [K], tokens)}; a stack of experts has mean [experts, K] and tokens
            [experts].
        datasets: what the inputs came from.
        chunk_size: tokens that were seen at a time.
        architecture: (model type, number of blocks) of the model with these module names: what
            llama.cpp's names follow from.

    Raises:
        InvalidArgument: a mean that is negative or not finite, or shapes that do not fit.
    """

    def __init__(
        self,
        entries: Mapping[str, tuple[Any, Any]],
        *,
        datasets: Iterable[str] = (),
        chunk_size: int = 512,
        architecture: tuple[str, int] | None = None,
    ) -> None:
        self._entries = {name: _entry(name, *entry) for name, entry in entries.items()}
        self.datasets = list(datasets)
        if isinstance(chunk_size, bool) or not 0 < int(chunk_size) < 1 << 31:
            raise InvalidArgument(f"chunk_size must be between 1 and 2^31 - 1, got {chunk_size!r}")
        self.chunk_size = chunk_size
        self.architecture = architecture

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __repr__(self) -> str:
        return f"ImportanceMatrix({len(self)} entries, datasets={self.datasets!r})"

    @property
    def names(self) -> list[str]:
        return list(self._entries)

    def mean(self, name: str) -> NDArray[np.float32]:
        """Mean square of each input channel [K], of a stack of experts [experts, K].

        Raises:
            KeyError: no such entry.
        """
        mean = self._entries[name].mean
        return mean[0] if len(mean) == 1 else mean

    def tokens(self, name: str) -> int:
        """Tokens that went into an entry; of a stack of experts those of all experts.

        Raises:
            KeyError: no such entry.
        """
        return int(self._entries[name].counts.sum())

    def of_model(self, model: nn.Module, names: Iterable[str]) -> dict[str, NDArray[np.float32]]:
        """The means [K] of the modules `names` of `model`: {module name: mean}; modules without an
        entry are left out.

        Raises:
            Unsupported: the entries have llama.cpp's names, and the package gguf, which knows whose
                they are, is not installed.
            InvalidArgument: GGUF does not know the model's architecture, or no entry fits.
        """
        names = list(names)
        found = {name: name for name in names if name in self._entries}
        if not found:
            translated = _file_names(names, _architecture(model))
            found = {name: file for name, file in translated.items() if file in self._entries}
        if not found and names:
            raise InvalidArgument(
                f"the importance matrix is not this model's: it has {_some(self.names)}, the "
                f"model's layers are {_some(names)}"
            )
        # Stacks are of fused experts, which are no modules of their own.
        return {
            name: self._entries[file].mean[0]
            for name, file in found.items()
            if len(self._entries[file].mean) == 1 and self._entries[file].counts[0] > 0
        }

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ImportanceMatrix:
        """Read a file of llama.cpp's (llama-imatrix), GGUF or the older `.dat`.

        A `.dat` file does not say how many tokens a chunk has: 512 are assumed, as llama.cpp does;
        the means do not depend on it.

        Raises:
            InvalidArgument: no such file, or it is damaged or of another kind.
        """
        try:
            data = Path(path).read_bytes()
        except (FileNotFoundError, IsADirectoryError) as error:
            raise InvalidArgument(f"importance matrix: no file {os.fspath(path)}") from error
        contents = decode(data, os.fspath(path))
        return cls(
            {name: (entry.mean, entry.counts) for name, entry in contents.entries.items()},
            datasets=contents.datasets,
            chunk_size=contents.chunk_size,
        )

    def save(self, path: str | os.PathLike[str], *, legacy: bool | None = None) -> None:
        """Write a file that llama.cpp reads.

        The file is written beside `path`, flushed to the disk and renamed: if that fails, what was
        there is unchanged.

        Args:
            legacy: write the older format; None does for a path that ends in ".dat".

        Raises:
            Unsupported: the entries have module names, and the package gguf is not installed.
            InvalidArgument: GGUF has no names for these modules.
            OSError: writing failed.
        """
        target = Path(path)
        contents = Contents(self._file_entries(), self.datasets, self.chunk_size)
        legacy = target.suffix == ".dat" if legacy is None else legacy
        data = encode_dat(contents) if legacy else encode_gguf(contents)
        with replace_file(target) as scratch:
            scratch.write_bytes(data)

    def _file_entries(self) -> dict[str, Entry]:
        """The entries by llama.cpp's names."""
        modules = [name for name in self._entries if not name.endswith(_SUFFIX)]
        if not modules:
            return self._entries
        if self.architecture is None:
            raise InvalidArgument(
                "llama.cpp's names of these layers are not known without architecture=(model type, "
                f"number of blocks): {_some(modules)}"
            )
        translated = _file_names(modules, self.architecture)
        entries = {translated.get(name, name): entry for name, entry in self._entries.items()}
        unknown = [name for name in modules if name not in translated]
        if unknown:
            logger.warning("GGUF has no names for %s: they are not saved", _some(unknown))
        kept = {name: entry for name, entry in entries.items() if name not in unknown}
        if not kept:
            raise InvalidArgument(f"GGUF has no names for these layers: {_some(modules)}")
        return kept


def collect_imatrix(
    model: nn.Module,
    dataset: Any = None,
    tokenizer: Any = None,
    *,
    nsamples: int = 16,
    seqlen: int = 512,
    batch_size: int | None = None,
    seed: int = 42,
) -> ImportanceMatrix:
    """Run `model` once over calibration data and note the mean square of each input channel of the
    layers that `woq.quantize` would quantize. The output embedding is not computed.

    Products are bfloat16 where the CPU has them: the statistics need no more.

    Args:
        model: a float transformers model on the CPU.
        dataset, tokenizer: as in `WeightOnlyQuantConfig`.
        nsamples, seqlen, seed: so many samples of so many tokens are drawn from the data.
        batch_size: samples that go through the model at a time; None: about 2,048 tokens.

    Raises:
        InvalidArgument: the data is empty or too short, NaN appears, or there is nothing to
            quantize.
        Unsupported: the data set's library is not installed.
    """
    options = {"nsamples": nsamples, "seqlen": seqlen, "batch_size": batch_size, "seed": seed}
    check_counts("collect_imatrix", options)
    targets = select(model, WeightOnlyQuantConfig())
    if not targets:
        raise InvalidArgument("the model has no layer to collect statistics of")
    batches = calibration_batches(model, dataset, tokenizer, options)
    sums = _Sums()
    dtypes = {target.weight_dtype for target in targets}
    products = product_dtype(model, dtypes, targets[0].module.weight.dtype)
    with (
        for_calibration(model),
        _without_head(model),
        observed_inputs(targets, sums.add),
        torch.no_grad(),
        fast_products(products),
    ):
        for batch in batches:
            with contextlib.suppress(_Done):
                model(**batch)
            sums.next_batch()
    missed = [target.name for target in targets if target.name not in sums.squares]
    if missed:
        logger.warning("no calibration token reached %s: no statistics of them", _some(missed))
    return ImportanceMatrix(
        {
            name: (squares / sums.tokens[name], sums.tokens[name])
            for name, squares in sums.squares.items()
        },
        datasets=[str(dataset)] if isinstance(dataset, (str, os.PathLike)) else [],
        chunk_size=batches[0]["input_ids"].shape[1],
        architecture=_architecture(model),
    )


def with_importance(
    model: nn.Module, config: WeightOnlyQuantConfig, targets: Iterable[Target]
) -> list[Target]:
    """`targets`, each with its importance where the matrix of `config` has an entry for it.

    Raises:
        InvalidArgument: the file is damaged or another model's, or an entry has another length than
            its layer has input features.
        Unsupported: see `ImportanceMatrix.of_model`.
    """
    matrix = config.imatrix
    if not isinstance(matrix, ImportanceMatrix):
        matrix = ImportanceMatrix.load(matrix)
    targets = list(targets)
    means = matrix.of_model(model, [target.name for target in targets])
    for target in targets:
        mean = means.get(target.name)
        if mean is not None and len(mean) != target.shape[1]:
            raise InvalidArgument(
                f"the importance matrix has {len(mean)} channels for {target.name}, the layer has "
                f"{target.shape[1]} input features: it is another model's"
            )
    missing = [target.name for target in targets if target.name not in means]
    if missing:
        logger.warning(
            "the importance matrix has no entry for %s: scales are searched by plain squared error",
            _some(missing),
        )
    return [dataclasses.replace(target, importance=means.get(target.name)) for target in targets]


class _Sums:
    """Sums of squares by layer. Layers that are given the same tensor, one after the other, share
    the work."""

    def __init__(self) -> None:
        self.squares: dict[str, torch.Tensor] = {}  # float64 [K]
        self.tokens: dict[str, int] = {}
        self._batch = 0
        self.next_batch()

    def next_batch(self) -> None:
        self._batch += 1
        self._held: torch.Tensor | None = None

    def add(self, target: Target, x: torch.Tensor) -> None:
        if x is not self._held:
            self._held = x
            self._rows = x.reshape(-1, x.shape[-1])
            self._sum = self._rows.float().square().sum(0).double()
            check_finite(self._sum, f"the input of {target.name}", self._batch - 1)
        if len(self._rows):
            before = self.squares.get(target.name)
            self.squares[target.name] = self._sum if before is None else before + self._sum
            self.tokens[target.name] = self.tokens.get(target.name, 0) + len(self._rows)


class _Done(Exception):
    """Ends a forward pass before the output embedding."""


@contextlib.contextmanager
def _without_head(model: nn.Module) -> Any:
    def stop(module: nn.Module, args: Any) -> None:
        raise _Done

    handles = [
        model.get_submodule(name).register_forward_pre_hook(stop)
        for name in output_embeddings(model)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _entry(name: str, mean: Any, tokens: Any) -> Entry:
    values = np.atleast_2d(np.asarray(mean, dtype=np.float32))
    counts = np.atleast_1d(np.asarray(tokens, dtype=np.int64))
    if values.ndim != 2 or counts.shape != values.shape[:1] or not values.size:
        raise InvalidArgument(
            f"entry {name!r} of the importance matrix has means {list(values.shape)} and tokens "
            f"{list(counts.shape)}, expected [K] and a number"
        )
    if not (np.isfinite(values).all() and (values >= 0).all() and (counts >= 0).all()):
        raise InvalidArgument(
            f"entry {name!r} of the importance matrix is negative or not finite: collect it again"
        )
    return Entry(values, counts)


def _architecture(model: nn.Module) -> tuple[str, int] | None:
    """Model type and number of blocks, None for what is no transformers model."""
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    kind = getattr(config, "model_type", None)
    blocks = getattr(config, "num_hidden_layers", None)
    return (kind, blocks) if isinstance(kind, str) and isinstance(blocks, int) else None


def _file_names(modules: Iterable[str], architecture: tuple[str, int] | None) -> dict[str, str]:
    """llama.cpp's names of modules. A module for which it has no name is left out."""
    if architecture is None:
        raise InvalidArgument(
            "llama.cpp's importance matrices are of models that transformers knows (with a "
            "model_type); for others collect one with woq.collect_imatrix"
        )
    if importlib.util.find_spec("gguf") is None:
        raise Unsupported(
            "llama.cpp's names of layers need the package 'gguf': pip install gguf, or use the "
            "ImportanceMatrix that woq.collect_imatrix returns without saving it"
        )
    import gguf

    kind, blocks = architecture
    wanted = _GGUF_NAMES.get(kind, kind)
    arch = next(
        (key for key, name in gguf.MODEL_ARCH_NAMES.items() if _plain(name) == _plain(wanted)), None
    )
    if arch is None:
        raise InvalidArgument(f"GGUF has no architecture for model type {kind!r}")
    table = gguf.get_tensor_name_map(arch, blocks)
    names = {module: table.get_name(module) for module in modules}
    return {module: name + _SUFFIX for module, name in names.items() if name is not None}


def _plain(name: str) -> str:
    return name.replace("-", "").replace("_", "")


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
