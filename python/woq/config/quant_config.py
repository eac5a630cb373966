# SPDX-License-Identifier: Apache-2.0
"""What to quantize to, and how: `WeightOnlyQuantConfig`, the one description that is saved. The
classes with ITREX's field names in `algorithm_configs.py` are other ways to write it.

Neither torch nor transformers is needed here. transformers' base class is added to the class when
woq registers itself there (`woq.hf.quantizer.register`), so `import woq` stays light.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from ..core import native
from ..core.nearest import nearest
from ..core.units import parse_bytes
from .patterns import check_patterns
from .registry import Algorithm, algorithm_names, find_algorithm

__all__ = ["FORMAT_VERSION", "WeightOnlyQuantConfig"]

logger = logging.getLogger("woq")

# Version of the stored tensors (names, shapes, code order). A reader refuses what is newer. Version
# 1 stored neither the form of a layer's tensors (`woq.formats.stored_tensors.MARKER`) nor a digest.
FORMAT_VERSION = 2

_DIGEST = re.compile(r"[0-9a-f]{64}")

# "min", minima that are added after scaling, is read from files; no quantizer makes it.
_SCHEMES = ("sym", "asym", "min")

# What a rule of layer_config may set; bits and sym are other ways to write weight_dtype and scheme.
# scale_dtype is for checkpoints of other libraries, whose layers can differ in it.
_LAYER_FIELDS = ("weight_dtype", "group_size", "scheme", "scale_dtype", "bits", "sym")

# Names that users of other libraries try; difflib would not find the right one.
_OTHER_NAMES = {
    "asym": "scheme",
    "bits": "weight_dtype",
    "bnb_4bit_compute_dtype": "compute_dtype",
    "bnb_4bit_quant_type": "weight_dtype",
    **dict.fromkeys(("bnb_4bit_use_double_quant", "double_quant"), "use_double_quant"),
    "llm_int8_skip_modules": "modules_to_not_convert",
    "sym": "scheme",
}

# Annotations of fields whose values need no other check of their type.
_PLAIN_TYPES: dict[Any, tuple[type, str]] = {
    "bool": (bool, "True or False"),
    "int": (int, "an integer"),
    "str": (str, "a string"),
}

# torch's and numpy's spellings of the dtypes that the core knows by a short name.
_SHORT_DTYPES = {"float32": "fp32", "float": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def _unknown_field(owner: str, name: str, known: Iterable[str]) -> native.InvalidArgument:
    """The error for a field that `owner` lacks, with the field that was probably meant."""
    names = sorted(known)
    meant = _OTHER_NAMES.get(name)
    if meant not in names:
        meant = nearest(name, names)
    hint = f"; did you mean {meant!r}?" if meant else "."
    return native.InvalidArgument(f"{owner} has no field {name!r}{hint} Known: {', '.join(names)}")


def dtype_name(value: Any) -> Any:
    """'fp32', 'float32', torch.float32 and numpy.float32 all name the same dtype."""
    if isinstance(value, str):
        return _SHORT_DTYPES.get(value, value)
    text = getattr(value, "__name__", None) or str(value)
    return _SHORT_DTYPES.get(text.rpartition(".")[2], value)


def _require(owner: str, field: str, value: Any, kind: type, what: str) -> None:
    # bool is an int in Python: group_size=True must not pass for 1.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise native.InvalidArgument(f"{owner}.{field} must be {what}, got {value!r}")


def _widths() -> list[int]:
    """Bits that a weight can have; 16 stands for floating point."""
    return sorted({native.dtype_traits(name).bits for name in native.dtype_names()} | {16})


# Marks fields that are not part of what a checkpoint says of itself.
_ONE_RUN = {"stored": False}


class _TransformersConfig:
    """What transformers calls on a quantization config besides `to_dict` and `from_dict`.

    Stands between the config and `object` so that transformers' own mixin can be appended to
    `WeightOnlyQuantConfig.__bases__` later: Python refuses that for a class whose only base is
    `object`.
    """

    quant_method: ClassVar[str] = "woq"
    compute_dtype: str
    # The arguments that the caller has named, as against those that have their defaults.
    _given: frozenset[str] = frozenset()

    def names_only(self, argument: str) -> bool:
        """Whether the caller has named this argument and no other."""
        return self._given == {argument}

    def get_loading_attributes(self) -> dict[str, Any]:
        """Fields that a call which loads a saved checkpoint may choose anew, where it names them:
        the dtype of products. All others are those of the stored tensors, or of quantizing."""
        changed = self.compute_dtype != type(self).compute_dtype
        if changed or "compute_dtype" in self._given:
            return {"compute_dtype": self.compute_dtype}
        return {}


@dataclasses.dataclass(eq=False, repr=False)
class WeightOnlyQuantConfig(_TransformersConfig):
    """How the weights of a model are quantized. Every combination is validated by the core.

    Args:
        weight_dtype: int2, int3, int4_fullrange, int4_clip (alias int4), int5 to int8, nf4,
            fp4_e2m1, fp4_e2m1_bnb (alias fp4) or iq4_nl.
        compute_dtype: dtype of the products: fp32, bf16 or int8 (activations quantized on the fly);
            "auto" for the fastest on this machine whose error is small beside the weights'.
        scale_dtype: dtype of the stored scales: fp32, fp16 or bf16.
        group_size: weights that share a scale, along the input features; -1 for a whole row.
        scheme: "sym", or "asym" (a zero point per group; integers only). "min" (a minimum per
            group that is added after scaling) describes checkpoints of other libraries.
        use_double_quant: store the scales themselves in 8 bits.
        mse_range: search the scale of every group that gives the least squared error, weighted as
            the calibration data says if there is any; None: if there is any.
        algorithm: "RTN" (round to nearest); "HQQ", which finds zero points; "GPTQ", "AWQ", "TEQ" or
            "AUTOROUND", which look at what the model does with calibration data; "AWQ+GPTQ" or
            "TEQ+GPTQ", one after the other.
        algorithm_args: options of the algorithm by name; those left out get their defaults.
        modules_to_not_convert: names, suffixes or regular expressions of modules to leave alone,
            matched as transformers matches them.
        layer_config: {pattern: settings} for modules with settings of their own; patterns match as
            those of `modules_to_not_convert` do, and the first one that matches counts. Settings:
            any of weight_dtype (or bits: 4, 8), group_size and scheme (or sym); None, or 16 bits,
            leaves the module in floating point. Kept and saved in order (in JSON as pairs).
        quantize_lm_head: also quantize the output embedding; a dtype name gives it a dtype of its
            own ("int8"). An output embedding tied to the input embedding is untied in memory, and
            the input embedding keeps its values, unless `quantize_embedding` says otherwise.
        quantize_embedding: also quantize the input embedding. Where the output embedding is tied to
            it and quantized they share one packed weight, in the format of the output embedding;
            otherwise it is `weight_dtype`, or the dtype that is named. "tied": only in the first
            case.
        dataset: calibration data: a list (or another iterable) of strings, of token tensors or of
            chats, the path of a text file, a `datasets` dataset or the name of one ("wikitext2",
            "c4", "ptb" and "pile-10k" are known by these), or "self" for text sampled from the
            model itself, which None stands for too.
        tokenizer: tokenizes `dataset`; default: the one saved beside the model.
        work_dir: folder that keeps finished layers: a run that was interrupted goes on from there,
            and gives what it would have given.
        activation_memory: bytes (or a text like "2GB") of activations to hold in memory; what is
            beyond goes to a temporary file.
        imatrix: for RTN an importance matrix (`woq.ImportanceMatrix`, or the path of llama.cpp's):
            scales are searched for the least error weighted by it. Layers that it lacks are
            rounded as with `mse_range`.

    The last five belong to one run: they are not saved, and make no difference to equality.

    Attributes:
        format_version: of the checkpoint that the config was read from.
        digest: of the tensors that the config was saved with last, or read from; None: of none.
            Files of another save are refused when they are loaded.
    """

    # Other names of arguments: {name: the argument}.
    _other_names: ClassVar[Mapping[str, str]] = {}
    # Arguments that are taken and mean nothing here: {name: why}.
    _ignored: ClassVar[Mapping[str, str]] = {}

    weight_dtype: str = "int4_fullrange"
    compute_dtype: str = "fp32"
    scale_dtype: str = "fp32"
    group_size: int = 32
    scheme: str = "sym"
    use_double_quant: bool = False
    mse_range: bool | None = None
    algorithm: str = "RTN"
    modules_to_not_convert: list[str] | None = None
    quantize_lm_head: bool | str = False
    algorithm_args: dict[str, Any] = dataclasses.field(default_factory=dict)
    layer_config: dict[str, dict[str, Any] | None] = dataclasses.field(default_factory=dict)
    quantize_embedding: bool | str = False
    dataset: Any = dataclasses.field(default=None, metadata=_ONE_RUN)
    tokenizer: Any = dataclasses.field(default=None, metadata=_ONE_RUN)
    work_dir: Any = dataclasses.field(default=None, metadata=_ONE_RUN)
    activation_memory: int | str = dataclasses.field(default="2GB", metadata=_ONE_RUN)
    imatrix: Any = dataclasses.field(default=None, metadata=_ONE_RUN)
    format_version: int = dataclasses.field(default=FORMAT_VERSION, init=False, metadata=_ONE_RUN)
    digest: str | None = dataclasses.field(default=None, init=False, metadata=_ONE_RUN)

    def __new__(cls, *args: Any, **kwargs: Any) -> WeightOnlyQuantConfig:
        # Before __init__, so that a misspelt field gets a suggestion and not Python's TypeError.
        known = tuple(inspect.signature(cls.__init__).parameters)[1:]
        for name in kwargs:
            if name not in known and name not in cls._other_names and name not in cls._ignored:
                raise _unknown_field(cls.__name__, name, known)
        new = super().__new__(cls)
        named = (cls._other_names.get(name, name) for name in kwargs)
        new._given = frozenset((*known[: len(args)], *named))
        return new

    def __post_init__(self) -> None:
        self.validate()

    @property
    def asym(self) -> bool:
        return self.scheme != "sym"

    @property
    def sym(self) -> bool:
        return self.scheme == "sym"

    @property
    def bits(self) -> int:
        return native.dtype_traits(self.weight_dtype).bits

    @property
    def method(self) -> Algorithm:
        """What woq knows of the algorithm."""
        return find_algorithm(self.algorithm)

    @property
    def needs_calibration(self) -> bool:
        """Whether the algorithm looks at data."""
        return self.method.needs_calibration

    @property
    def stores_g_idx(self) -> bool:
        """Whether layers store the group of each column (act-order)."""
        return self.method.stores_g_idx(self.algorithm_args)

    @property
    def stores_act_scales(self) -> bool:
        """Whether layers store multipliers of their input."""
        return self.method.scales_inputs and not self.algorithm_args.get("fold_scales", False)

    @property
    def stores_float_zeros(self) -> bool:
        """Whether zero points are real numbers."""
        return self.method.finds_zero_points

    @property
    def lm_head_dtype(self) -> str | None:
        """Dtype of the output embedding, None when it is left alone."""
        if isinstance(self.quantize_lm_head, str):
            return self.quantize_lm_head
        return self.weight_dtype if self.quantize_lm_head else None

    def validate(self) -> None:
        """Check every field, and bring names to their canonical form.

        Raises:
            InvalidArgument: names the field, its value and what is allowed.
        """
        owner = type(self).__name__
        self.compute_dtype = dtype_name(self.compute_dtype)
        self.scale_dtype = dtype_name(self.scale_dtype)
        for field in dataclasses.fields(self):
            if field.type in _PLAIN_TYPES:
                _require(owner, field.name, getattr(self, field.name), *_PLAIN_TYPES[field.type])
        if self.mse_range is not None:
            _require(owner, "mse_range", self.mse_range, bool, "True, False or None")
        if self.scheme not in _SCHEMES:
            raise native.InvalidArgument(
                f"{owner}.scheme must be 'sym' or 'asym', got {self.scheme!r}"
            )
        method = find_algorithm(self.algorithm, f"{owner}.algorithm")
        self.algorithm = method.name
        if method.mse_range is None and self.mse_range:
            raise native.InvalidArgument(
                f"{owner}.mse_range: {method.name} has a search of its own; leave it out"
            )
        if self.mse_range is None:
            self.mse_range = bool(method.mse_range)
        _require(owner, "algorithm_args", self.algorithm_args, dict, "a dict of options")
        self.algorithm_args = method.complete(owner, self.algorithm_args)
        parse_bytes(self.activation_memory, f"{owner}.activation_memory")
        self._check_imatrix(owner)
        skip = self.modules_to_not_convert
        if skip is not None:
            # A lone string would be taken apart into letters, each a pattern.
            if not isinstance(skip, list | tuple | set) or not all(
                isinstance(name, str) for name in skip
            ):
                raise native.InvalidArgument(
                    f"{owner}.modules_to_not_convert must be a list of strings, got {skip!r}"
                )
            self.modules_to_not_convert = list(skip)
        native.check_compute_dtype(self.compute_dtype)
        self.weight_dtype = self.number_format().dtype
        if method.finds_zero_points and not self.asym:
            raise native.InvalidArgument(
                f"{owner}: {method.name} finds zero points: it needs scheme='asym' and an integer "
                f"weight_dtype, got {self.scheme!r} and {self.weight_dtype!r}"
            )
        if not isinstance(self.quantize_lm_head, bool):
            _require(owner, "quantize_lm_head", self.quantize_lm_head, str, "a bool or a dtype")
            self.quantize_lm_head = self.number_format(self.quantize_lm_head).dtype
        if not isinstance(self.quantize_embedding, bool) and self.quantize_embedding != "tied":
            what = "a bool, 'tied' or a dtype"
            _require(owner, "quantize_embedding", self.quantize_embedding, str, what)
            self.quantize_embedding = self.number_format(self.quantize_embedding).dtype
        self.layer_config = self._validate_layer_config(self.layer_config)
        check_patterns(
            owner,
            [
                *((f"{owner}.modules_to_not_convert: {name!r}", name) for name in skip or ()),
                *((f"{owner}.layer_config[{name!r}]", name) for name in self.layer_config),
            ],
        )

    def _check_imatrix(self, owner: str) -> None:
        if self.imatrix is None:
            return
        if not isinstance(self.imatrix, (str, os.PathLike)) and not hasattr(
            self.imatrix, "of_model"
        ):
            raise native.InvalidArgument(
                f"{owner}.imatrix must be a path or a woq.ImportanceMatrix, "
                f"got {type(self.imatrix).__name__}"
            )
        if not self.method.takes_imatrix:
            takers = [name for name in algorithm_names() if find_algorithm(name).takes_imatrix]
            raise native.InvalidArgument(
                f"{owner}.imatrix is for algorithm {' and '.join(takers)}; {self.algorithm} makes "
                "no use of it"
            )

    def number_format(
        self,
        weight_dtype: str | None = None,
        group_size: int | None = None,
        scheme: str | None = None,
        scale_dtype: str | None = None,
    ) -> native.QuantScheme:
        """The number format that the fields describe, some of them replaced by what is given.
        Raises InvalidArgument."""
        zeros = {
            "sym": "none",
            "asym": "float" if self.stores_float_zeros else "int",
            "min": "min",
        }[scheme or self.scheme]
        size = self.group_size if group_size is None else group_size
        if abs(size) >= 2**31:
            raise native.InvalidArgument(f"group_size {size} is too large: use -1 for a whole row")
        return native.QuantScheme(
            self.weight_dtype if weight_dtype is None else weight_dtype,
            size,
            zeros,
            native.scale_encoding(
                self.scale_dtype if scale_dtype is None else scale_dtype,
                self.use_double_quant and scale_dtype is None,
            ),
        )

    def _validate_layer_config(self, rules: Any) -> dict[str, dict[str, Any] | None]:
        """The rules in their canonical form: the first four of `_LAYER_FIELDS` only."""
        path = f"{type(self).__name__}.layer_config"
        if isinstance(rules, (list, tuple)) and all(
            isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in rules
        ):
            rules = dict(rules)  # pairs, as JSON has them
        _require(type(self).__name__, "layer_config", rules, Mapping, "a dict of settings")  # type: ignore[type-abstract]
        canonical = {}
        for pattern, settings in rules.items():
            _require(type(self).__name__, "layer_config", pattern, str, "a dict with string keys")
            where = f"{path}[{pattern!r}]"
            if settings is not None and not isinstance(settings, Mapping):
                raise native.InvalidArgument(
                    f"{where} must be a dict of settings, or None, got {settings!r}"
                )
            canonical[pattern] = None if settings is None else self._layer_settings(where, settings)
        return canonical

    def _layer_settings(self, where: str, given: Mapping[str, Any]) -> dict[str, Any] | None:
        for name in given:
            if name not in _LAYER_FIELDS:
                raise _unknown_field(where, str(name), _LAYER_FIELDS)
        bits = given.get("bits")
        widths = _widths()
        if bits is not None and (isinstance(bits, bool) or bits not in widths):
            known = f"{', '.join(map(str, widths[:-1]))} or {widths[-1]}"
            raise native.InvalidArgument(f"{where}.bits must be {known}, got {bits!r}")
        if bits == 16:
            if len(given) > 1:
                raise native.InvalidArgument(
                    f"{where}: 16 bits leave a module in floating point, which has no "
                    f"{', '.join(name for name in given if name != 'bits')}"
                )
            return None
        settings: dict[str, Any] = {}
        symmetric = given.get("scheme") == "sym" or given.get("sym")
        if symmetric and self.method.finds_zero_points:
            raise native.InvalidArgument(
                f"{where}: {self.algorithm} finds zero points, so that no layer is symmetric; None "
                "leaves a module in floating point"
            )
        if "group_size" in given:
            _require(where, "group_size", given["group_size"], int, "an integer")
            settings["group_size"] = given["group_size"]
        if "sym" in given:
            _require(where, "sym", given["sym"], bool, "True or False")
            settings["scheme"] = "sym" if given["sym"] else "asym"
        if "scheme" in given:
            if given["scheme"] not in _SCHEMES or given["scheme"] != settings.get(
                "scheme", given["scheme"]
            ):
                raise native.InvalidArgument(
                    f"{where}.scheme must be 'sym' or 'asym', and agree with sym; "
                    f"got {given['scheme']!r}"
                )
            settings["scheme"] = given["scheme"]
        if "scale_dtype" in given:
            settings["scale_dtype"] = dtype_name(given["scale_dtype"])
        dtype = given.get("weight_dtype")
        if dtype is None and bits is not None:
            own = self.weight_dtype if self.bits == bits else None
            dtype = own or f"int{bits}"
        _require(where, "weight_dtype", dtype or "", str, "a string")
        try:
            scheme = self.number_format(
                dtype,
                settings.get("group_size"),
                settings.get("scheme"),
                settings.get("scale_dtype"),
            )
        except native.InvalidArgument as error:
            raise native.InvalidArgument(f"{where}: {error}") from error
        if bits is not None and scheme.bits != bits:
            raise native.InvalidArgument(
                f"{where}: weight_dtype {dtype!r} has {scheme.bits} bits, bits is {bits}"
            )
        # The order of fields is that of the table: equal rules are written alike.
        if dtype is not None:
            settings["weight_dtype"] = scheme.dtype
        return {name: settings[name] for name in _LAYER_FIELDS if name in settings}

    def update(self, **kwargs: Any) -> dict[str, Any]:
        """Set the given fields, validate, and return what is not a field of this config."""
        known = {field.name for field in dataclasses.fields(self) if field.init}
        trial = copy.deepcopy(self)
        if str(kwargs.get("algorithm", self.algorithm)).upper() != self.algorithm:
            # Another algorithm's defaults and options.
            trial.mse_range, trial.algorithm_args = None, {}
        for name in known & kwargs.keys():
            setattr(trial, name, kwargs[name])
        trial.validate()
        self.__dict__.update(trial.__dict__)
        return {name: value for name, value in kwargs.items() if name not in known}

    def to_dict(self) -> dict[str, Any]:
        """The canonical fields as plain values: what a checkpoint's config.json holds."""
        head = {"quant_method": self.quant_method, "format_version": FORMAT_VERSION}
        if self.digest is not None:
            head["digest"] = self.digest
        return {**head, **self._settings()}

    def _settings(self) -> dict[str, Any]:
        values = {name: copy.deepcopy(getattr(self, name)) for name in _stored_fields()}
        # Pairs: writers of JSON sort the keys of objects, and the order of rules counts.
        values["layer_config"] = [[pattern, rule] for pattern, rule in self.layer_config.items()]
        # Younger than the format: checkpoints without it keep their settings and digests.
        if self.quantize_embedding is False:
            del values["quantize_embedding"]
        for name, option in self.method.options.items():
            if option.young and self.algorithm_args.get(name) == option.default:
                values["algorithm_args"].pop(name, None)
        return values

    def to_diff_dict(self) -> dict[str, Any]:
        """All fields: a checkpoint must not depend on the defaults of the version that reads it."""
        return self.to_dict()

    def to_json_string(self, use_diff: bool = True) -> str:
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path: str | os.PathLike[str]) -> None:
        with open(json_file_path, "w", encoding="utf-8") as file:
            file.write(self.to_json_string())

    @classmethod
    def from_dict(
        cls, config_dict: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """The config that `to_dict` wrote. `kwargs` overrides fields; the rest of it is handed back
        with `return_unused_kwargs` (as transformers wants it) and ignored otherwise.

        Raises:
            InvalidArgument: unknown field, another method's config, or a newer format.
        """
        values = dict(config_dict)
        method = values.pop("quant_method", cls.quant_method)
        if method != cls.quant_method:
            raise native.InvalidArgument(
                f"{cls.__name__} cannot read a config of quant_method {method!r}"
            )
        version = values.pop("format_version", FORMAT_VERSION)
        _require(cls.__name__, "format_version", version, int, "an integer")
        if not 1 <= version <= FORMAT_VERSION:
            raise native.InvalidArgument(
                f"the checkpoint has format_version {version!r}; this woq reads up to "
                f"{FORMAT_VERSION}: install a newer woq"
            )
        digest = values.pop("digest", None)
        if digest is not None and not (isinstance(digest, str) and _DIGEST.fullmatch(digest)):
            raise native.InvalidArgument(
                f"{cls.__name__}.digest must be 64 hexadecimal digits, got {digest!r}"
            )
        config = cls._from_fields(values)
        config.format_version, config.digest = version, digest
        unused = config.update(**kwargs)
        return (config, unused) if return_unused_kwargs else config

    @classmethod
    def _from_fields(cls, values: dict[str, Any]) -> WeightOnlyQuantConfig:
        return cls(**values)

    @classmethod
    def from_json_string(cls, text: str) -> Any:
        return cls.from_dict(json.loads(text))

    @classmethod
    def from_json_file(cls, json_file_path: str | os.PathLike[str]) -> Any:
        with open(json_file_path, encoding="utf-8") as file:
            return cls.from_dict(json.load(file))

    def stored(self) -> WeightOnlyQuantConfig:
        """The settings that a checkpoint keeps, as a plain `WeightOnlyQuantConfig`."""
        return WeightOnlyQuantConfig.from_dict(self.to_dict())

    def canonical(self) -> WeightOnlyQuantConfig:
        """The same settings, those of one run included, as a plain `WeightOnlyQuantConfig`."""
        config = self.stored()
        for field in dataclasses.fields(WeightOnlyQuantConfig):
            if field.name not in _stored_fields():
                setattr(config, field.name, getattr(self, field.name))
        config._given = self._given
        return config

    def __deepcopy__(self, memo: dict[int, Any]) -> WeightOnlyQuantConfig:
        # Data sets and tokenizers are shared: copying them is costly, and nothing changes them.
        new = object.__new__(type(self))
        memo[id(self)] = new
        stored = _stored_fields()
        for name, value in self.__dict__.items():
            new.__dict__[name] = copy.deepcopy(value, memo) if name in stored else value
        return new

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, WeightOnlyQuantConfig):
            return NotImplemented
        return self._settings() == other._settings()

    # Mutable, so unhashable, like every dataclass with __eq__.
    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        inner = ", ".join(f"{name}={getattr(self, name)!r}" for name in _stored_fields())
        return f"{type(self).__name__}({inner})"


def _stored_fields() -> tuple[str, ...]:
    fields = dataclasses.fields(WeightOnlyQuantConfig)
    return tuple(field.name for field in fields if field.metadata.get("stored", True))
