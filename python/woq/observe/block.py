# SPDX-License-Identifier: Apache-2.0
"""A transformers model taken apart into the blocks that it runs one after the other.

Blocks are found, not listed by architecture: the elements of the outermost `ModuleList`s that hold
layers to quantize. One observed forward pass says in which order they are called and whether the
output of each is the input of the next; such a chain is replayed block by block, on inputs that the
quantized prefix produced, without the rest of the model. Where the chain breaks (a second stack, an
encoder's end) the model runs again up to there.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..core import native
from ..modules.layer import WeightOnlyLinear, dense_products
from ..modules.targets import Target
from .attention import FastAttention

__all__ = [
    "Activations",
    "Batch",
    "Block",
    "Call",
    "Segment",
    "capture",
    "fast_products",
    "for_calibration",
    "product_dtype",
    "segments",
]

logger = logging.getLogger("woq")

Batch = Mapping[str, torch.Tensor]


class Activations:
    """A tensor for each calibration batch, in memory or, beyond `limit` bytes, in a file.

    The file is mapped: the system writes pages out and takes them back as it needs memory. It lies
    in the temporary folder (TMPDIR) and is deleted with the object.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._tensors: list[torch.Tensor] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __len__(self) -> int:
        return len(self._tensors)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self._tensors[index]

    @property
    def offloaded(self) -> bool:
        return self._folder is not None

    def append(self, value: torch.Tensor) -> None:
        size = value.numel() * value.element_size()
        self._used += size
        if self._used <= self._limit or not size:
            self._tensors.append(value.detach().clone())
            return
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="woq-activations-")
            logger.info("activations beyond %d MiB go to %s", self._limit >> 20, self._folder.name)
        path = os.path.join(self._folder.name, f"{len(self._tensors)}")
        mapped = torch.from_file(path, shared=True, size=value.numel(), dtype=value.dtype)
        mapped = mapped.view(value.shape)
        mapped.copy_(value.detach())
        self._tensors.append(mapped)

    def replace(self, index: int, value: torch.Tensor) -> None:
        """Put `value`, of the same shape (as a block's output has), in the place of `index`."""
        self._tensors[index].copy_(value.detach())

    def copy(self) -> Activations:
        other = Activations(self._limit)
        for tensor in self._tensors:
            other.append(tensor)
        return other

    def close(self) -> None:
        self._tensors.clear()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


