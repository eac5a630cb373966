# SPDX-License-Identifier: Apache-2.0
"""`woq.quantize(model, config)`: replace the linear layers of any torch model, one at a time."""

from __future__ import annotations

import dataclasses
import logging
import sys
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from ..algorithms.rtn import round_to_nearest
from ..algorithms.shared.finished import Finished, as_stored
from ..config.quant_config import WeightOnlyQuantConfig
from ..core import native
from ..modules.embedding import WeightOnlyEmbedding, quantized_embeddings
from ..modules.embedding_target import EmbeddingTarget, embedding_target, share_with_head
from ..modules.layer import WeightOnlyLinear
from ..modules.targets import (
    Target,
    is_fused_experts,
    is_linear,
    left_alone,
    linear_parameters,
    output_embeddings,
    parameter_count,
    passed_over,
    quantized_layers,
    scheme_for,
    select,
    warn_of_idle_patterns,
)
from .histograms import weight_histogram
from .hooks import check_hooks, tell_quantized, tell_untied
from .imatrix import NO_IMPORTANCE, with_importance
from .report import LayerReport, LeftAlone, QuantizationReport

__all__ = ["quantize"]

logger = logging.getLogger("woq")
# What to do with a model that an interrupt has left half quantized: a caller that does not keep the
# model silences this one.
advice = logging.getLogger("woq.advice")

# Why a matrix is left in floating point, where that is as it should be.
_EXPERTS = "fused expert weights are not quantized yet"  # of which there is a warning
_HEAD = "output embedding; quantize_lm_head=True quantizes it"
_EMBEDDING = "embedding; quantize_embedding=True quantizes it"
_NOT_SELECTED = "not selected"  # by the config, or as the model's last layer
_EXPECTED = frozenset({_EXPERTS, _HEAD, _EMBEDDING, _NOT_SELECTED})
# Of the weights that are not embeddings: from here on a log line says that they stay floats. Real
# models have a few per cent in convolutions; XLNet has 57 % in weights of three dimensions.
_MUCH = 0.25

Model = TypeVar("Model", bound=nn.Module)
_Progress = Generator[None, str, None]

_KEPT = (
    "these are quantized, the others are unchanged, and the model works. Call quantize again with "
    "the same config to do the rest."
)
_LOST = (
    "there is no model. Where the config has a work_dir, finished layers are in there, and the "
    "same call goes on from them."
)


def quantize(
    model: Model, config: WeightOnlyQuantConfig | None = None, *, progress: bool | None = None
) -> Model:
    """Quantize the linear layers of `model` in place and return it.

    nn.Linear and transformers' Conv1D are replaced by `WeightOnlyLinear`, one after the other: the
    float weight of a layer is released before the next one is touched. What stays in floating
    point (embeddings, skipped modules, the fused expert weights of mixtures of experts) is listed
    in `model.woq_report`. An output embedding is left alone unless `config.quantize_lm_head` asks,
    an input embedding unless `config.quantize_embedding` does.

    If it fails or is interrupted (Ctrl-C), the layers done so far stay quantized and the others
    stay as they were: the model still works, can be saved, and a second call with the same config
    does the rest. `model.woq_report.complete` is False then.

    An algorithm that needs calibration (`config.needs_calibration`) looks at what the model
    computes: it needs a transformers model, and calibration data in the config (`dataset`,
    `tokenizer`; by default text that the model makes up). It goes block by block, each on what the
    quantized blocks before it produce. With `config.work_dir` a second run with the same model,
    data and settings goes on where the first one stopped.

    Args:
        model: any torch module on the CPU.
        config: what to quantize to, and how; the default is int4_fullrange in groups of 32, RTN.
        progress: show a progress bar with the remaining time on stderr; None shows it on a
            terminal only. Without tqdm the progress goes to the "woq" logger.

    Raises:
        InvalidArgument: a weight has NaN or Inf (names module, row and column); the model already
            has layers quantized with another config; the calibration data is empty or too short.
    """
    return _quantize(model, config, progress, _KEPT)


def quantize_loaded(
    model: Model, config: WeightOnlyQuantConfig, *, progress: bool | None = None
) -> Model:
    """`quantize` for those who have loaded `model` themselves, and whose callers have nothing if it
    fails: the log then says that."""
    return _quantize(model, config, progress, _LOST)


