# SPDX-License-Identifier: Apache-2.0
"""A transformers model taken apart into the blocks that it runs one after the other.

Blocks are found, not listed by architecture: the elements of the outermost `ModuleList`s that hold
layers to quantize. One observed forward pass says in which order they are called and whether the
output of each is the input of the next; such a chain is replayed block by block, on inputs that the
quantized prefix produced, without the rest of the model. Where the chain breaks (a second stack, an
encoder's end) the model runs again up to there. A block that is called more than once in a pass
(ALBERT's) can be observed only while the whole model runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..core import native
from ..modules.targets import Target
from .activations import Activations, Call, check_finite, hidden_states

__all__ = ["Batch", "Segment", "capture", "segments"]

Batch = Mapping[str, torch.Tensor]


@dataclasses.dataclass
class Segment:
    """Blocks whose outputs are the next one's inputs: [(name, module), ...] in calling order; or,
    `looped`, one block that is called more than once in a forward pass."""

    blocks: list[tuple[str, nn.Module]]
    looped: bool = False


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
            self.outputs[name] = hidden_states(output)
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
    """Which blocks `model` runs, in what order, as seen in one forward pass over `batch`."""
    blocks = _candidates(model, targets)
    modules = dict(blocks)
    recorder = _Recorder(blocks, None)
    found: list[Segment] = []
    looped: set[str] = set()
    try:
        _forward(model, batch)
        previous = None
        for name, hidden in recorder.inputs:
            if len(recorder.calls[name]) != 1:
                previous = None
                if name not in looped:
                    looped.add(name)
                    found.append(Segment([(name, modules[name])], looped=True))
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
