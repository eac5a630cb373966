# SPDX-License-Identifier: Apache-2.0
"""ITREX's configuration classes, with its fields and its defaults.

They are woq's own classes, so that each is a `woq.WeightOnlyQuantConfig`; only the defaults differ
(AWQ and TEQ: 8 bits; AutoRound: 512 samples, 200 iterations; calibration on NeelNanda/pile-10k),
and searches that ITREX does not have are off. What ITREX ignores or changes without a word (unknown
fields, int4_fullrange, a dtype that contradicts `bits`) is done as written or is an error.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

from ..config import algorithm_configs as woq_configs
from ..config.options import ALGORITHMS, needs_calibration
from ..config.quant_config import WeightOnlyQuantConfig as _Config
from ..core.native import InvalidArgument

__all__ = ["AutoRoundConfig", "AwqConfig", "GPTQConfig", "RtnConfig", "TeqConfig",
           "WeightOnlyQuantConfig"]  # fmt: skip

logger = logging.getLogger("woq")

_DATASET = "NeelNanda/pile-10k"
_CALIB_ITERS = 100

RtnConfig = woq_configs.RtnConfig


def _init(
    base: type[_Config], *, iters_are_samples: bool = False, **defaults: Any
) -> Callable[..., None]:
    """`base.__init__` with other defaults and the three fields for ITREX's calibration.

    `calib_iters` counts batches of one sample; where ITREX has no `nsamples`, it stands for that.
    """
    of_base = inspect.signature(base.__init__)
    parameters = [
        parameter.replace(default=defaults.get(name, parameter.default))
        for name, parameter in of_base.parameters.items()
    ]
    more = {"calib_dataloader": None, "calib_func": None, "calib_iters": _CALIB_ITERS}
    for name, default in more.items():
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default))
    signature = of_base.replace(parameters=parameters)

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        owner = type(self).__name__
        bound = signature.bind(self, *args, **kwargs)
        written = dict(bound.arguments)
        bound.apply_defaults()
        given = {name: value for name, value in bound.arguments.items() if name != "self"}
        loader, function, iters = (given.pop(name) for name in more)
        given["dataset"] = _dataset(owner, given["dataset"], loader, function)
        # An option by its second name must not meet our default under its first.
        for other, name in woq_configs._SYNONYMS.items():
            if written.get(other) is not None and name not in written:
                written[name] = given[name] = of_base.parameters[name].default
        if not iters_are_samples and iters not in (None, _CALIB_ITERS):
            logger.warning(
                "%s.calib_iters=%r is ignored: nsamples=%r says how many samples are used",
                owner,
                iters,
                given["nsamples"],
            )
        elif iters_are_samples and "nsamples" not in written and iters is not None:
            given["nsamples"] = iters
        base.__init__(self, **given)

    __init__.__signature__ = signature  # type: ignore[attr-defined]
    return __init__


def _dataset(owner: str, dataset: Any, dataloader: Any, calib_func: Any) -> Any:
    if calib_func is not None:
        raise InvalidArgument(
            f"{owner}.calib_func: woq runs the model itself; give what the function would feed it "
            "as calib_dataloader or dataset"
        )
    return dataset if dataloader is None else dataloader


class GPTQConfig(woq_configs.GPTQConfig):
    """GPTQ with ITREX 1.4's defaults: damp_percent 0.1, plain ranges and column order."""

    __init__ = _init(
        woq_configs.GPTQConfig,
        dataset=_DATASET,
        damp_percent=0.1,
        mse_range=False,
        act_group_aware=False,
    )


class AwqConfig(woq_configs.AwqConfig):
    """AWQ with ITREX 1.4's defaults: 8 bits, 100 samples."""

    __init__ = _init(
        woq_configs.AwqConfig, bits=8, dataset=_DATASET, mse_range=False, iters_are_samples=True
    )


class TeqConfig(woq_configs.TeqConfig):
    """TEQ with ITREX 1.4's defaults: 8 bits, 100 samples."""

    __init__ = _init(
        woq_configs.TeqConfig, bits=8, dataset=_DATASET, mse_range=False, iters_are_samples=True
    )


class AutoRoundConfig(woq_configs.AutoRoundConfig):
    """AutoRound with ITREX 1.4's defaults: groups of 128, asymmetric, 200 iterations from round to
    nearest on 512 samples of 2048 tokens."""

    __init__ = _init(
        woq_configs.AutoRoundConfig,
        dataset=_DATASET,
        group_size=128,
        sym=False,
        mse_range=False,
        start="rtn",
        nsamples=512,
        seqlen=2048,
        iters=200,
    )


