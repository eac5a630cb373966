# SPDX-License-Identifier: Apache-2.0
"""One block of a transformers model with what it is calibrated on, and how exactly it computes."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..core import native, transformers_private
from ..modules.layer import WeightOnlyLinear, dense_products
from ..modules.targets import Target
from .activations import Activations, Call, check_finite, hidden_states
from .attention import FastAttention

__all__ = [
    "Block",
    "LoopedBlock",
    "fast_products",
    "for_calibration",
    "observed_inputs",
    "product_dtype",
]


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
            return hidden_states(self.module(*args, **kwargs))
        transposed = {target.name: target.transposed for target in self.targets}
        parameters = {}
        for name, value in weights.items():
            path = f"{name.removeprefix(self.name + '.')}.weight"
            if self.module.get_parameter(path).dtype == torch.float16:
                value = value.half()  # no product of two dtypes
            parameters[path] = value.t() if transposed[name] else value
        return hidden_states(torch.func.functional_call(self.module, parameters, args, kwargs))

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
        given the very same input tensor (q, k and v; gate and up) share a group. One that is called
        more than once in a forward pass is a group of its own, whose input is that of all calls."""
        if self._found is None:
            self._found = self._find_groups()
        names = {target.name for target in self.targets}
        left = ([target for target in group if target.name in names] for group in self._found)
        return [group for group in left if group]

    def _find_groups(self) -> list[list[Target]]:
        # A batch reaches some experts of a mixture only, so each batch is observed for the targets
        # that no batch before it reached. Groups are in the order of the calls: first those of the
        # first batch, then what later batches add.
        groups: list[list[Target]] = []
        reached: set[str] = set()
        for index in range(len(self)):
            missing = [target for target in self.targets if target.name not in reached]
            if not missing:
                break
            found = self._groups_of(index, missing)
            groups += found
            reached.update(target.name for group in found for target in group)
        return groups

    def _groups_of(self, index: int, targets: Sequence[Target]) -> list[list[Target]]:
        """The groups of those `targets` that batch `index` reaches."""
        calls: list[tuple[Target, torch.Tensor]] = []  # inputs held, so that no address comes twice
        with (
            observed_inputs(targets, lambda target, x: calls.append((target, x))),
            torch.no_grad(),
            self.fast_products(),
        ):
            self.run(index)
        counts = Counter(target.name for target, _ in calls)
        groups: dict[int | str, list[Target]] = {}  # by the input's id, or the name of a lone one
        for target, x in calls:
            if counts[target.name] == 1:
                groups.setdefault(id(x), []).append(target)
            else:
                groups[target.name] = [target]
        return list(groups.values())


@dataclasses.dataclass
class LoopedBlock(Block):
    """A block that the model calls more than once in a forward pass. `module` is the whole model,
    which is what runs; `inputs` are its input_ids, and `calls` its other arguments."""

    def run(
        self,
        index: int,
        hidden: torch.Tensor | None = None,
        weights: Mapping[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Runs the model on batch `index`; what it gives is of no use to a block's caller."""
        assert hidden is None
        assert not weights
        ids = self.inputs[index]
        args, kwargs = self.calls[index].arguments(ids)
        self.module(*args, **kwargs)
        return ids


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
    """Evaluation mode, no key-value caches, no gradients of parameters; afterwards as before.

    Configs are marked as those of a quantized model: some models (Jamba, Falcon-Mamba) call a layer
    only then, and else read its weight, which a block that is quantized in part has no more.
    """
    training = [module for module in model.modules() if module.training]
    grads = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found: Iterator[Any] = (getattr(module, "config", None) for module in model.modules())
    configs = {id(config): config for config in found}.values()
    cached = [config for config in configs if getattr(config, "use_cache", False)]
    unmarked = [
        config
        for config in configs
        if hasattr(config, "to_diff_dict") and not transformers_private.is_config_quantized(config)
    ]
    try:
        model.eval()
        for parameter in grads:
            parameter.requires_grad_(False)
        for config in cached:
            config.use_cache = False
        for config in unmarked:
            transformers_private.mark_config_quantized(config)
        yield
    finally:
        for module in training:
            module.training = True
        for parameter in grads:
            parameter.requires_grad_(True)
        for config in cached:
            config.use_cache = True
        for config in unmarked:
            transformers_private.unmark_config_quantized(config)
