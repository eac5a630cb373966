# SPDX-License-Identifier: Apache-2.0
"""One class for each algorithm, with the field names that ITREX 1.4 and transformers have for it.

Each is a `WeightOnlyQuantConfig` written differently: it becomes the same canonical settings, and
is saved as them. Unlike ITREX these classes never change a dtype quietly (int4_fullrange stays
int4_fullrange), `bits` that contradict `weight_dtype` are an error, and 4 bits are the default of
all. Without a `weight_dtype`, 4 bits are int4_clip and b bits int<b>.

A class names its arguments in their order. What they are called, mean and default to stands once,
for all classes: in the table of fields below, and for the algorithm's options in its record.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import re
import textwrap
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, NamedTuple

from ..core.native import InvalidArgument
from .options import Option
from .quant_config import WeightOnlyQuantConfig
from .registry import Algorithm, find_algorithm

__all__ = [
    "SWITCHES",
    "AlgorithmConfig",
    "AutoRoundConfig",
    "AwqConfig",
    "Field",
    "GPTQConfig",
    "HqqConfig",
    "RtnConfig",
    "TeqConfig",
    "check_switch",
    "of_config",
]

logger = logging.getLogger("woq")

# Fields of one run, which `WeightOnlyQuantConfig` has by the same names: {name: default}.
_ONE_RUN = {
    field.name: field.default
    for field in dataclasses.fields(WeightOnlyQuantConfig)
    if not field.metadata.get("stored", True)
}


def of_config(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that `WeightOnlyQuantConfig` has by the same name."""
    fields = dataclasses.fields(WeightOnlyQuantConfig)
    return {field.name: given[field.name] for field in fields if field.name in given}


class Field(NamedTuple):
    """An argument of a class that is no option of its algorithm."""

    annotation: str
    default: Any
    help: str


class Switch(NamedTuple):
    """A field of ITREX that says how its own runtimes work."""

    annotation: str
    harmless: tuple[Any, ...]  # the first one is the default
    # What is logged for other values; None: they are an error.
    note: str | None = None
    help: str = "of ITREX's runtimes; there is one way to run here"


_FIELDS: dict[str, Field] = {
    "bits": Field("int", 4, "2 to 8"),
    "nbits": Field("int", 4, "2 to 8"),
    "tokenizer": Field("Any", _ONE_RUN["tokenizer"], "of the calibration data"),
    "dataset": Field("Any", _ONE_RUN["dataset"], "calibration data"),
    "group_size": Field("int", 32, "weights that share a scale; -1: a row"),
    "compute_dtype": Field("Any", None, "of the products; None: fp32"),
    "weight_dtype": Field("str | None", None, "None: int2 to int8, as bits says"),
    "scale_dtype": Field("Any", None, "of the stored scales; None: fp32"),
    "use_double_quant": Field("bool", False, "store the scales in 8 bits"),
    "sym": Field("bool", True, "without zero points"),
    "zero_point": Field("bool", True, "with zero points"),
    "axis": Field("int", 1, "1: groups along the input features"),
    "mse_range": Field("bool | None", None, "search the ranges for the least error"),
    "llm_int8_skip_modules": Field("list[str] | None", None, "modules_to_not_convert"),
    "skip_modules": Field("list[str] | None", None, "modules_to_not_convert"),
    "quantize_lm_head": Field("bool | str", False, "also the output embedding"),
    "quantize_embedding": Field("bool | str", False, "also the input embedding"),
    "layer_config": Field(
        "dict[str, dict[str, Any] | None] | None", None, "settings of some layers"
    ),
    "work_dir": Field("Any", _ONE_RUN["work_dir"], "keeps finished layers"),
    "activation_memory": Field("int | str", _ONE_RUN["activation_memory"], "held in memory"),
    "imatrix": Field("Any", _ONE_RUN["imatrix"], "an importance matrix, or its path"),
    "block_name_to_quantize": Field(
        "str | None", None, "quantize what is in this module only, such as model.layers"
    ),
    "modules_in_block_to_quantize": Field(
        "list[list[str]] | list[str] | None",
        None,
        "quantize layers only whose names end so, such as self_attn.q_proj",
    ),
    "then": Field("str | None", None, "'gptq': round the scaled weights by GPTQ"),
    "gptq_args": Field("Mapping[str, Any] | None", None, "options of GPTQ"),
}