def _quantize(
    model: Model, config: WeightOnlyQuantConfig | None, progress: bool | None, unfinished: str
) -> Model:
    """`unfinished` says, of an error or an interrupt, what is left and how to go on."""
    config = WeightOnlyQuantConfig() if config is None else config
    if not isinstance(model, nn.Module):
        raise native.InvalidArgument(f"expected a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(config, WeightOnlyQuantConfig):
        raise native.InvalidArgument(f"expected a WeightOnlyQuantConfig, got {config!r}")
    config.validate()
    config = config.canonical()
    _check_earlier_layers(model, config)
    warn_of_idle_patterns(model, config)
    targets = select(model, config)
    embedding = embedding_target(model, config)
    _check_devices(targets if embedding is None else [*targets, embedding])
    check_hooks(model)
    if config.imatrix is not None and not config.needs_calibration:
        targets = with_importance(model, config, targets)

    started = time.perf_counter()
    report = QuantizationReport(complete=False)
    previous = getattr(model, "woq_report", None)
    if isinstance(previous, QuantizationReport):
        report.layers.extend(previous.layers)
        report.seconds = previous.seconds
    own = embedding is not None and embedding.head is None
    total, done_before = len(targets) + own, len(report.layers)
    bar = _progress(total, progress)
    next(bar)

    def finish(finished: Finished) -> None:
        target = finished.target
        layer, entry = _make_layer(finished, config)
        replace_module(model, target.name, layer)
        report.layers.append(entry)
        if target.tied:
            tell_untied(model, [target.name])
        if embedding is not None and embedding.head == target.name:
            replace_module(model, embedding.name, share_with_head(model, embedding))
        bar.send(target.name if entry.loss is None else f"{target.name} loss {entry.loss:.2e}")

    try:
        # Tuning needs gradients, whatever the caller has switched off.
        with torch.inference_mode(False), torch.enable_grad():
            if config.needs_calibration:
                from .driver import quantize_calibrated

                quantize_calibrated(model, config, targets, finish)
            else:
                _round_all(targets, config, finish)
            if embedding is not None and embedding.head is None:
                module, entry = make_embedding(embedding.module.weight.detach(), config, embedding)
                replace_module(model, embedding.name, module)
                report.layers.append(entry)
                bar.send(embedding.name)
        report.complete = True
    except BaseException as error:
        advice.warning(
            "%s after %d of %d layers: %s",
            "interrupted" if isinstance(error, KeyboardInterrupt) else "failed",
            len(report.layers) - done_before,
            total,
            unfinished,
        )
        raise
    finally:
        bar.close()
        report.seconds += time.perf_counter() - started
        attach_report(model, report, config)
        if quantized_layers(model) or quantized_embeddings(model):
            tell_quantized(model, config)
    log_summary(model, report)
    return model


def quantize_weight(
    weight: torch.Tensor, config: WeightOnlyQuantConfig, target: Target
) -> native.QuantizedMatrix:
    """Quantize `weight` [out_features, in_features] by an algorithm that needs no calibration."""
    quantize = config.method.quantize_weight
    assert quantize is not None  # config.needs_calibration is false
    matrix: native.QuantizedMatrix = quantize(weight, config, target)
    return matrix


def quantize_module(
    name: str, weight: torch.Tensor, config: WeightOnlyQuantConfig, target: Target
) -> tuple[native.QuantizedMatrix, LayerReport]:
    """Quantize one weight [out_features, in_features] and measure the error."""
    matrix = quantize_weight(weight, config, target)
    entry = _layer_report(name, weight, matrix, target)
    return matrix, dataclasses.replace(
        entry, algorithm=config.algorithm, note=_note(config, target)
    )


def _note(config: WeightOnlyQuantConfig, target: Target) -> str:
    """What an algorithm that needs no calibration could not do for `target`."""
    missing = config.imatrix is not None and target.importance is None
    return NO_IMPORTANCE if missing else ""


def _layer_report(
    name: str, weight: torch.Tensor, matrix: native.QuantizedMatrix, target: Target
) -> LayerReport:
    metrics = native.error_metrics(weight, matrix)
    return LayerReport(
        name=name,
        weight_dtype=target.weight_dtype,
        shape=(matrix.rows, matrix.cols),
        bytes_before=weight.numel() * weight.element_size(),
        bytes_after=matrix.nbytes,
        mse=metrics["mse"],
        sqnr_db=metrics["sqnr_db"],
        histogram=weight_histogram(weight, matrix),
    )


def make_layer(
    name: str,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    config: WeightOnlyQuantConfig,
    target: Target,
) -> tuple[WeightOnlyLinear, LayerReport]:
    """Quantize and pack one layer."""
    matrix, entry = quantize_module(name, weight, config, target)
    layer = WeightOnlyLinear.from_quantized(
        matrix,
        bias,
        compute_dtype=config.compute_dtype,
        name=name,
        dtype=weight.dtype,
        transposed=target.transposed,
    )
    return layer, entry


def make_embedding(
    weight: torch.Tensor, config: WeightOnlyQuantConfig, target: EmbeddingTarget
) -> tuple[WeightOnlyEmbedding, LayerReport]:
    """Quantize and pack an embedding with a weight of its own, which no algorithm calibrates."""
    quantize = config.method.quantize_weight or round_to_nearest
    matrix = as_stored(quantize(weight, config, target), config)
    note = _note(config, target)
    algorithm = config.algorithm
    if config.needs_calibration:
        algorithm, note = "RTN", "embeddings are looked up, and not calibrated"
    entry = dataclasses.replace(
        _layer_report(target.name, weight, matrix, target), algorithm=algorithm, note=note
    )
    layer = WeightOnlyLinear.from_quantized(
        matrix, compute_dtype=config.compute_dtype, name=target.name, dtype=weight.dtype
    )
    return target.module_of(layer), entry


def attach_report(
    model: nn.Module, report: QuantizationReport, config: WeightOnlyQuantConfig
) -> None:
    """Fill in what was left alone, and make the report `model.woq_report`."""
    heads = set(output_embeddings(model))
    passed = passed_over(model, config)
    report.left = [
        LeftAlone(name, shape, count, _reason(model, name, shape, heads, passed))
        for name, (shape, count) in left_alone(model).items()
    ]
    report.total_parameters = parameter_count(model)
    model.woq_report = report  # type: ignore[assignment]


def log_summary(model: nn.Module, report: QuantizationReport) -> None:
    """Log the report, and which kernels run the layers and why."""
    if logger.isEnabledFor(logging.INFO):
        logger.info("%s", report)
        log_kernels(model)
    experts = [entry for entry in report.left if is_fused_experts(entry.name, entry.shape)]
    if experts:
        share = sum(entry.parameters for entry in experts) / max(1, report.total_parameters)
        logger.warning(
            "%d fused expert weights stay in floating point: %.1f %% of the model's parameters "
            "(%s, ...). woq does not quantize fused experts yet.",
            len(experts),
            100 * share,
            experts[0].name,
        )
    _warn_of_little(report)


def _warn_of_little(report: QuantizationReport) -> None:
    """Log a warning if nothing, or less of the model than its user will think, was quantized."""
    missed = [entry for entry in report.left if entry.reason not in _EXPECTED]
    count = sum(entry.parameters for entry in missed)
    share = count / max(1, count + report.quantized_parameters)
    if report.layers and share < _MUCH:
        return
    examples: dict[str, LeftAlone] = {}  # the largest one for each reason
    for entry in sorted(missed, key=lambda entry: -entry.parameters):
        examples.setdefault(entry.reason, entry)
    shown = "; ".join(f"{entry.name}: {reason}" for reason, entry in examples.items())
    if not report.layers:
        logger.warning("%s%s", report, f" ({shown})" if shown else "")
        return
    logger.warning(
        "%.0f %% of the model's weights, embeddings apart, stay in floating point (%s)",
        100 * share,
        shown,
    )


def log_kernels(model: nn.Module) -> None:
    """Log how many layers run on which kernel, and the reason for that choice."""
    chosen: dict[tuple[str, str], int] = {}
    for layer in quantized_layers(model).values():
        choice = layer.explain()
        key = (choice["kernel"], choice["reason"])
        chosen[key] = chosen.get(key, 0) + 1
    for (kernel, reason), count in chosen.items():
        logger.info("%d layers run on %s: %s", count, kernel, reason)


def _round_all(
    targets: list[Target], config: WeightOnlyQuantConfig, finish: Callable[[Finished], None]
) -> None:
    """Quantize `targets`, the first one first, and call `finish` with each. The list is emptied: it
    holds modules, and so each float weight goes with its replacement."""
    targets.reverse()
    while targets:
        target = targets.pop()
        weight = linear_parameters(target.module)
        matrix = quantize_weight(weight, config, target)
        finish(Finished(target, matrix, note=_note(config, target)))
        del target, weight, matrix


def _make_layer(
    finished: Finished, config: WeightOnlyQuantConfig
) -> tuple[WeightOnlyLinear, LayerReport]:
    """Pack a quantized layer, and say what became of it."""
    target = finished.target
    module = target.module
    weight = linear_parameters(module)
    layer = WeightOnlyLinear.from_quantized(
        finished.matrix,
        None if module.bias is None else module.bias.detach(),
        compute_dtype=config.compute_dtype,
        name=target.name,
        dtype=weight.dtype,
        transposed=target.transposed,
    )
    entry = dataclasses.replace(
        _layer_report(target.name, weight, finished.matrix, target),
        algorithm=finished.algorithm or config.algorithm,
        loss=finished.loss,
        start_loss=finished.start_loss,
        note=finished.note,
    )
    return layer, entry


def replace_module(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    owner = model.get_submodule(parent)
    layer.train(getattr(owner, child).training)
    # A single assignment: an interrupt leaves either the old layer or the new one.
    setattr(owner, child, layer)


def _reason(
    model: nn.Module,
    name: str,
    shape: tuple[int, ...],
    heads: set[str],
    passed: Mapping[str, str],
) -> str:
    path = name.rpartition(".")[0]
    module = model.get_submodule(path)
    if is_fused_experts(name, shape):
        return _EXPERTS
    if path in passed:
        return passed[path]
    if path in heads:
        return _HEAD
    if isinstance(module, nn.Embedding):
        return _EMBEDDING
    return _NOT_SELECTED if is_linear(module) else f"{type(module).__name__} is no linear layer"


def _check_devices(targets: list[Target]) -> None:
    for target in targets:
        device = target.module.weight.device
        if device.type != "cpu":
            raise native.Unsupported(
                f"{target.name}.weight is on {device}: woq quantizes on the CPU. "
                "Move the model there first (model.to('cpu'), or device_map='cpu' on loading)."
            )


def _check_earlier_layers(model: nn.Module, config: WeightOnlyQuantConfig) -> None:
    """A second call may finish the first one's work, not mix formats: no config describes that."""
    heads = set(output_embeddings(model))
    for name, layer in quantized_layers(model).items():
        wanted = scheme_for(config, name, head=name in heads)
        have = layer.scheme
        if have != wanted or layer.requested_compute_dtype != config.compute_dtype:
            raise native.InvalidArgument(
                f"{name} is already quantized with other settings ({have}, compute_dtype "
                f"{layer.requested_compute_dtype!r}); load the float model again to quantize it "
                "differently"
            )


def _progress(total: int, show: bool | None) -> _Progress:
    """A coroutine that takes the name of each finished layer."""
    show = sys.stderr.isatty() if show is None else show
    if not show:
        return _silent()
    try:
        from tqdm import tqdm
    except ImportError:
        return _logged(total)
    return _bar(tqdm(total=total, desc="Quantizing", unit="layer", file=sys.stderr))


def _silent() -> _Progress:
    while True:
        yield


def _bar(bar: Any) -> _Progress:
    with bar:
        while True:
            name = yield
            # The whole name would leave no room for the bar at 80 columns.
            layer, blank, loss = name.partition(" ")
            bar.set_postfix_str(layer.rpartition(".")[2] + blank + loss, refresh=False)
            bar.update()


def _logged(total: int) -> _Progress:
    started, step = time.perf_counter(), max(1, total // 10)
    for done in range(1, total + 2):
        name = yield
        if done % step == 0:
            rest = (time.perf_counter() - started) / done * (total - done)
            logger.info("quantized %d of %d layers (%s), %.0f s to go", done, total, name, rest)