@dataclasses.dataclass(frozen=True)
class Call:
    """The arguments of a block besides its hidden states: attention mask, position embeddings,
    cross-attention states ..."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    keyword: str | None  # name under which the hidden states are passed, None: they come first

    def arguments(self, hidden: torch.Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if self.keyword is None:
            return (hidden, *self.args), self.kwargs
        return self.args, {**self.kwargs, self.keyword: hidden}


@dataclasses.dataclass
class Block:
    """One block with what it is calibrated on.

    `inputs` are the hidden states [batch, seqlen, hidden] that the quantized prefix produces;
    `references` the block's float outputs on the inputs of the float model, where the algorithm
    asked for them. `original`, if that was asked for, outlives the replacement of layers.
    `products` is what `product_dtype` gave before any layer was replaced.
    """

    name: str
    module: nn.Module
    targets: list[Target]
    calls: list[Call]
    inputs: Activations
    products: torch.dtype | None = None
    references: Activations | None = None
    original: Block | None = None  # the float block, on the float model's inputs
    _found: list[list[Target]] | None = None  # groups() of the targets that there were first

    def __len__(self) -> int:
        return len(self.calls)

    def copy(self, inputs: Activations) -> Block:
        """A copy of the module as it is now, on other inputs."""
        module = copy.deepcopy(self.module)
        targets = [
            dataclasses.replace(
                target, module=module.get_submodule(target.name.removeprefix(f"{self.name}."))
            )
            for target in self.targets
        ]
        return Block(self.name, module, targets, self.calls, inputs, self.products)

    @contextlib.contextmanager
    def fast_products(self) -> Iterator[None]:
        """`fast_products`, of the layers that are quantized already, too."""
        if self.products is None:
            yield
            return
        with fast_products(self.products), dense_products(self.module, self.products):
            yield

    def run(
        self,
        index: int,
        hidden: torch.Tensor | None = None,
        weights: Mapping[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """The hidden states after the block for batch `index`.

        Args:
            hidden: the input; default: `inputs[index]`.
            weights: weights [N, K] to use for some targets, by the target's name.
        """
        hidden = self.inputs[index] if hidden is None else hidden
        args, kwargs = self.calls[index].arguments(hidden)
        if not weights:
            return _hidden_states(self.module(*args, **kwargs))
        transposed = {target.name: target.transposed for target in self.targets}
        parameters = {}
        for name, value in weights.items():
            path = f"{name.removeprefix(self.name + '.')}.weight"
            if self.module.get_parameter(path).dtype == torch.float16:
                value = value.half()  # no product of two dtypes
            parameters[path] = value.t() if transposed[name] else value
        return _hidden_states(torch.func.functional_call(self.module, parameters, args, kwargs))

    @torch.no_grad()
    def advance(self, states: Activations) -> None:
        """Replace the inputs `states` of the block by its outputs, batch by batch."""
        with self.fast_products():
            for index in range(len(self)):
                output = self.run(index, states[index])
                check_finite(output, f"the output of {self.name}", index)
                states.replace(index, output)

    def groups(self) -> list[list[Target]]:
        """The targets that the calibration reaches, in the order of their calls. Targets that are
        given the very same input tensor (q, k and v; gate and up) share a group."""
        if self._found is None:
            self._found = self._find_groups()
        names = {target.name for target in self.targets}
        left = ([target for target in group if target.name in names] for group in self._found)
        return [group for group in left if group]

    def _find_groups(self) -> list[list[Target]]:
        seen: list[torch.Tensor] = []  # held, so that no address is used twice
        groups: list[list[Target]] = []

        def observe(target: Target, x: torch.Tensor) -> None:
            for held, group in zip(seen, groups, strict=True):
                if held is x:
                    group.append(target)
                    return
            seen.append(x)
            groups.append([target])

        # A batch reaches some experts of a mixture only, so each batch is observed for the targets
        # that no batch before it reached. Groups are in the order of the calls: first those of the
        # first batch, then what later batches add.
        reached: set[str] = set()
        for index in range(len(self)):
            missing = [target for target in self.targets if target.name not in reached]
            if not missing:
                break
            before = len(seen)
            with observed_inputs(missing, observe), torch.no_grad(), self.fast_products():
                self.run(index)
            reached.update(target.name for group in groups for target in group)
            del seen[before:]
            seen.extend(torch.empty(0) for _ in range(len(groups) - before))
        return groups


@contextlib.contextmanager
def observed_inputs(targets: Sequence[Target], observe: Any) -> Iterator[None]:
    """Within it, `observe(target, x)` is called with each input x [..., K] that a target gets."""

    def hook(target: Target) -> Any:
        return lambda module, args: observe(target, args[0])

    handles = [target.module.register_forward_pre_hook(hook(target)) for target in targets]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclasses.dataclass
class Segment:
    """Blocks whose outputs are the next one's inputs: [(name, module), ...] in calling order."""

    blocks: list[tuple[str, nn.Module]]


def _hidden_states(output: Any) -> torch.Tensor:
    hidden = output[0] if isinstance(output, (tuple, list)) else output
    if not isinstance(hidden, torch.Tensor):
        raise native.Unsupported(f"a block returned {type(output).__name__}, not hidden states")
    return hidden


def _candidates(model: nn.Module, targets: Sequence[Target]) -> list[tuple[str, nn.Module]]:
    """Elements of the outermost ModuleLists that hold targets, in the model's order."""
    found: list[tuple[str, nn.Module]] = []

    def visit(name: str, module: nn.Module) -> None:
        prefix = f"{name}." if name else ""
        if isinstance(module, nn.ModuleList):
            if any(target.name.startswith(prefix) for target in targets):
                found.extend((prefix + child, block) for child, block in module.named_children())
            return
        for child, inner in module.named_children():
            visit(prefix + child, inner)

    visit("", model)
    return found


