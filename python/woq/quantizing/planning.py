# SPDX-License-Identifier: Apache-2.0
"""Automatic mixed precision: which layers deserve more bits, for a given average.

What a candidate costs is the rise of the model's loss that it predicts, to second order. For a
layer's outputs y [tokens, N] and their rounding errors dy,

    KL(p, p_quantized) = 1/2 sum over n of F_n E[dy_n^2]
    F_n = sum over tokens of (d log p(label) / d y_n)^2, per token, labels drawn from the model
    E[dy_n^2] = (d H d^T / 2)_nn for d = W - Q and the inputs' second moments H = 2 E[x x^T]

that is the diagonal of the Fisher matrix of the layer's outputs (the loss's second derivative where
the labels are the model's own) times the errors that the Hessian gives. Costs of layers add up.
"""

from __future__ import annotations

import copy
import dataclasses
import heapq
import logging
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..algorithms.rtn import round_to_nearest
from ..algorithms.shared.finished import stored_extras
from ..config.quant_config import WeightOnlyQuantConfig
from ..core import native
from ..core.units import parse_bytes
from ..formats.stored_tensors import stored_specs
from ..modules.targets import Target, linear_parameters, matches, overridden, select
from ..observe.block import Block, for_calibration, observed_inputs
from ..observe.moments import input_rows, moments
from ..observe.samples import calibration_batches, check_counts
from ..observe.walk import walk

__all__ = ["LayerChoice", "LayerPlan", "choose", "plan_layer_config", "stored_bits"]

logger = logging.getLogger("woq")

_GROUP_SIZES = (16, 32, 64, 128)
_FLOAT_BITS = 16.0

Rule = dict[str, Any] | None


@dataclasses.dataclass(frozen=True)
class LayerChoice:
    """What was chosen for one layer."""

    name: str
    shape: tuple[int, int]  # [out_features, in_features]
    settings: Rule  # of `layer_config`; {}: those of the config
    bits: float  # stored for each weight
    relative_error: float  # tr(D H D^T) / tr(W H W^T) of rounding to nearest
    cost: float  # predicted KL divergence, nats per token


class LayerPlan(dict[str, Rule]):
    """A `layer_config`: {name: settings}. `print(plan)` gives a table."""

    def __init__(
        self,
        rules: Mapping[str, Rule],
        choices: Sequence[LayerChoice],
        uniform: Sequence[tuple[str, float, float]],
    ) -> None:
        super().__init__(rules)
        self.choices = list(choices)
        self.uniform = list(uniform)  # (settings, average bits, cost) of one candidate for all

    @property
    def average_bits(self) -> float:
        """Stored bits for each weight of the layers that were planned."""
        weights = sum(math.prod(choice.shape) for choice in self.choices)
        bits = sum(choice.bits * math.prod(choice.shape) for choice in self.choices)
        return bits / weights if weights else 0.0

    @property
    def cost(self) -> float:
        """Predicted KL divergence to the float model, nats per token, of rounding to nearest."""
        return sum(choice.cost for choice in self.choices)

    def __str__(self) -> str:
        names = [text for text, _, _ in self.uniform]
        kinds: dict[str, list[LayerChoice]] = {}
        for choice in self.choices:
            kinds.setdefault(choice.name.rpartition(".")[2], []).append(choice)
        rows = [["layers", "count", "bits", "KL", *(f"({i})" for i in range(1, len(names) + 1))]]
        for kind, chosen in sorted(kinds.items()):
            weights = sum(math.prod(choice.shape) for choice in chosen)
            bits = sum(choice.bits * math.prod(choice.shape) for choice in chosen) / weights
            taken = Counter(_text(choice.settings) for choice in chosen)
            cost = sum(choice.cost for choice in chosen)
            counts = [str(taken[name] or "") for name in names]
            rows.append([kind, str(len(chosen)), f"{bits:.2f}", f"{cost:.4f}", *counts])
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            f"{len(self.choices)} layers, {self.average_bits:.3f} bits a weight, predicted KL "
            f"{self.cost:.4f}"
        ]
        for row in rows:
            first = row[0].ljust(widths[0])
            rest = [cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)]
            lines.append("  ".join([first, *rest]).rstrip())
        for number, (name, bits, cost) in enumerate(self.uniform, 1):
            lines.append(f"({number}) {name}: {bits:.3f} bits, KL {cost:.4f} for all layers")
        return "\n".join(lines)


