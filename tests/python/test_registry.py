# SPDX-License-Identifier: Apache-2.0
"""The algorithms' records: whole, light, and the only place that knows an algorithm."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import numpy as np
import pytest
from model_support import last_json, run_python

import woq
from woq import InvalidArgument, WeightOnlyQuantConfig
from woq.config import algorithm_configs
from woq.config.options import Option, boolean, choice, integer, number, optional
from woq.config.registry import algorithm_names, find_algorithm, known_algorithms
from woq.core import native

PACKAGE = Path(woq.__file__).parent
METHODS = known_algorithms()
CLASSES = [
    value
    for value in vars(algorithm_configs).values()
    if isinstance(value, type) and getattr(value, "_method", None) is not None
]


def test_every_file_is_an_algorithm() -> None:
    files = {path.stem.upper() for path in (PACKAGE / "algorithms").glob("[!_]*.py")}
    assert files == {name for name in algorithm_names() if "+" not in name}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_records_are_whole(method) -> None:
    assert find_algorithm(method.name.lower()) is method
    assert method.summary
    assert (method.quantize_weight is None) == method.needs_calibration
    assert method.needs_calibration == ("nsamples" in method.options)
    names = [other for option in method.options.values() for other in option.also]
    assert len({*names, *method.options}) == len(names) + len(method.options)
    for name, option in method.options.items():
        assert option.allowed(option.default), name
        assert option.help, name
        assert "=" not in name
    complete = method.complete("", {})
    assert method.complete("", complete) == complete
    # The functions of the options are asked with complete ones.
    assert method.stores_g_idx(complete) is False
    assert method.float_inputs(complete) is False
    assert method.follows_float(complete) is False


def test_pairs_have_the_options_of_both() -> None:
    pair, first, second = map(find_algorithm, ("AWQ+GPTQ", "AWQ", "GPTQ"))
    assert pair.then is second
    assert pair.options == {**second.options, **first.options}
    assert pair.options["nsamples"] is first.options["nsamples"]
    config = WeightOnlyQuantConfig(
        algorithm="AWQ+GPTQ", algorithm_args={"desc_act": True, "gptaq_alpha": 0.5}
    )
    assert config.stores_g_idx
    assert config.stores_act_scales
    assert config.method.float_inputs(config.algorithm_args)
    assert not config.algorithm_args["act_group_aware"]


@pytest.mark.parametrize("name", ["GPTQ+AWQ", "AWQ+RTN", "AWQ+TEQ", "AWQ+", "+GPTQ", "", "shared"])
def test_what_is_no_algorithm(name) -> None:
    known = re.escape(", ".join(algorithm_names()))
    with pytest.raises(
        InvalidArgument, match=f"{re.escape(repr(name))} is unknown; known: {known}"
    ):
        find_algorithm(name)


def test_records_load_without_torch() -> None:
    process = run_python(
        """
        import sys, json
        sys.modules["torch"] = sys.modules["transformers"] = None  # importing them fails
        from woq.config.registry import known_algorithms
        import woq.config.algorithm_configs
        print(json.dumps([method.name for method in known_algorithms()]))
        """
    )
    assert last_json(process) == algorithm_names()


@pytest.mark.parametrize("first", ["algorithms.gptq", "config.registry", "config.options"])
def test_any_module_may_be_the_first_one(first) -> None:
    process = run_python(f"import woq.{first}, woq.config.algorithm_configs\nprint('[1]')")
    assert last_json(process) == [1]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_signatures_are_the_records(cls) -> None:
    shown = inspect.signature(cls).parameters
    assert shown == dict(list(inspect.signature(cls.__init__).parameters.items())[1:])
    for name, option in cls._method.options.items():
        assert (shown[name].default, shown[name].annotation) == (option.default, option.annotation)
    defaults = {name: parameter.default for name, parameter in shown.items()}
    assert cls(**defaults) == cls()
    documented = re.findall(r"^    (\w+): \S", cls.__doc__.partition("Args:")[2], re.MULTILINE)
    assert documented == list(shown)


def test_only_the_registry_knows_an_algorithm() -> None:
    """By a string that is its name: elsewhere a record is asked. Left out are the classes that
    users know by name, and the rooms that write configs as users do."""
    rooms = ("config", "modules", "observe", "quantizing", "reports", "hf")
    found = {
        f"{path.parent.name}/{path.name}: {node.value}"
        for room in rooms
        for path in (PACKAGE / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and node.value in algorithm_names()
        if path.name != "algorithm_configs.py"
    }
    assert found == {
        "config/quant_config.py: RTN",  # the default
        "quantizing/quantize.py: RTN",  # embeddings, which are looked up and not calibrated
        "hf/packed_quantizer.py: RTN",  # what a config says of other libraries' layers
        "hf/packed_quantizer.py: GPTQ",  # the same, where columns have groups of their own
        "hf/packed_quantizer.py: HQQ",  # and where zero points are no codes
        "quantizing/driver.py: RTN",  # what a layer falls back to
        "quantizing/report.py: RTN",  # the default
    }


@pytest.mark.parametrize(
    ("option", "good", "bad"),
    [
        (integer(3, 2), [2, 3, 10**9], [1, True, 2.0, "2", None]),
        (number(1, "above 0", lambda x: x > 0), [1, 0.5], [0, -1, True, float("inf"), "1", None]),
        (boolean(True), [True, False], [0, 1, None, "True"]),
        (choice((True, False, "both"), "both"), [True, False, "both"], [1, 0, "on", None]),
        (choice(("a", "b"), "a"), ["a", "b"], ["c", True, None]),
        (optional(integer(3, 2)), [None, 2], [1, False, "None"]),
    ],
    ids=["integer", "number", "boolean", "choice", "words", "optional"],
)
def test_kinds_of_options(option: Option, good, bad) -> None:
    assert all(option.allowed(value) for value in good)
    assert not any(option.allowed(value) for value in bad)


# -- options of the core --------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_defaults_are_the_cores(method) -> None:
    """Each stands once, in the core's struct: a record's own would be a second place."""
    functions = {"GPTQ": "quantize_gptq", "AWQ": "awq_scales", "TEQ": "teq_scales"}
    function = functions.get(method.name, f"quantize_{method.name.lower()}")
    defaults = native.option_defaults().get(function, {})
    own = {option.core: option.default for option in method.options.values() if option.core}
    if method.then is None:
        assert {name: defaults[name] for name, value in own.items() if value is not None} == {
            name: value for name, value in own.items() if value is not None
        }
        assert own.keys() <= defaults.keys()
        assert method.core_options(method.complete("", {})).items() <= defaults.items()


def test_the_core_refuses_options_that_do_not_fit() -> None:
    weight = np.zeros((2, 16), np.float32)
    scheme = native.QuantScheme("int4_clip", 16, "float")
    with pytest.raises(
        InvalidArgument, match=r"unknown option 'stepps'; known: lp_norm, .*, steps"
    ):
        native.quantize_hqq(weight, scheme, stepps=1)
    with pytest.raises(InvalidArgument, match="option 'steps' cannot be 'many'"):
        native.quantize_hqq(weight, scheme, steps="many")
    with pytest.raises(InvalidArgument, match="unknown duo_scaling 'so'; known: off, on, both"):
        native.awq_scales([weight], native.Hessian(16), scheme, duo_scaling="so")
