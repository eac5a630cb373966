# SPDX-License-Identifier: Apache-2.0
"""A saved woq checkpoint in processes that import woq late, early or never."""

from __future__ import annotations

import pytest
import torch
from model_support import last_json, llama, logits, run_python

pytest.importorskip("transformers")

import woq

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])

# What torch calls for the entry point "torch.backends": tests also run where woq is on the path
# only, without the metadata of an installation.
ENTRY_POINT = """
import importlib.metadata
_real = importlib.metadata.entry_points
def entry_points(**kwargs):
    if kwargs.get("group") == "torch.backends":
        return [importlib.metadata.EntryPoint("woq", "woq.hf.autoload:install", "torch.backends")]
    return _real(**kwargs)
importlib.metadata.entry_points = entry_points
"""

LOAD = """
import json, sys
from transformers import AutoModelForCausalLM
import torch
model = AutoModelForCausalLM.from_pretrained({path!r})
ids = torch.arange(3, 19).reshape(2, 8)
with torch.no_grad():
    print(json.dumps(model(input_ids=ids).logits.flatten().tolist()))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(11)
    path = tmp_path_factory.mktemp("woq")
    model = woq.quantize(llama(tied=True), woq.WeightOnlyQuantConfig("nf4"))
    model.save_pretrained(path)
    return str(path), logits(model)


@pytest.mark.skipif(TORCH < (2, 5), reason="torch before 2.5 has no entry points")
@pytest.mark.parametrize(
    "start",
    [
        "",
        "import torch",
        # torch is first imported from inside these.
        "import transformers.quantizers",
        "from transformers import BitsAndBytesConfig",
    ],
)
def test_woq_is_never_imported(checkpoint, start):
    path, expected = checkpoint
    process = run_python(ENTRY_POINT + start + LOAD.format(path=path))
    assert torch.equal(torch.tensor(last_json(process)), expected.flatten())


@pytest.mark.parametrize(
    "start", ["import woq", "from transformers import LlamaForCausalLM; import woq"]
)
def test_without_the_entry_point_importing_woq_is_enough(checkpoint, start):
    path, expected = checkpoint
    process = run_python(start + LOAD.format(path=path), TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert torch.equal(torch.tensor(last_json(process)), expected.flatten())


def test_without_either_it_fails_instead_of_loading_random_weights(checkpoint):
    path, _ = checkpoint
    process = run_python(LOAD.format(path=path), check=False, TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert process.returncode != 0
    assert "Unknown quantization type, got woq" in process.stderr
    assert "ignore_mismatched_sizes" in process.stderr, process.stderr[-2000:]


def test_a_quantization_config_registers_itself(tmp_path):
    llama().save_pretrained(tmp_path)
    process = run_python(
        f"""
        import json, woq
        config = woq.WeightOnlyQuantConfig("nf4")
        from transformers import AutoModelForCausalLM
        model = AutoModelForCausalLM.from_pretrained({str(tmp_path)!r}, quantization_config=config)
        print(json.dumps(type(model.model.layers[0].mlp.up_proj).__name__))
        """,
        TORCH_DEVICE_BACKEND_AUTOLOAD="0",
    )
    assert last_json(process) == "WeightOnlyLinear"


def test_the_hook_costs_nothing_and_never_raises():
    process = run_python(
        ENTRY_POINT
        + """
import sys
sys.modules["woq.core.native"] = None  # importing it fails, as a broken installation would
import torch
assert "woq.hf.autoload" in sys.modules
absent = ("woq._woq", "woq.config", "woq.modules", "transformers")
assert not [name for name in absent if name in sys.modules]
import transformers.quantizers
from transformers import LlamaForCausalLM
print('"alive"')
""",
    )
    assert last_json(process) == "alive"
    if TORCH >= (2, 5):
        assert "woq could not register itself with transformers" in process.stderr


def test_registering_is_idempotent():
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING
    from transformers.utils.quantization_config import QuantizationConfigMixin

    from woq.hf import autoload
    from woq.hf.quantizer import register

    for _ in range(2):
        register()
        autoload.install()
    assert AUTO_QUANTIZATION_CONFIG_MAPPING["woq"] is woq.WeightOnlyQuantConfig
    assert issubclass(woq.WeightOnlyQuantConfig, QuantizationConfigMixin)
    config = woq.RtnConfig()
    assert woq.WeightOnlyQuantConfig.from_dict(config.to_dict()) == config
    assert "int4_clip" in repr(config)


def test_looking_for_the_module_is_not_importing_it():
    process = run_python(
        """
        import importlib.util, sys, woq
        spec = importlib.util.find_spec("transformers.quantizers")
        import transformers.quantizers.auto as auto
        assert "woq" in auto.AUTO_QUANTIZER_MAPPING
        import inspect
        assert "Quantizer" in inspect.getsource(sys.modules["transformers.quantizers"])
        print("1")
        """
    )
    assert last_json(process) == 1