def plan_layer_config(
    model: nn.Module,
    config: WeightOnlyQuantConfig | None = None,
    *,
    average_bits: float = 4.5,
    candidates: Sequence[Mapping[str, Any] | None] | None = None,
    dataset: Any = None,
    tokenizer: Any = None,
    nsamples: int = 32,
    seqlen: int = 512,
    batch_size: int | None = None,
    gradient_samples: int = 8,
    seed: int = 42,
) -> LayerPlan:
    """Choose settings for each layer: the least predicted loss within `average_bits` a weight.

    The result is a `layer_config` for `config`; `model` stays as it is:

        config.layer_config = woq.plan_layer_config(model, config, average_bits=4.5, dataset=texts)
        woq.quantize(model, config)

    Costs are those of rounding to nearest, whatever the config's algorithm. Layers that the data
    does not reach keep the config's settings. Layers that a rule of `config.layer_config` names
    keep that rule. In memory: the model, its activations for one sample with
    gradients, and one block's Hessians.

    Args:
        model: a float transformers model with logits, on the CPU.
        config: the settings that candidates change; default: `WeightOnlyQuantConfig()`.
        average_bits: stored bits for each weight of the layers to quantize: codes, scales (16 or 32
            bits as `scale_dtype` says) and zero points.
        candidates: settings as in `layer_config`; {} are the config's own, None is floating point
            (16 bits). Default: the config's dtype in groups of 16 to 128, and int8.
        dataset, tokenizer: calibration data, as in `WeightOnlyQuantConfig`; default: the config's.
        nsamples, seqlen, batch_size, seed: the samples of it that are used.
        gradient_samples: how many of them are also run backwards.

    Raises:
        InvalidArgument: a candidate is none, the budget is below the cheapest candidates, the
            model has no logits or no layer to quantize, or the data is of no use.
    """
    config = WeightOnlyQuantConfig() if config is None else config
    config.validate()
    config = config.canonical()
    if (
        isinstance(average_bits, bool)
        or not isinstance(average_bits, (int, float))
        or not 0 < average_bits < math.inf
    ):
        raise native.InvalidArgument(f"average_bits must be a number above 0, got {average_bits}")
    if gradient_samples < 1:
        raise native.InvalidArgument(f"gradient_samples must be 1 or more, got {gradient_samples}")
    rules = _candidates(config, candidates)
    targets = select(model, config)
    if not targets:
        raise native.InvalidArgument("the model has no linear layer that the config selects")
    given = {"nsamples": nsamples, "seqlen": seqlen, "batch_size": batch_size, "seed": seed}
    check_counts("plan_layer_config", given)
    batches = calibration_batches(
        model,
        config.dataset if dataset is None else dataset,
        config.tokenizer if tokenizer is None else tokenizer,
        given,
    )
    with torch.inference_mode(False), for_calibration(model):
        fisher = _fisher(model, batches, targets, gradient_samples, seed)
        measured = _measured(model, config, targets, batches, fisher, rules)
    return _planned(config, targets, rules, measured, average_bits)


def stored_bits(
    shape: tuple[int, int],
    scheme: native.QuantScheme,
    config: WeightOnlyQuantConfig | None = None,
) -> float:
    """Stored bits for each weight of a [N, K] matrix in `scheme`, with what the algorithm of
    `config` stores besides."""
    rows, cols = shape
    extras = {} if config is None else stored_extras(config)
    specs = stored_specs(scheme, rows, cols, **extras).values()
    return 8 * sum(math.prod(size) * dtype.itemsize for size, dtype in specs) / (rows * cols)


def choose(
    sizes: Sequence[int], options: Sequence[Sequence[tuple[float, float]]], budget: float
) -> list[int]:
    """The option of each layer: least sum of costs with sum of sizes * bits <= budget.

    Steps along the lower convex hull of each layer's (bits, cost), the one with the largest gain
    per bit first; a step that does not fit ends its layer's. Optimal whenever the steps fill the
    budget exactly; else within the gain of the first step that did not fit.

    Raises:
        InvalidArgument: not even the cheapest options fit.
    """
    hulls = [_hull(each) for each in options]
    chosen = [0] * len(hulls)
    left = budget - sum(s * each[h[0]][0] for s, each, h in zip(sizes, options, hulls, strict=True))
    total = sum(sizes)
    if left < -1e-9 * budget:
        raise native.InvalidArgument(
            f"{budget / total:.4g} bits a weight are not enough: the smallest candidates take "
            f"{(budget - left) / total:.4g}; raise average_bits, or add larger group sizes"
        )
    steps: list[tuple[float, int, float]] = []  # (-gain per bit, layer, bits)

    def push(layer: int) -> None:
        hull, place = hulls[layer], chosen[layer]
        if place + 1 < len(hull):
            (bits, cost), (more, less) = (options[layer][i] for i in hull[place : place + 2])
            size = sizes[layer] * (more - bits)
            heapq.heappush(steps, ((less - cost) / size, layer, size))

    for layer in range(len(hulls)):
        push(layer)
    while steps:
        _, layer, size = heapq.heappop(steps)
        if size <= left + 1e-9 * budget:
            left -= size
            chosen[layer] += 1
            push(layer)
    return [hull[place] for hull, place in zip(hulls, chosen, strict=True)]