# Fields of ITREX 1.2 and 1.3 that steer its runtime: {name: harmless values}.
_SWITCHES: dict[str, tuple[Any, ...]] = {
    "double_quant_dtype": (None, "int8"),
    "double_quant_scale_dtype": (None, "fp32"),
    "use_ggml": (False,),
    "use_quant": (True,),
    "use_gptq": (False,),
    "use_autoround": (False,),
    "use_neural_speed": (False, True),  # True is the default; there is one runtime here
    "low_bit_model": (False,),
    "device": ("auto", "cpu"),
}
# Options of Neural Compressor in `algorithm_args`, and what they are called here.
_OPTIONS = {
    "act_order": "desc_act",
    "actorder": "desc_act",
    "auto_clip": "apply_clip",
    "block_size": "blocksize",
    "calib_iters": "nsamples",
    "enable_mse_search": "apply_clip",
    "max_input_length": "seqlen",
    "mse_search": "apply_clip",
    "n_samples": "nsamples",
    "pad_max_length": "seqlen",
    "percdamp": "damp_percent",
}
_HARMLESS_OPTIONS: dict[str, Any] = {
    "auto_scale": True,
    "enable_auto_scale": True,
    "folding": False,
    "use_max_length": False,
}


class WeightOnlyQuantConfig(_Config):
    """The one class of ITREX 1.2 and 1.3. Without a `weight_dtype` it is nf4, as in 1.3 (1.2:
    int4_fullrange).

    `algorithm` is RTN, AWQ, TEQ, GPTQ or AUTOROUND; `algorithm_args` takes Neural Compressor's
    names of options (percdamp, act_order, ...) and woq's.
    """

    def __init__(
        self,
        llm_int8_skip_modules: list[str] | None = None,
        compute_dtype: Any = None,
        weight_dtype: str | None = None,
        scale_dtype: Any = None,
        mse_range: bool = False,
        use_double_quant: bool = False,
        double_quant_scale_dtype: Any = None,
        group_size: int = 32,
        scheme: str = "sym",
        algorithm: str = "RTN",
        use_ggml: bool = False,
        use_quant: bool = True,
        use_gptq: bool = False,
        use_autoround: bool = False,
        algorithm_args: Mapping[str, Any] | None = None,
        use_neural_speed: bool = True,
        low_bit_model: bool = False,
        double_quant_dtype: str | None = None,
        tokenizer: Any = None,
        calib_func: Any = None,
        calib_dataset: Any = _DATASET,
        calib_dataloader: Any = None,
        calib_iters: int = _CALIB_ITERS,
        device: str = "auto",
    ) -> None:
        owner = type(self).__name__
        given = locals()
        for name, harmless in _SWITCHES.items():
            woq_configs._check_switch(owner, name, given[name], harmless, None)
        known = str(algorithm).upper()
        calibrates = known in ALGORITHMS and needs_calibration(known)
        super().__init__(
            weight_dtype="nf4" if weight_dtype is None else weight_dtype,
            compute_dtype="fp32" if compute_dtype is None else compute_dtype,
            scale_dtype="fp32" if scale_dtype is None else scale_dtype,
            group_size=group_size,
            scheme=scheme,
            use_double_quant=use_double_quant,
            mse_range=mse_range,
            algorithm=algorithm,
            algorithm_args=_options(owner, known, algorithm_args, calib_iters),
            modules_to_not_convert=llm_int8_skip_modules or None,
            dataset=_dataset(owner, calib_dataset, calib_dataloader, calib_func)
            if calibrates
            else None,
            tokenizer=tokenizer,
        )

    @classmethod
    def _from_fields(cls, values: dict[str, Any]) -> _Config:
        # What `to_dict` writes has woq's field names.
        return cls(**values) if "modules_to_not_convert" not in values else _Config(**values)


def _options(
    owner: str, algorithm: str, given: Mapping[str, Any] | None, calib_iters: int
) -> dict[str, Any]:
    """`algorithm_args` in woq's names, with ITREX's defaults for what was not given."""
    if given is not None and not isinstance(given, Mapping):
        raise InvalidArgument(f"{owner}.algorithm_args must be a dict of options, got {given!r}")
    of_itrex: dict[str, dict[str, Any]] = {
        "AWQ": {"nsamples": calib_iters},
        "TEQ": {"nsamples": calib_iters},
        "GPTQ": {"act_group_aware": False},
        "AUTOROUND": {"start": "rtn", "iters": 200},
    }
    options = {}
    for name, value in (given or {}).items():
        if name in _HARMLESS_OPTIONS:
            woq_configs._check_switch(
                owner, f"algorithm_args[{name!r}]", value, (_HARMLESS_OPTIONS[name],), None
            )
            continue
        own = _OPTIONS.get(name, name)
        if own in options:
            raise InvalidArgument(f"{owner}.algorithm_args has {own!r} twice, once as {name!r}")
        options[own] = value
    return {**of_itrex.get(algorithm, {}), **options}