class _Stop(Exception):
    """Ends a forward pass when the last block of interest has been called."""


class _Recorder:
    """Hooks that note the calls of blocks during forward passes."""

    def __init__(self, blocks: Sequence[tuple[str, nn.Module]], stop_after: str | None) -> None:
        self.calls: dict[str, list[Call]] = {name: [] for name, _ in blocks}
        self.inputs: list[tuple[str, torch.Tensor]] = []  # of this forward pass
        self.outputs: dict[str, torch.Tensor] = {}
        self.stop_before: str | None = None
        self._stop_after = stop_after
        self._handles = []
        for name, module in blocks:
            self._handles += [
                module.register_forward_pre_hook(self._before(name), with_kwargs=True),
                module.register_forward_hook(self._after(name)),
            ]

    def _before(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            kwargs = dict(kwargs)
            keyword = None
            if args:
                hidden, args = args[0], args[1:]
            else:
                keyword = next(
                    (key for key, value in kwargs.items() if isinstance(value, torch.Tensor)), ""
                )
                hidden = kwargs.pop(keyword, None)
            if not isinstance(hidden, torch.Tensor):
                raise native.Unsupported(f"{name} is not called with hidden states")
            self.inputs.append((name, hidden))
            if name == self.stop_before:
                raise _Stop
            previous = self.calls[name][:1]
            self.calls[name].append(
                Call(
                    _shared(args, previous[0].args if previous else None),
                    _shared(kwargs, previous[0].kwargs if previous else None),
                    keyword,
                )
            )

        return hook

    def _after(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self.outputs[name] = _hidden_states(output)
            if name == self._stop_after:
                raise _Stop

        return hook

    def constant(self) -> bool:
        """Whether the second batch had the same arguments (hidden states apart) as the first."""
        return all(_identical(calls[0], calls[1]) for calls in self.calls.values())

    def forget(self) -> None:
        self.inputs.clear()
        self.outputs.clear()

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()


def _shared(value: Any, previous: Any) -> Any:
    """`value`, with tensors that equal those of the previous batch replaced by them: masks and
    position embeddings are the same for all batches, and are then kept once."""
    if isinstance(value, torch.Tensor):
        same = (
            isinstance(previous, torch.Tensor)
            and value.dtype == previous.dtype
            and value.shape == previous.shape
            and torch.equal(value, previous)
        )
        return previous if same else value
    if isinstance(value, dict):
        earlier = previous if isinstance(previous, dict) else {}
        return {key: _shared(item, earlier.get(key)) for key, item in value.items()}
    if type(value) in (tuple, list):
        items = previous if isinstance(previous, (tuple, list)) else ()
        padded = [*items, *([None] * len(value))]
        return type(value)(_shared(item, padded[i]) for i, item in enumerate(value))
    return value


def _identical(a: Any, b: Any) -> bool:
    """Whether `_shared` has made every tensor in b the one in a."""
    if isinstance(a, torch.Tensor):
        return a is b
    if isinstance(a, Call):
        return _identical((a.args, a.kwargs), (b.args, b.kwargs))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_identical(a[key], b[key]) for key in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(_identical, a, b))
    return a is b or bool(a == b)


def _shapes(batch: Batch) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in batch.items()}


def _forward(model: nn.Module, batch: Batch) -> None:
    with torch.no_grad(), contextlib.suppress(_Stop):
        model(**batch)


def segments(model: nn.Module, batch: Batch, targets: Sequence[Target]) -> list[Segment]:
    """Which blocks `model` runs, in what order, as seen in one forward pass over `batch`.

    A block that is called more than once in a pass (shared layers) is left out.
    """
    blocks = _candidates(model, targets)
    modules = dict(blocks)
    recorder = _Recorder(blocks, None)
    found: list[Segment] = []
    try:
        _forward(model, batch)
        previous = None
        for name, hidden in recorder.inputs:
            if len(recorder.calls[name]) != 1:
                previous = None
                continue
            chained = previous is not None and recorder.outputs.get(previous) is hidden
            if not chained:
                found.append(Segment([]))
            found[-1].blocks.append((name, modules[name]))
            previous = name
    finally:
        recorder.close()
    return found


