# SPDX-License-Identifier: Apache-2.0
"""One class for each algorithm, with the field names that ITREX 1.4 and transformers have for it.

Each is a `WeightOnlyQuantConfig` written differently: it becomes the same canonical settings, and
is saved as them. Unlike ITREX these classes never change a dtype quietly (int4_fullrange stays
int4_fullrange), `bits` that contradict `weight_dtype` are an error, and 4 bits are the default of
all. Without a `weight_dtype`, 4 bits are int4_clip and 8 bits int8.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
from collections.abc import Mapping
from typing import Any, ClassVar

from ..core.native import InvalidArgument
from .options import ALGORITHMS
from .quant_config import WeightOnlyQuantConfig

__all__ = ["AutoRoundConfig", "AwqConfig", "GPTQConfig", "HqqConfig", "RtnConfig", "TeqConfig"]

logger = logging.getLogger("woq")

# ITREX fields that say how its own runtimes work: {name: (harmless values, note or None)}. A value
# outside the first list is an error when there is no note, and is logged when there is one.
_SWITCHES: dict[str, tuple[tuple[Any, ...], str | None]] = {
    "layer_wise": ((False, True), None),  # woq always holds one layer or block at a time
    "use_ggml": ((False,), None),
    "use_quant": ((True,), None),
    "use_neural_speed": ((False,), "woq runs its own kernels"),
    "double_quant_scale_dtype": ((None, "fp32"), None),
    "device": (("auto", "cpu"), None),
    "use_ipex": ((False,), "woq runs its own kernels"),
}

# Second names of options.
_SYNONYMS = {"n_samples": "nsamples", "max_input_length": "seqlen", "calib_len": "seqlen"}

_ONE_RUN = tuple(
    field.name
    for field in dataclasses.fields(WeightOnlyQuantConfig)
    if not field.metadata.get("stored", True)
)


class _AlgorithmConfig(WeightOnlyQuantConfig):
    """Turns ITREX's fields into the canonical ones."""

    _algorithm: ClassVar[str]

    def _set(self, given: Mapping[str, Any]) -> None:
        """Initialise from the arguments of the class's `__init__`, by name."""
        owner = type(self).__name__
        given = {name: value for name, value in given.items() if not name.startswith("_")}
        given.pop("self", None)
        for name, (harmless, note) in _SWITCHES.items():
            if name in given:
                _check_switch(owner, name, given[name], harmless, note)
        bits, sym = given["bits"], given["sym"]
        if not isinstance(bits, int) or isinstance(bits, bool) or bits not in (4, 8):
            raise InvalidArgument(f"{owner}.bits must be 4 or 8, got {bits!r}")
        if not isinstance(sym, bool):
            raise InvalidArgument(f"{owner}.sym must be True or False, got {sym!r}")
        algorithm, more = _composed(owner, self._algorithm, given)
        options = {name: given[name] for name in ALGORITHMS[self._algorithm] if name in given}
        for other, name in _SYNONYMS.items():
            if given.get(other) is None:
                continue
            default = ALGORITHMS[self._algorithm][name].default
            if options[name] not in (default, given[other]):
                raise InvalidArgument(
                    f"{owner}: {name}={options[name]!r} and {other}={given[other]!r} contradict "
                    "each other; they are two names of one option"
                )
            options[name] = given[other]
        super().__init__(
            weight_dtype=given["weight_dtype"] or ("int8" if bits == 8 else "int4_clip"),
            compute_dtype=given["compute_dtype"] or "fp32",
            scale_dtype=given["scale_dtype"] or "fp32",
            group_size=given["group_size"],
            scheme="sym" if sym else "asym",
            use_double_quant=given["use_double_quant"],
            mse_range=given.get("mse_range", False),
            algorithm=algorithm,
            algorithm_args={**options, **more},
            modules_to_not_convert=given["llm_int8_skip_modules"],
            layer_config={} if given["layer_config"] is None else given["layer_config"],
            quantize_lm_head=given["quantize_lm_head"],
            **{name: given[name] for name in _ONE_RUN if name in given},
        )
        if self.bits != bits:
            raise InvalidArgument(
                f"{owner}.weight_dtype {self.weight_dtype!r} has {self.bits} bits, bits is {bits}"
            )

    @classmethod
    def _from_fields(cls, values: dict[str, Any]) -> WeightOnlyQuantConfig:
        if "scheme" not in values:
            return cls(**values)
        base = WeightOnlyQuantConfig(**values)
        known = inspect.signature(cls.__init__).parameters
        first, _, then = base.algorithm.partition("+")
        if first != cls._algorithm or (then and "then" not in known):
            raise InvalidArgument(f"{cls.__name__} cannot read a config of {base.algorithm}")
        fields = {
            "bits": base.bits,
            "nbits": base.bits,
            "group_size": base.group_size,
            "compute_dtype": base.compute_dtype,
            "weight_dtype": base.weight_dtype,
            "scale_dtype": base.scale_dtype,
            "mse_range": base.mse_range,
            "use_double_quant": base.use_double_quant,
            "sym": base.sym,
            "zero_point": not base.sym,
            "llm_int8_skip_modules": base.modules_to_not_convert,
            "skip_modules": base.modules_to_not_convert,
            "quantize_lm_head": base.quantize_lm_head,
            "layer_config": base.layer_config,
            **base.algorithm_args,
        }
        if then:
            own = ALGORITHMS[first]
            args = {name: value for name, value in base.algorithm_args.items() if name not in own}
            fields |= {"then": then.lower(), "gptq_args": args}
        return cls(**{name: value for name, value in fields.items() if name in known})