SWITCHES: dict[str, Switch] = {
    # woq always holds one layer or block at a time.
    "layer_wise": Switch("bool", (False, True)),
    "use_ggml": Switch("bool", (False,)),
    "use_quant": Switch("bool", (True,)),
    "use_neural_speed": Switch("bool", (False,), "woq runs its own kernels"),
    "double_quant_scale_dtype": Switch("Any", (None, "fp32")),
    "device": Switch("str", ("auto", "cpu")),
    "use_ipex": Switch("bool", (False,), "woq runs its own kernels"),
}

# Names of AutoAWQ's and transformers' classes for arguments that all classes here have.
_OTHER_NAMES = {
    "w_bit": "bits",
    "q_group_size": "group_size",
    "modules_to_not_convert": "llm_int8_skip_modules",
}
_KERNELS = "woq runs its own kernels"
_OWN_FORMAT = "woq saves in its own format"
_ANY_BLOCK = "woq finds the blocks of a model, and keeps what goes from one to the next"
# Arguments of AutoGPTQ's, AutoAWQ's and transformers' classes that say how their runtimes work.
_GPTQ_RUNTIME = {
    "backend": _KERNELS,
    "use_exllama": _KERNELS,
    "disable_exllama": _KERNELS,
    "exllama_config": _KERNELS,
    "use_cuda_fp16": _KERNELS,
    "format": _OWN_FORMAT,
    "checkpoint_format": _OWN_FORMAT,
    "meta": _OWN_FORMAT,
    "module_name_preceding_first_block": _ANY_BLOCK,
    "cache_block_outputs": _ANY_BLOCK,
    "pad_token_id": "samples are cut from the text, and never padded",
}
_AWQ_RUNTIME = {
    "backend": _KERNELS,
    "exllama_config": _KERNELS,
    "do_fuse": _KERNELS,
    "fuse_max_seq_len": _KERNELS,
    "modules_to_fuse": _KERNELS,
    "format": _OWN_FORMAT,
    "version": _OWN_FORMAT,
}

# Stands for the options of the algorithm in a list of arguments.
_OPTIONS = "*"
_DATA = "bits tokenizer dataset"
_FORMAT = "compute_dtype weight_dtype scale_dtype use_double_quant"
_DOUBLED = "use_double_quant double_quant_scale_dtype"
_ITREX_FORMAT = f"compute_dtype weight_dtype scale_dtype {_DOUBLED}"
_RUN = "work_dir activation_memory"
_ITREX = (
    "use_ggml use_quant use_neural_speed llm_int8_skip_modules quantize_lm_head device use_ipex "
    "layer_config"
)