def capture(
    model: nn.Module, batches: Sequence[Batch], segment: Segment, limit: int
) -> tuple[dict[str, list[Call]], Activations]:
    """The calls of a segment's blocks for every batch, and the inputs of its first block.

    Raises:
        InvalidArgument: hidden states with NaN or Inf.
    """
    first, last = segment.blocks[0][0], segment.blocks[-1][0]
    recorder = _Recorder(segment.blocks, last)
    inputs = Activations(limit)
    try:
        for number, batch in enumerate(batches):
            # Arguments that were the same for two batches don't depend on the tokens: later batches
            # need not run through the blocks for them.
            known = number > 1 and recorder.constant() and _shapes(batch) == _shapes(batches[0])
            recorder.stop_before = first if known else None
            _forward(model, batch)
            if known:
                for calls in recorder.calls.values():
                    calls.append(calls[0])
            name, hidden = recorder.inputs[0]
            assert name == first
            check_finite(hidden, f"the input of {first}", number)
            inputs.append(hidden)
            recorder.forget()
    except BaseException:
        inputs.close()
        raise
    finally:
        recorder.close()
    return recorder.calls, inputs


def check_finite(hidden: torch.Tensor, what: str, batch: int) -> None:
    if not bool(torch.isfinite(hidden).all()):
        raise native.InvalidArgument(
            f"{what} has NaN or infinite values in calibration batch {batch}: the model's weights "
            "or the calibration data are damaged, or its dtype overflows (try float32)"
        )


def product_dtype(
    module: nn.Module, weight_dtypes: Iterable[str], states: torch.dtype
) -> torch.dtype | None:
    """What `fast_products` multiplies in while `module` is calibrated, or None: as the module does.

    bfloat16 where the CPU has products of it. They are faster, and their rounding (2^-8) is small
    beside that of 4-bit weights. It is not small beside that of 8-bit weights, so blocks with those
    are left alone. So are blocks in float16: float16 plus bfloat16 is float32, which a float16 norm
    doesn't take.

    Args:
        weight_dtypes: the dtypes that the layers are to have.
        states: dtype of the hidden states.
    """
    dtypes = {*weight_dtypes, *_quantized_dtypes(module)}
    floats = {states, *(parameter.dtype for parameter in module.parameters())}
    if not native.has_bf16_products() or "int8" in dtypes or torch.float16 in floats:
        return None
    return torch.bfloat16


def _quantized_dtypes(module: nn.Module) -> set[str]:
    layers = (layer for layer in module.modules() if isinstance(layer, WeightOnlyLinear))
    return {layer.scheme.dtype for layer in layers}


@contextlib.contextmanager
def fast_products(dtype: torch.dtype | None) -> Iterator[None]:
    """Within it, float layers and attention multiply in `dtype`, which `product_dtype` gave."""
    if dtype is None:
        yield
        return
    with torch.autocast("cpu", dtype=dtype, cache_enabled=False), FastAttention():
        yield


@contextlib.contextmanager
def for_calibration(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no key-value caches, no gradients of parameters; afterwards as before."""
    training = [module for module in model.modules() if module.training]
    grads = [parameter for parameter in model.parameters() if parameter.requires_grad]
    configs: dict[int, Any] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if getattr(config, "use_cache", False):
            configs[id(config)] = config
    try:
        model.eval()
        for parameter in grads:
            parameter.requires_grad_(False)
        for config in configs.values():
            config.use_cache = False
        yield
    finally:
        for module in training:
            module.training = True
        for parameter in grads:
            parameter.requires_grad_(True)
        for config in configs.values():
            config.use_cache = True