def _composed(owner: str, first: str, given: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The algorithm, and the options of what comes second."""
    then, options = given.get("then"), given.get("gptq_args")
    if then is None:
        if options is not None:
            raise InvalidArgument(f"{owner}.gptq_args needs then='gptq'")
        return first, {}
    if not isinstance(then, str) or then.upper() != "GPTQ":
        raise InvalidArgument(f"{owner}.then must be 'gptq' or None, got {then!r}")
    if options is not None and not isinstance(options, Mapping):
        raise InvalidArgument(f"{owner}.gptq_args must be a dict of options, got {options!r}")
    twice = [name for name in options or () if name in ALGORITHMS[first]]
    if twice:
        raise InvalidArgument(
            f"{owner}.gptq_args has {', '.join(twice)}: that is an argument of {owner} itself"
        )
    return f"{first}+GPTQ", options or {}


def _check_switch(
    owner: str, name: str, value: Any, harmless: tuple[Any, ...], note: str | None
) -> None:
    if value in harmless:
        return
    if note is None:
        allowed = " or ".join(repr(choice) for choice in harmless)
        raise InvalidArgument(f"{owner}.{name}={value!r} has no meaning in woq; allowed: {allowed}")
    logger.warning("%s.%s=%r is ignored: %s", owner, name, value, note)


class RtnConfig(_AlgorithmConfig):
    """Round to nearest, with the field names and defaults of ITREX 1.4; `imatrix` is
    `WeightOnlyQuantConfig`'s."""

    _algorithm = "RTN"

    def __init__(
        self,
        bits: int = 4,
        group_size: int = 32,
        compute_dtype: Any = None,
        weight_dtype: str | None = None,
        scale_dtype: Any = None,
        mse_range: bool = False,
        use_double_quant: bool = False,
        double_quant_scale_dtype: Any = None,
        sym: bool = True,
        layer_wise: bool = False,
        use_ggml: bool = False,
        use_quant: bool = True,
        use_neural_speed: bool = False,
        llm_int8_skip_modules: list[str] | None = None,
        quantize_lm_head: bool | str = False,
        device: str = "auto",
        use_ipex: bool = False,
        imatrix: Any = None,
        layer_config: dict[str, dict[str, Any] | None] | None = None,
    ) -> None:
        self._set(locals())


class HqqConfig(_AlgorithmConfig):
    """HQQ (Badri and Shaji, 2023), data-free: the zero point of every group for the least sum of
    `|error|^lp_norm`.

    `nbits`, `group_size`, `axis` and `skip_modules` are those of transformers' HqqConfig; only
    `axis=1` (groups along the input features) is supported. Zero points are real numbers, 32 bits a
    group."""

    _algorithm = "HQQ"

    def __init__(
        self,
        nbits: int = 4,
        group_size: int = 64,
        axis: int = 1,
        skip_modules: list[str] | None = None,
        compute_dtype: Any = None,
        weight_dtype: str | None = None,
        scale_dtype: Any = None,
        use_double_quant: bool = False,
        iters: int = ALGORITHMS["HQQ"]["iters"].default,
        lp_norm: float = ALGORITHMS["HQQ"]["lp_norm"].default,
        beta: float = ALGORITHMS["HQQ"]["beta"].default,
        kappa: float = ALGORITHMS["HQQ"]["kappa"].default,
        quantize_lm_head: bool | str = False,
        layer_config: dict[str, dict[str, Any] | None] | None = None,
    ) -> None:
        if axis != 1:
            raise InvalidArgument(
                f"HqqConfig.axis must be 1 (groups along the input features), got {axis!r}"
            )
        if not isinstance(nbits, int) or isinstance(nbits, bool) or nbits not in (4, 8):
            raise InvalidArgument(f"HqqConfig.nbits must be 4 or 8, got {nbits!r}")
        self._set({**locals(), "bits": nbits, "sym": False, "llm_int8_skip_modules": skip_modules})


class GPTQConfig(_AlgorithmConfig):
    """GPTQ (arXiv:2210.17323): columns are rounded one after the other, and the columns that follow
    compensate the error of each rounding, weighted by the inputs' second moments.

    `desc_act` takes the columns in the order of their inputs' size, which costs a permutation at
    run time; `act_group_aware` keeps every column in its group, which does not, and is on
    unless `desc_act` is. `gptaq_alpha` above 0 also compensates the error that the quantized layers
    before this one add to its inputs (GPTAQ, arXiv:2504.02692; its authors' code has 0.25).
    """

    _algorithm = "GPTQ"

    def __init__(
        self,
        bits: int = 4,
        tokenizer: Any = None,
        dataset: Any = None,
        group_size: int = 32,
        compute_dtype: Any = None,
        weight_dtype: str | None = None,
        scale_dtype: Any = None,
        use_double_quant: bool = False,
        double_quant_scale_dtype: Any = None,
        sym: bool = True,
        mse_range: bool | None = None,
        blocksize: int = 128,
        damp_percent: float = 0.01,
        desc_act: bool = False,
        act_group_aware: bool | None = None,
        static_groups: bool = False,
        true_sequential: bool = False,
        gptaq_alpha: float = 0.0,
        nsamples: int = ALGORITHMS["GPTQ"]["nsamples"].default,
        seqlen: int = ALGORITHMS["GPTQ"]["seqlen"].default,
        batch_size: int | None = ALGORITHMS["GPTQ"]["batch_size"].default,
        seed: int = 42,
        n_samples: int | None = None,
        max_input_length: int | None = None,
        work_dir: Any = None,
        activation_memory: int | str = "2GB",
        layer_wise: bool = False,
        use_ggml: bool = False,
        use_quant: bool = True,
        use_neural_speed: bool = False,
        llm_int8_skip_modules: list[str] | None = None,
        quantize_lm_head: bool | str = False,
        device: str = "auto",
        use_ipex: bool = False,
        layer_config: dict[str, dict[str, Any] | None] | None = None,
    ) -> None:
        self._set(locals())


class AwqConfig(_AlgorithmConfig):
    """AWQ (arXiv:2306.00978): input channels with large activations are scaled up before rounding
    and down again at run time. `zero_point=True` is `sym=False` by AutoAWQ's name.

    `then="gptq"` rounds the scaled weights by GPTQ, on ranges that are clipped as without it;
    `gptq_args` are GPTQ's options."""

    _algorithm = "AWQ"

    def __init__(
        self,
        bits: int = 4,
        tokenizer: Any = None,
        dataset: Any = None,
        group_size: int = 32,
        compute_dtype: Any = None,
        weight_dtype: str | None = None,
        scale_dtype: Any = None,
        use_double_quant: bool = False,
        double_quant_scale_dtype: Any = None,
        zero_point: bool = True,
        mse_range: bool | None = None,
        n_grid: int = 20,
        duo_scaling: bool | str = "both",
        apply_clip: bool = True,
        nsamples: int = ALGORITHMS["AWQ"]["nsamples"].default,
        seqlen: int = ALGORITHMS["AWQ"]["seqlen"].default,
        batch_size: int | None = ALGORITHMS["AWQ"]["batch_size"].default,
        seed: int = 42,
        n_samples: int | None = None,
        max_input_length: int | None = None,
        calib_len: int | None = None,
        work_dir: Any = None,
        activation_memory: int | str = "2GB",
        use_ggml: bool = False,
        use_quant: bool = True,
        use_neural_speed: bool = False,
        llm_int8_skip_modules: list[str] | None = None,
        quantize_lm_head: bool | str = False,
        device: str = "auto",
        use_ipex: bool = False,
        layer_config: dict[str, dict[str, Any] | None] | None = None,
        then: str | None = None,
        gptq_args: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(zero_point, bool):
            raise InvalidArgument(f"AwqConfig.zero_point must be True or False, got {zero_point!r}")
        self._set({**locals(), "sym": not zero_point})


class TeqConfig(_AlgorithmConfig):
    """TEQ (arXiv:2310.10944): the scaling of the input channels is learnt by gradient descent.

    `then="gptq"` rounds the scaled weights by GPTQ, whose options `gptq_args` are."""

    _algorithm = "TEQ"

    def __init__(
        self,
        bits: int = 4,
        tokenizer: Any = None,
        dataset: Any = None,
        group_size: int = 32,
        compute_dtype: Any = None,
        weight_dtype: str | None = None,
        scale_dtype: Any = None,
        use_double_quant: bool = False,
        double_quant_scale_dtype: Any = None,
        sym: bool = True,
        mse_range: bool | None = None,
        iters: int = ALGORITHMS["TEQ"]["iters"].default,
        lr: float | None = None,
        nsamples: int = ALGORITHMS["TEQ"]["nsamples"].default,
        seqlen: int = ALGORITHMS["TEQ"]["seqlen"].default,
        batch_size: int | None = ALGORITHMS["TEQ"]["batch_size"].default,
        seed: int = 42,
        n_samples: int | None = None,
        max_input_length: int | None = None,
        calib_len: int | None = None,
        work_dir: Any = None,
        activation_memory: int | str = "2GB",
        use_ggml: bool = False,
        use_quant: bool = True,
        use_neural_speed: bool = False,
        llm_int8_skip_modules: list[str] | None = None,
        quantize_lm_head: bool | str = False,
        device: str = "auto",
        use_ipex: bool = False,
        layer_config: dict[str, dict[str, Any] | None] | None = None,
        then: str | None = None,
        gptq_args: Mapping[str, Any] | None = None,
    ) -> None:
        self._set(locals())


class AutoRoundConfig(_AlgorithmConfig):
    """AutoRound (arXiv:2309.05516): whether each weight is rounded up or down, and how far each
    group's range reaches, is learnt block by block, starting from GPTQ's result or, with
    `start="rtn"`, as the paper has it. `lr` None is 0.3 / iters after GPTQ and 1 / iters after RTN;
    `minmax_lr` None is 0.3 and 1 times `lr`; no iterations are plain RTN."""

    _algorithm = "AUTOROUND"

    def __init__(
        self,
        bits: int = 4,
        tokenizer: Any = None,
        dataset: Any = None,
        group_size: int = 32,
        compute_dtype: Any = None,
        weight_dtype: str | None = None,
        scale_dtype: Any = None,
        use_double_quant: bool = False,
        double_quant_scale_dtype: Any = None,
        sym: bool = True,
        mse_range: bool | None = None,
        lr: float | None = None,
        minmax_lr: float | None = None,
        enable_minmax_tuning: bool = True,
        enable_quanted_input: bool = True,
        start: str = "gptq",
        iters: int = ALGORITHMS["AUTOROUND"]["iters"].default,
        nsamples: int = ALGORITHMS["AUTOROUND"]["nsamples"].default,
        seqlen: int = ALGORITHMS["AUTOROUND"]["seqlen"].default,
        batch_size: int | None = ALGORITHMS["AUTOROUND"]["batch_size"].default,
        seed: int = 42,
        n_samples: int | None = None,
        max_input_length: int | None = None,
        calib_len: int | None = None,
        work_dir: Any = None,
        activation_memory: int | str = "2GB",
        use_ggml: bool = False,
        use_quant: bool = True,
        use_neural_speed: bool = False,
        llm_int8_skip_modules: list[str] | None = None,
        quantize_lm_head: bool | str = False,
        device: str = "auto",
        use_ipex: bool = False,
        layer_config: dict[str, dict[str, Any] | None] | None = None,
    ) -> None:
        self._set(locals())