def _hull(options: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the lower convex hull of (bits, cost), by ascending bits and falling cost."""
    hull: list[int] = []
    for i in sorted(range(len(options)), key=lambda i: options[i]):
        bits, cost = options[i]
        if hull and cost >= options[hull[-1]][1]:
            continue
        while len(hull) > 1:
            (x0, y0), (x1, y1) = options[hull[-2]], options[hull[-1]]
            if (y1 - y0) * (bits - x0) < (cost - y0) * (x1 - x0):
                break
            hull.pop()
        if hull and options[hull[-1]][0] == bits:
            hull.pop()
        hull.append(i)
    return hull


def _candidates(
    config: WeightOnlyQuantConfig, given: Sequence[Mapping[str, Any] | None] | None
) -> list[Rule]:
    """The candidates in the canonical form of rules, without repetitions."""
    if given is None:
        sizes = sorted({*_GROUP_SIZES, config.group_size})
        own: list[Mapping[str, Any] | None] = [{"group_size": size} for size in sizes]
        given = [*own, *({"weight_dtype": "int8", "group_size": size} for size in (32, 128))]
    if not given:
        raise native.InvalidArgument("candidates must not be empty")
    trial = copy.deepcopy(config)
    trial.layer_config = {str(number): rule for number, rule in enumerate(given)}  # type: ignore[misc]
    try:
        trial.validate()
    except native.InvalidArgument as error:
        message = str(error).replace("WeightOnlyQuantConfig.layer_config", "candidates")
        raise native.InvalidArgument(message) from error
    found: list[Rule] = []
    for rule in trial.layer_config.values():
        if rule not in found:
            found.append(rule)
    return found


def _text(rule: Rule) -> str:
    if rule is None:
        return "float"
    return ", ".join(f"{name}={value}" for name, value in rule.items()) or "as the config"


def _fisher(
    model: nn.Module,
    batches: Sequence[Mapping[str, torch.Tensor]],
    targets: Sequence[Target],
    samples: int,
    seed: int,
) -> dict[str, torch.Tensor]:
    """F [N] of each target that gradients reach."""
    sums: dict[str, torch.Tensor] = {}
    anchor = torch.zeros((), requires_grad=True)

    def hook(name: str) -> Any:
        def add(gradient: torch.Tensor) -> None:
            squares = gradient.reshape(-1, gradient.shape[-1]).double().square().sum(0)
            sums[name] = sums[name] + squares if name in sums else squares

        def watch(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
            # No parameter asks for gradients: the first layers' outputs start the graph.
            output = output if output.requires_grad else output + anchor
            output.register_hook(add)
            return output

        return watch

    generator = torch.Generator().manual_seed(seed)
    handles = [target.module.register_forward_hook(hook(target.name)) for target in targets]
    tokens = done = 0
    try:
        with torch.enable_grad():
            for batch in batches:
                for row in range(len(next(iter(batch.values())))):
                    if done == samples:
                        break
                    logits = _logits(model, {k: v[row : row + 1] for k, v in batch.items()})
                    labels = torch.multinomial(
                        logits.detach().softmax(-1), 1, generator=generator
                    ).squeeze(-1)
                    torch.nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
                    tokens += len(logits)
                    done += 1
    finally:
        for handle in handles:
            handle.remove()
    return {name: total / tokens for name, total in sums.items()}


def _logits(model: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """[tokens, vocabulary]"""
    logits = getattr(model(**batch), "logits", None)
    if not isinstance(logits, torch.Tensor):
        raise native.InvalidArgument(
            f"{type(model).__name__} has no logits: sensitivities are those of its predictions; "
            "pass the model with its head (AutoModelForCausalLM, ...)"
        )
    return logits.reshape(-1, logits.shape[-1]).float()


_Costs = list[tuple[float, float]]  # a layer's (relative error, cost) of each rule


def _measured(
    model: nn.Module,
    config: WeightOnlyQuantConfig,
    targets: Sequence[Target],
    batches: Sequence[Mapping[str, torch.Tensor]],
    fisher: Mapping[str, torch.Tensor],
    rules: Sequence[Rule],
) -> dict[str, _Costs]:
    """Relative error and cost of each candidate, for the targets that the data reaches."""
    open_ = [
        target for target in targets if target.name in fisher and not _is_ruled(config, target.name)
    ]
    measured: dict[str, _Costs] = {}

    def note(target: Target, hessian: Any) -> None:
        measured[target.name] = _costs(target, config, hessian, fisher[target.name], rules)

    def visit(block: Block) -> None:
        groups = block.groups()
        for group, seen in zip(groups, moments(block, groups), strict=True):
            for target in group:
                note(target, seen.hessian)
        logger.info("planning: %s (%d layers) measured", block.name, len(block.targets))

    walk(
        model,
        batches,
        open_,
        visit,
        limit=parse_bytes(config.activation_memory, "activation_memory"),
        dtypes={target.weight_dtype for target in targets},
    )
    for target in open_:
        if target.name not in measured:  # outside of the blocks, as an output embedding is
            note(target, _hessian_outside(model, target, batches))
    return measured


def _is_ruled(config: WeightOnlyQuantConfig, name: str) -> bool:
    return matches(name, config.layer_config)


def _hessian_outside(
    model: nn.Module, target: Target, batches: Sequence[Mapping[str, torch.Tensor]]
) -> Any:
    hessian = native.Hessian(target.shape[1], target.name)

    def add(_: Target, x: torch.Tensor) -> None:
        hessian.add(input_rows(x), torch.get_num_threads())

    with observed_inputs([target], add), torch.no_grad():
        for batch in batches:
            model(**batch)
    return hessian


def _costs(
    target: Target,
    config: WeightOnlyQuantConfig,
    hessian: Any,
    fisher: torch.Tensor,
    rules: Sequence[Rule],
) -> _Costs:
    moment = torch.from_numpy(hessian.numpy()).float() / 2  # E[x x^T]
    weight = linear_parameters(target.module).float()

    def squares(rows: torch.Tensor) -> torch.Tensor:
        """E[(row x)^2] for rows [N, K]."""
        return ((rows @ moment) * rows).sum(1).double().clamp(min=0)

    power = float(squares(weight).sum())
    found = []
    for rule in rules:
        if rule is None:
            found.append((0.0, 0.0))
            continue
        trial = dataclasses.replace(target, scheme=overridden(target.scheme, rule))
        matrix = round_to_nearest(weight, config, trial)
        errors = squares(weight - torch.from_numpy(matrix.dequantize()))
        relative = float(errors.sum()) / power if power else 0.0
        found.append((relative, 0.5 * float((fisher * errors).sum())))
    return found


def _planned(
    config: WeightOnlyQuantConfig,
    targets: Sequence[Target],
    rules: Sequence[Rule],
    measured: Mapping[str, _Costs],
    average_bits: float,
) -> LayerPlan:
    def bits(target: Target, rule: Rule) -> float:
        if rule is None:
            return _FLOAT_BITS
        return stored_bits(target.shape, overridden(target.scheme, rule), config)

    sizes = [math.prod(target.shape) for target in targets]
    own: list[list[Rule]] = [list(rules) if target.name in measured else [{}] for target in targets]
    results = [measured.get(target.name, [(math.nan, 0.0)]) for target in targets]
    options = [
        [(bits(target, rule), cost) for rule, (_, cost) in zip(mine, found, strict=True)]
        for target, mine, found in zip(targets, own, results, strict=True)
    ]
    picked = choose(sizes, options, average_bits * sum(sizes))
    choices = [
        LayerChoice(target.name, target.shape, mine[i], each[i][0], found[i][0], each[i][1])
        for target, mine, each, found, i in zip(targets, own, options, results, picked, strict=True)
    ]
    uniform = []
    for number, rule in enumerate(rules):
        places = [number if len(mine) > 1 or len(rules) == 1 else 0 for mine in own]
        total = sum(s * each[i][0] for s, each, i in zip(sizes, options, places, strict=True))
        cost = sum(each[i][1] for each, i in zip(options, places, strict=True))
        uniform.append((_text(rule), total / sum(sizes), cost))
    chosen = {
        re.escape(choice.name) + "$": choice.settings
        for choice, target in zip(choices, targets, strict=True)
        if choice.settings is None or overridden(target.scheme, choice.settings) != target.scheme
    }
    plan = LayerPlan({**config.layer_config, **chosen}, choices, uniform)
    logger.info("%s", plan)
    return plan
