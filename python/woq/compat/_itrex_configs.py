# SPDX-License-Identifier: Apache-2.0
"""ITREX's configuration classes, with its fields and its defaults.

They are woq's own classes, so that each is a `woq.WeightOnlyQuantConfig`; only the defaults differ
(AWQ and TEQ: 8 bits; AutoRound: 512 samples, 200 iterations; calibration on NeelNanda/pile-10k),
and searches that ITREX does not have are off. What ITREX ignores or changes without a word (unknown
fields, int4_fullrange, a dtype that contradicts `bits`) is done as written or is an error.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

from ..config import algorithm_configs as woq_configs
from ..config.algorithm_configs import SWITCHES, AlgorithmConfig, Field, check_switch, of_config
from ..config.options import canonical_names
from ..config.quant_config import WeightOnlyQuantConfig as _Config
from ..config.registry import Algorithm, find_algorithm
from ..core.native import InvalidArgument

__all__ = ["AutoRoundConfig", "AwqConfig", "GPTQConfig", "RtnConfig", "TeqConfig",
           "WeightOnlyQuantConfig"]  # fmt: skip

logger = logging.getLogger("woq")

_DATASET = "NeelNanda/pile-10k"
_CALIB_ITERS = 100

RtnConfig = woq_configs.RtnConfig

# What ITREX's calibrating classes have besides.
_CALIBRATION = {
    "calib_dataloader": Field("Any", None, "calibration data, in place of dataset"),
    "calib_func": Field("Any", None, "must be None: woq runs the model itself"),
    "calib_iters": Field("int", _CALIB_ITERS, "samples, where nsamples does not say it"),
}


class _Calibrating(AlgorithmConfig):
    """Takes out the fields of ITREX's calibration.

    `calib_iters` counts batches of one sample; where ITREX has no `nsamples`, it stands for that.
    """

    _iters_are_samples = False

    def _adapt(self, given: dict[str, Any], written: Collection[str]) -> None:
        super()._adapt(given, written)
        owner = type(self).__name__
        loader, function, iters = (given.pop(name) for name in _CALIBRATION)
        given["dataset"] = _dataset(owner, given["dataset"], loader, function)
        if not self._iters_are_samples and iters not in (None, _CALIB_ITERS):
            logger.warning(
                "%s.calib_iters=%r is ignored: nsamples=%r says how many samples are used",
                owner,
                iters,
                given["nsamples"],
            )
        elif self._iters_are_samples and "nsamples" not in written and iters is not None:
            given["nsamples"] = iters


def _dataset(owner: str, dataset: Any, dataloader: Any, calib_func: Any) -> Any:
    if calib_func is not None:
        raise InvalidArgument(
            f"{owner}.calib_func: woq runs the model itself; give what the function would feed it "
            "as calib_dataloader or dataset"
        )
    return dataset if dataloader is None else dataloader


class GPTQConfig(
    _Calibrating,
    woq_configs.GPTQConfig,
    defaults={
        "dataset": _DATASET,
        "damp_percent": 0.1,
        "mse_range": False,
        "act_group_aware": False,
    },
    keywords=_CALIBRATION,
):
    """GPTQ with ITREX 1.4's defaults: damp_percent 0.1, plain ranges and column order."""


class AwqConfig(
    _Calibrating,
    woq_configs.AwqConfig,
    defaults={"bits": 8, "dataset": _DATASET, "mse_range": False},
    keywords=_CALIBRATION,
):
    """AWQ with ITREX 1.4's defaults: 8 bits, 100 samples."""

    _iters_are_samples = True


class TeqConfig(
    _Calibrating,
    woq_configs.TeqConfig,
    defaults={"bits": 8, "dataset": _DATASET, "mse_range": False},
    keywords=_CALIBRATION,
):
    """TEQ with ITREX 1.4's defaults: 8 bits, 100 samples."""

    _iters_are_samples = True


class AutoRoundConfig(
    _Calibrating,
    woq_configs.AutoRoundConfig,
    defaults={
        "dataset": _DATASET,
        "group_size": 128,
        "sym": False,
        "mse_range": False,
        "start": "rtn",
        "nsamples": 512,
        "seqlen": 2048,
        "iters": 200,
    },
    keywords=_CALIBRATION,
):
    """AutoRound with ITREX 1.4's defaults: groups of 128, asymmetric, 200 iterations from round to
    nearest on 512 samples of 2048 tokens."""


# Fields of ITREX 1.2 and 1.3 that steer its runtime: {name: harmless values}. Those that 1.4 kept
# come from the list of 1.4's.
_SWITCHES: dict[str, tuple[Any, ...]] = {
    **{name: switch.harmless for name, switch in SWITCHES.items()},
    "double_quant_dtype": (None, "int8"),
    "use_gptq": (False,),
    "use_autoround": (False,),
    "use_neural_speed": (False, True),  # True is the default; there is one runtime here
    "low_bit_model": (False,),
}
# Options of Neural Compressor in `algorithm_args` that switch on what is always on here.
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
            if name in given:
                check_switch(owner, name, given[name], harmless, None)
        method = find_algorithm(str(algorithm), f"{owner}.algorithm")
        super().__init__(
            **{
                **of_config(given),
                "weight_dtype": "nf4" if weight_dtype is None else weight_dtype,
                "compute_dtype": "fp32" if compute_dtype is None else compute_dtype,
                "scale_dtype": "fp32" if scale_dtype is None else scale_dtype,
                "algorithm_args": _options(owner, method, algorithm_args, calib_iters),
                "modules_to_not_convert": llm_int8_skip_modules or None,
                "dataset": _dataset(owner, calib_dataset, calib_dataloader, calib_func)
                if method.needs_calibration
                else None,
            }
        )

    @classmethod
    def _from_fields(cls, values: dict[str, Any]) -> _Config:
        # What `to_dict` writes has woq's field names.
        return cls(**values) if "modules_to_not_convert" not in values else _Config(**values)


def _options(
    owner: str, method: Algorithm, given: Mapping[str, Any] | None, calib_iters: int
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
            where = f"algorithm_args[{name!r}]"
            check_switch(owner, where, value, (_HARMLESS_OPTIONS[name],), None)
        else:
            options[name] = value
    options = canonical_names(owner, method.name, method.options, options)
    return {**of_itrex.get(method.name, {}), **options}