class AlgorithmConfig(WeightOnlyQuantConfig):
    """Turns ITREX's fields into the canonical ones.

    A class of one algorithm is defined with

        algorithm: its name.
        arguments: the names of its arguments, in order, but for quantize_embedding, which is the
            last one of all classes; `*` stands for the algorithm's options. A
            second name of an option is an argument of its own, None by default.
        defaults: of arguments, where they are not the usual ones.
        keywords: more arguments, by keyword only, which the class takes out in `_adapt`.
        ignored: arguments, by keyword only, that are logged and have no effect: {name: why}.
    """

    _method: ClassVar[Algorithm]
    _signature: ClassVar[inspect.Signature]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError("AlgorithmConfig is no algorithm's; use one of the classes that are")

    def __init_subclass__(
        cls,
        *,
        algorithm: str | None = None,
        arguments: str | None = None,
        defaults: Mapping[str, Any] | None = None,
        keywords: Mapping[str, Field] | None = None,
        ignored: Mapping[str, str] | None = None,
    ) -> None:
        super().__init_subclass__()
        if ignored is not None:
            cls._ignored = ignored
        if algorithm is not None:
            cls._method = find_algorithm(algorithm)
        if arguments is not None:
            parameters = _parameters(cls._method, f"{arguments} quantize_embedding")
        elif defaults is None and keywords is None:
            return  # shares a part of its work with other classes
        else:
            parameters = dict(cls._signature.parameters)
        for name, default in (defaults or {}).items():
            parameters[name] = parameters[name].replace(default=default)
        for name, field in (keywords or {}).items():
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters[name] = _parameter(name, field.annotation, field.default, kind)
        cls._signature = inspect.Signature(list(parameters.values()), return_annotation="None")
        others = {
            **_OTHER_NAMES,
            **{
                other: name for name, option in cls._method.options.items() for other in option.also
            },
        }
        cls._other_names = {
            other: name
            for other, name in others.items()
            if name in parameters and other not in parameters
        }
        cls.__init__ = _initialiser(cls._signature)  # type: ignore[method-assign]
        # Else `__new__` is what help() shows of the class, which takes anything.
        shown = [each for name, each in parameters.items() if name != "self"]
        cls.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
        cls.__doc__ = _documented(cls.__doc__, cls._method, parameters, keywords or {})

    def _adapt(self, given: dict[str, Any], written: Collection[str]) -> None:
        """Replaces arguments that only this class has by those that all classes share. `given` are
        all arguments, `written` the names of those that were passed."""

    def _set(self, given: dict[str, Any], written: Collection[str]) -> None:
        """Initialise from all arguments, by name."""
        owner = type(self).__name__
        self._adapt(given, written)
        for name, switch in SWITCHES.items():
            if name in given:
                check_switch(owner, name, given[name], switch.harmless, switch.note)
        bits, sym = given["bits"], given["sym"]
        _check_bits(f"{owner}.bits", bits)
        if not isinstance(sym, bool):
            raise InvalidArgument(f"{owner}.sym must be True or False, got {sym!r}")
        algorithm, more = _composed(owner, self._method, given)
        super().__init__(
            **{
                **of_config(given),
                "weight_dtype": given["weight_dtype"] or _integers_of(bits),
                "compute_dtype": given["compute_dtype"] or "fp32",
                "scale_dtype": given["scale_dtype"] or "fp32",
                "scheme": "sym" if sym else "asym",
                "algorithm": algorithm,
                "algorithm_args": {**_options(owner, self._method, given, written), **more},
                "modules_to_not_convert": given["llm_int8_skip_modules"],
                "layer_config": {} if given["layer_config"] is None else given["layer_config"],
            }
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
        known = cls._signature.parameters
        method, then = base.method, base.method.then
        first = method if then is None else find_algorithm(method.name.partition("+")[0])
        if first is not cls._method or (then is not None and "then" not in known):
            raise InvalidArgument(f"{cls.__name__} cannot read a config of {base.algorithm}")
        fields = {
            "bits": base.bits,
            "nbits": base.bits,
            "group_size": base.group_size,
            **{name: getattr(base, name) for name in _FORMAT.split()},
            "mse_range": base.mse_range,
            "sym": base.sym,
            "zero_point": not base.sym,
            "llm_int8_skip_modules": base.modules_to_not_convert,
            "skip_modules": base.modules_to_not_convert,
            "quantize_lm_head": base.quantize_lm_head,
            "quantize_embedding": base.quantize_embedding,
            "layer_config": base.layer_config,
            **base.algorithm_args,
        }
        if then is not None:
            rest = {
                name: value
                for name, value in base.algorithm_args.items()
                if name not in first.options
            }
            fields |= {"then": then.name.lower(), "gptq_args": rest}
        return cls(**{name: value for name, value in fields.items() if name in known})


def _parameter(
    name: str,
    annotation: str,
    default: Any,
    kind: Any = inspect.Parameter.POSITIONAL_OR_KEYWORD,
) -> inspect.Parameter:
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


def _parameters(method: Algorithm, arguments: str) -> dict[str, inspect.Parameter]:
    """The parameters of a class, `self` first."""
    self = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = {"self": self}
    others = {other: option for option in method.options.values() for other in option.also}
    for name in arguments.split():
        if name == _OPTIONS:
            for own, option in method.options.items():
                parameters[own] = _parameter(own, option.annotation, option.default)
        elif name in others:
            parameters[name] = _parameter(name, f"{others[name].annotation} | None", None)
        elif name in SWITCHES:
            switch = SWITCHES[name]
            parameters[name] = _parameter(name, switch.annotation, switch.harmless[0])
        else:
            field = _FIELDS[name]
            parameters[name] = _parameter(name, field.annotation, field.default)
    return parameters


def _initialiser(signature: inspect.Signature) -> Callable[..., None]:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        owner = type(self).__name__
        given = {}
        for name, value in kwargs.items():
            if name in self._ignored:
                # None and False ask for nothing.
                level = logging.DEBUG if value is None or value is False else logging.WARNING
                logger.log(
                    level, "%s.%s=%r is ignored: %s", owner, name, value, self._ignored[name]
                )
            elif value is not None or name not in self._other_names:
                given[name] = value
        renamed = {self._other_names.get(name, name): value for name, value in given.items()}
        if len(renamed) < len(given):
            raise InvalidArgument(f"{owner}: two of {', '.join(given)} are names of one option")
        bound = signature.bind(self, *args, **renamed)
        written = set(bound.arguments)
        bound.apply_defaults()
        self._set({k: value for k, value in bound.arguments.items() if k != "self"}, written)

    __init__.__signature__ = signature  # type: ignore[attr-defined]
    return __init__


def _documented(
    text: str | None,
    method: Algorithm,
    parameters: Mapping[str, inspect.Parameter],
    keywords: Mapping[str, Field],
) -> str | None:
    """The class's docstring and a line for each argument."""
    if text is None:
        return None  # python -OO
    lines = [inspect.cleandoc(text), "", "Args:"]
    for name in parameters:
        if name != "self":
            what = f"{name}: {_meaning(name, method, keywords)}"
            lines += textwrap.wrap(what, 96, initial_indent="    ", subsequent_indent="        ")
    return "\n".join(lines)


def _meaning(name: str, method: Algorithm, keywords: Mapping[str, Field]) -> str:
    own: dict[str, Option | Field | Switch] = {
        **_FIELDS,
        **SWITCHES,
        **keywords,
        **method.options,
    }
    if name in own:
        return f"{own[name].help}."
    return next(
        f"another name of {option}." for option, o in method.options.items() if name in o.also
    )


def _check_bits(field: str, bits: Any) -> None:
    if not isinstance(bits, int) or isinstance(bits, bool) or not 2 <= bits <= 8:
        raise InvalidArgument(f"{field} must be 2 to 8, got {bits!r}")


def _integers_of(bits: int) -> str:
    """The weight dtype of integers that many bits wide."""
    return "int4_clip" if bits == 4 else f"int{bits}"


def _options(
    owner: str, method: Algorithm, given: Mapping[str, Any], written: Collection[str]
) -> dict[str, Any]:
    """The algorithm's options among the arguments, which can have more than one name for one."""
    options = {name: given[name] for name in method.options}
    for name, option in method.options.items():
        for other in option.also:
            if given.get(other) is None:
                continue
            if name in written and options[name] != given[other]:
                raise InvalidArgument(
                    f"{owner}: {name}={options[name]!r} and {other}={given[other]!r} contradict "
                    "each other; they are two names of one option"
                )
            options[name] = given[other]
    return options


def _composed(
    owner: str, first: Algorithm, given: Mapping[str, Any]
) -> tuple[str, Mapping[str, Any]]:
    """The algorithm's name, and the options of what comes second."""
    then, options = given.get("then"), given.get("gptq_args")
    if then is None:
        if options is not None:
            raise InvalidArgument(f"{owner}.gptq_args needs then='gptq'")
        return first.name, {}
    if not isinstance(then, str) or then.upper() != "GPTQ":
        raise InvalidArgument(f"{owner}.then must be 'gptq' or None, got {then!r}")
    if options is not None and not isinstance(options, Mapping):
        raise InvalidArgument(f"{owner}.gptq_args must be a dict of options, got {options!r}")
    twice = [name for name in options or () if name in first.options]
    if twice:
        raise InvalidArgument(
            f"{owner}.gptq_args has {', '.join(twice)}: that is an argument of {owner} itself"
        )
    return f"{first.name}+{then.upper()}", options or {}


def check_switch(
    owner: str, name: str, value: Any, harmless: tuple[Any, ...], note: str | None
) -> None:
    """Complain of a value that is not among the harmless ones; with a `note` it is only logged."""
    if value in harmless:
        return
    if note is None:
        allowed = " or ".join(repr(choice) for choice in harmless)
        raise InvalidArgument(f"{owner}.{name}={value!r} has no meaning in woq; allowed: {allowed}")
    logger.warning("%s.%s=%r is ignored: %s", owner, name, value, note)


def _outside(owner: str, block: Any) -> list[str]:
    """A pattern of all modules that are not in the module `block`; none for None."""
    if block is None:
        return []
    if not isinstance(block, str):
        raise InvalidArgument(
            f"{owner}.block_name_to_quantize must be a module's name, got {block!r}"
        )
    return [rf"(?!{re.escape(block)}\.).+"]


def _unlike(owner: str, layers: Any) -> list[str]:
    """A pattern of all modules whose names do not end with one of `layers`; none for None."""
    if layers is None:
        return []
    groups = layers if isinstance(layers, (list, tuple)) else [layers]
    names = [
        name
        for group in groups
        for name in (group if isinstance(group, (list, tuple)) else [group])
    ]
    if not names or not all(isinstance(name, str) for name in names):
        raise InvalidArgument(
            f"{owner}.modules_in_block_to_quantize must be a list of names, got {layers!r}"
        )
    ends = "|".join(re.escape(name) for name in dict.fromkeys(names))
    return [rf"(?!(?:.*\.)?(?:{ends})$).+"]


class RtnConfig(
    AlgorithmConfig,
    algorithm="RTN",
    arguments=f"bits group_size compute_dtype weight_dtype scale_dtype mse_range {_DOUBLED} "
    "sym layer_wise use_ggml use_quant use_neural_speed "
    "llm_int8_skip_modules quantize_lm_head device use_ipex imatrix layer_config",
    defaults={"mse_range": False},
):
    """Round to nearest, with the field names and defaults of ITREX 1.4; `imatrix` is
    `WeightOnlyQuantConfig`'s."""


class HqqConfig(
    AlgorithmConfig,
    algorithm="HQQ",
    arguments=f"nbits group_size axis skip_modules {_FORMAT} {_OPTIONS} quantize_lm_head "
    "layer_config",
    defaults={"group_size": 64},
):
    """HQQ (Badri and Shaji, 2023), data-free: the zero point of every group for the least sum of
    `|error|^lp_norm`.

    `nbits`, `group_size`, `axis` and `skip_modules` are those of transformers' HqqConfig; only
    `axis=1` (groups along the input features) is supported. Zero points are real numbers, 32 bits a
    group."""

    def _adapt(self, given: dict[str, Any], written: Collection[str]) -> None:
        axis, bits = given.pop("axis"), given.pop("nbits")
        if axis != 1:
            raise InvalidArgument(
                f"HqqConfig.axis must be 1 (groups along the input features), got {axis!r}"
            )
        _check_bits("HqqConfig.nbits", bits)
        given.update(bits=bits, sym=False, llm_int8_skip_modules=given.pop("skip_modules"))


class GPTQConfig(
    AlgorithmConfig,
    algorithm="GPTQ",
    arguments=f"{_DATA} group_size {_ITREX_FORMAT} sym mse_range {_OPTIONS} "
    f"n_samples max_input_length {_RUN} layer_wise {_ITREX} "
    "block_name_to_quantize modules_in_block_to_quantize",
    ignored=_GPTQ_RUNTIME,
):
    """GPTQ (arXiv:2210.17323): columns are rounded one after the other, and the columns that follow
    compensate the error of each rounding, weighted by the inputs' second moments.

    `desc_act` takes the columns in the order of their inputs' size, which costs a permutation at
    run time; `act_group_aware` keeps every column in its group, which does not, and is on
    unless `desc_act` is. `gptaq_alpha` above 0 also compensates the error that the quantized layers
    before this one add to its inputs (GPTAQ, arXiv:2504.02692; its authors' code has 0.25).

    Arguments of transformers' GPTQConfig and AutoGPTQ's BaseQuantizeConfig that choose a runtime
    (backend, use_exllama, ...) are taken, logged, and have no effect.
    """

    def _adapt(self, given: dict[str, Any], written: Collection[str]) -> None:
        owner = type(self).__name__
        block = given.pop("block_name_to_quantize")
        layers = given.pop("modules_in_block_to_quantize")
        others = [*_outside(owner, block), *_unlike(owner, layers)]
        if others:
            skipped = given["llm_int8_skip_modules"] or []
            given["llm_int8_skip_modules"] = [*skipped, *others]


class AwqConfig(
    AlgorithmConfig,
    algorithm="AWQ",
    arguments=f"{_DATA} group_size {_ITREX_FORMAT} zero_point mse_range "
    f"{_OPTIONS} n_samples max_input_length calib_len {_RUN} {_ITREX} then gptq_args",
    ignored=_AWQ_RUNTIME,
):
    """AWQ (arXiv:2306.00978): input channels with large activations are scaled up before rounding
    and down again at run time. `zero_point=True` is `sym=False` by AutoAWQ's name.

    `then="gptq"` rounds the scaled weights by GPTQ, on ranges that are clipped as without it;
    `gptq_args` are GPTQ's options.

    AutoAWQ's w_bit and q_group_size are names of `bits` and `group_size`; arguments that choose its
    runtime (version, do_fuse, ...) are taken, logged, and have no effect."""

    def _adapt(self, given: dict[str, Any], written: Collection[str]) -> None:
        zero_point = given.pop("zero_point")
        if not isinstance(zero_point, bool):
            raise InvalidArgument(
                f"{type(self).__name__}.zero_point must be True or False, got {zero_point!r}"
            )
        given["sym"] = not zero_point


class TeqConfig(
    AlgorithmConfig,
    algorithm="TEQ",
    arguments=f"{_DATA} group_size {_ITREX_FORMAT} sym mse_range {_OPTIONS} "
    f"n_samples max_input_length calib_len {_RUN} {_ITREX} then gptq_args",
):
    """TEQ (arXiv:2310.10944): the scaling of the input channels is learnt by gradient descent.

    `then="gptq"` rounds the scaled weights by GPTQ, whose options `gptq_args` are."""


class AutoRoundConfig(
    AlgorithmConfig,
    algorithm="AUTOROUND",
    arguments=f"{_DATA} group_size {_ITREX_FORMAT} sym mse_range {_OPTIONS} "
    f"n_samples max_input_length calib_len {_RUN} {_ITREX}",
):
    """AutoRound (arXiv:2309.05516): whether each weight is rounded up or down, and how far each
    group's range reaches, is learnt block by block, starting from GPTQ's result or, with
    `start="rtn"`, as the paper has it. `lr` None is 0.3 / iters after GPTQ and 1 / iters after RTN;
    `minmax_lr` None is 0.3 and 1 times `lr`; no iterations are plain RTN."""
