# SPDX-License-Identifier: Apache-2.0
"""woq.compat.itrex: ITREX's imports, fields, defaults and arguments; never in the way of a real
installation, gone after uninstall()."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys

import pytest
import torch
from model_support import TINY_T5, llama, run_python, t5

import woq
from woq import InvalidArgument, Unsupported
from woq.compat import itrex

transformers = pytest.importorskip("transformers")

PACKAGE = "intel_extension_for_transformers"
REMOVED = ("text2text-generation", "summarization", "translation")


@pytest.fixture
def installed():
    """The module of ITREX's transformers package."""
    itrex.install()
    yield importlib.import_module(f"{PACKAGE}.transformers")
    itrex.uninstall()


def state():
    from transformers import pipelines

    ours = sorted(name for name in sys.modules if name.startswith(PACKAGE))
    return ours, pipelines.PIPELINE_REGISTRY.get_supported_tasks(), dict(pipelines.REMOVED_TASKS)


def layers(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, woq.WeightOnlyLinear)}


def dtypes(model):
    return {layer.scheme["dtype"] for layer in layers(model).values()}


# Installing


def test_install_and_uninstall_leave_nothing():
    before = state()
    itrex.install()
    during = state()
    assert during[0]
    assert set(REMOVED) < set(during[1])
    module = sys.modules[f"{PACKAGE}.transformers"]
    itrex.install()  # again: nothing happens
    assert state() == during
    assert sys.modules[f"{PACKAGE}.transformers"] is module
    itrex.uninstall()
    assert state() == before
    itrex.uninstall()
    assert state() == before
    with pytest.raises(ModuleNotFoundError, match=PACKAGE):
        importlib.import_module(PACKAGE)


def test_pipelines_are_left_alone_if_asked():
    before = state()
    try:
        itrex.install(pipelines=False)
        assert state()[1:] == before[1:]
        with pytest.raises(KeyError):
            transformers.pipeline("summarization", model=str(TINY_T5))
        itrex.install()
        assert set(REMOVED) < set(state()[1])
    finally:
        itrex.uninstall()
    assert state() == before


@pytest.mark.parametrize(
    ("task", "answer"),
    [
        ("text2text-generation", "generated_text"),
        ("summarization", "summary_text"),
        ("translation", "translation_text"),
    ],
)
def test_removed_tasks_are_back(task, answer, tmp_path):
    make = transformers.pipeline  # imported before install(), as scripts do
    config = woq.WeightOnlyQuantConfig("nf4")
    model = woq.AutoModelForSeq2SeqLM.from_pretrained(TINY_T5, quantization_config=config)
    model.save_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(TINY_T5)
    tokenizer.save_pretrained(tmp_path)
    prompts = [f"What is the number {number} in french?" for number in (80, 671)]
    expected = [{answer: "quatre-vingts"}, {answer: "six cent soixante et onze"}]
    itrex.install()
    try:
        loaded = make(task, model=model, tokenizer=tokenizer, max_new_tokens=10)
        # By name: transformers loads the saved, quantized model.
        named = make(task, model=str(tmp_path), device=-1, torch_dtype=torch.bfloat16)
        for pipe in (loaded, named):
            assert pipe.task == task
            assert dtypes(pipe.model) == {"nf4"}
            assert pipe(prompts[0]) == expected[:1]
            assert pipe(prompts, max_new_tokens=10) == expected
        with pytest.raises(KeyError, match="translation_en_to_fr"):
            make("translation_en_to_fr", model=model, tokenizer=tokenizer)
    finally:
        itrex.uninstall()
    with pytest.raises(KeyError, match=task):
        make(task, model=model, tokenizer=tokenizer)


def test_a_task_that_somebody_registered_is_left_alone():
    from transformers import pipelines

    registry = pipelines.PIPELINE_REGISTRY
    own = type("Own", (), {})
    registry.register_pipeline("summarization", own)
    try:
        itrex.install()
        assert registry.supported_tasks["summarization"]["impl"] is own
        itrex.uninstall()
        assert registry.supported_tasks["summarization"]["impl"] is own
    finally:
        del registry.supported_tasks["summarization"]


def test_the_real_package_is_not_replaced(tmp_path, monkeypatch):
    before = state()
    (tmp_path / PACKAGE).mkdir()
    (tmp_path / PACKAGE / "__init__.py").write_text("real = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Unsupported, match="pip uninstall intel-extension-for-transformers"):
        itrex.install()  # importable
    assert state() == before
    assert importlib.import_module(PACKAGE).real
    try:
        with pytest.raises(Unsupported, match="is installed in this environment"):
            itrex.install()  # imported
        itrex.uninstall()
        assert sys.modules[PACKAGE].real
    finally:
        del sys.modules[PACKAGE]


def test_modules(installed):
    from intel_extension_for_transformers.tools.utils import is_ipex_available as of_1_4
    from intel_extension_for_transformers.utils.utils import is_ipex_available as of_1_3

    assert of_1_3() is False
    assert of_1_4() is False
    assert importlib.util.find_spec(f"{PACKAGE}.transformers").origin == "woq.compat.itrex"
    assert importlib.import_module(PACKAGE).__version__.endswith("+woq")
    for name in installed.__all__:
        assert isinstance(getattr(installed, name), type)
    assert installed.BitsAndBytesConfig is transformers.BitsAndBytesConfig


def test_what_is_not_there_says_so(installed):
    with pytest.raises(ImportError, match=r"SmoothQuantConfig: it covers .* RtnConfig"):
        exec(f"from {PACKAGE}.transformers import SmoothQuantConfig")
    with pytest.raises(ImportError, match="cannot import name 'Nonsense'"):
        exec(f"from {PACKAGE}.transformers import Nonsense")
    said = rf"no {PACKAGE}\.neural_chat: it covers .* in {PACKAGE}\.transformers, "
    with pytest.raises(ModuleNotFoundError, match=said):
        importlib.import_module(f"{PACKAGE}.neural_chat")


def test_installing_loads_no_torch():
    process = run_python(
        """
        import sys
        import woq
        woq.compat.itrex.install(pipelines=False)
        import intel_extension_for_transformers.transformers as itrex
        assert "torch" not in sys.modules
        print(itrex.RtnConfig().weight_dtype, "torch" in sys.modules)
        """
    )
    assert process.stdout.split() == ["int4_clip", "False"]


# Configurations


@pytest.mark.parametrize(
    ("name", "fields", "options", "data"),
    [
        ("RtnConfig", ("int4_clip", 32, "sym"), {}, None),
        (
            "GPTQConfig",
            ("int4_clip", 32, "sym"),
            {"nsamples": 128, "blocksize": 128, "damp_percent": 0.1, "desc_act": False,
             "act_group_aware": False},
            "NeelNanda/pile-10k",
        ),
        ("AwqConfig", ("int8", 32, "asym"), {"nsamples": 100}, "NeelNanda/pile-10k"),
        ("TeqConfig", ("int8", 32, "sym"), {"nsamples": 100}, "NeelNanda/pile-10k"),
        (
            "AutoRoundConfig",
            ("int4_clip", 128, "asym"),
            {"nsamples": 512, "iters": 200, "seqlen": 2048, "start": "rtn",
             "enable_quanted_input": True},
            "NeelNanda/pile-10k",
        ),
        ("WeightOnlyQuantConfig", ("nf4", 32, "sym"), {}, None),
    ],
)  # fmt: skip
def test_defaults(name, fields, options, data, installed):
    config = getattr(installed, name)()
    assert (config.weight_dtype, config.group_size, config.scheme) == fields
    assert (config.compute_dtype, config.scale_dtype) == ("fp32", "fp32")
    assert config.mse_range is False
    assert config.use_double_quant is False
    assert config.modules_to_not_convert is None
    assert {k: v for k, v in config.algorithm_args.items() if k in options} == options
    assert config.dataset == data
    assert isinstance(config, woq.WeightOnlyQuantConfig)
    assert type(config).from_dict(config.to_dict()) == config
    assert woq.WeightOnlyQuantConfig.from_dict(config.to_dict()) == config


def test_woqs_own_defaults_stay(installed):
    assert woq.AwqConfig().bits == woq.TeqConfig().bits == 4
    assert woq.GPTQConfig().algorithm_args["damp_percent"] == 0.01


def test_calibration_fields(installed, caplog):
    batches = [torch.arange(600)]
    for name in ("AwqConfig", "TeqConfig"):
        config = getattr(installed, name)(calib_dataloader=batches, calib_iters=7)
        assert config.dataset is batches
        assert config.algorithm_args["nsamples"] == 7
        assert getattr(installed, name)(nsamples=9).algorithm_args["nsamples"] == 9
        assert getattr(installed, name)(n_samples=9).algorithm_args["nsamples"] == 9
    config = installed.AutoRoundConfig(calib_len=64, n_samples=9)
    assert (config.algorithm_args["seqlen"], config.algorithm_args["nsamples"]) == (64, 9)
    assert installed.AutoRoundConfig(seqlen=64).algorithm_args["seqlen"] == 64
    with pytest.raises(InvalidArgument, match="contradict"):
        installed.AutoRoundConfig(seqlen=64, calib_len=65)
    assert not caplog.records
    config = installed.GPTQConfig(dataset="corpus.txt", calib_iters=7)
    assert (config.dataset, config.algorithm_args["nsamples"]) == ("corpus.txt", 128)
    assert "GPTQConfig.calib_iters=7 is ignored: nsamples=128" in caplog.text
    for name in ("AwqConfig", "WeightOnlyQuantConfig"):
        arguments = {"algorithm": "AWQ"} if name == "WeightOnlyQuantConfig" else {}
        with pytest.raises(InvalidArgument, match="calib_func: woq runs the model itself"):
            getattr(installed, name)(calib_func=print, **arguments)


def test_the_one_class_of_1_3(installed):
    make = installed.WeightOnlyQuantConfig
    config = make(
        llm_int8_skip_modules=["lm_head"],
        compute_dtype=torch.bfloat16,
        weight_dtype="int4_fullrange",
        scale_dtype="fp32",
        mse_range=True,
        use_double_quant=True,
        double_quant_dtype="int8",
        double_quant_scale_dtype="fp32",
        group_size=64,
        scheme="asym",
        algorithm="rtn",
        use_ggml=False,
        use_quant=True,
        use_neural_speed=False,
    )
    assert config == woq.WeightOnlyQuantConfig(
        "int4_fullrange",
        compute_dtype="bf16",
        mse_range=True,
        use_double_quant=True,
        group_size=64,
        scheme="asym",
        modules_to_not_convert=["lm_head"],
    )
    gptq = make(
        algorithm="GPTQ",
        algorithm_args={"percdamp": 0.05, "act_order": True, "block_size": 64, "nsamples": 3,
                        "use_max_length": False},
        calib_dataset="corpus.txt",
        tokenizer="t5",
    )  # fmt: skip
    assert gptq.dataset == "corpus.txt"
    assert gptq.tokenizer == "t5"
    expected = {"damp_percent": 0.05, "desc_act": True, "blocksize": 64, "nsamples": 3}
    assert {name: gptq.algorithm_args[name] for name in expected} == expected
    for algorithm in ("AWQ", "TEQ"):
        assert make(algorithm=algorithm, calib_iters=5).algorithm_args["nsamples"] == 5
    assert make(algorithm="AWQ").dataset == "NeelNanda/pile-10k"
    assert make(algorithm="AUTOROUND").algorithm_args["iters"] == 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weigth_dtype": "nf4"}, "no field 'weigth_dtype'; did you mean 'weight_dtype'"),
        ({"weight_dtype": "fp8_e4m3"}, "unknown weight dtype 'fp8_e4m3'; known: int8"),
        ({"scale_dtype": "fp8_e8m0"}, "fp8_e8m0"),
        ({"use_ggml": True}, "use_ggml=True has no meaning in woq; allowed: False"),
        ({"use_gptq": True}, "use_gptq=True has no meaning"),
        ({"double_quant_scale_dtype": "bf16"}, "double_quant_scale_dtype='bf16' has no meaning"),
        ({"device": "xpu"}, "device='xpu' has no meaning in woq; allowed: 'auto' or 'cpu'"),
        ({"algorithm": "SIGN"}, "algorithm 'SIGN' is unknown; known: .*RTN"),
        ({"algorithm": "GPTQ", "algorithm_args": {"act_orde": True}}, "no option 'act_orde'"),
        ({"algorithm": "GPTQ", "algorithm_args": [1]}, "algorithm_args must be a dict"),
        (
            {"algorithm": "GPTQ", "algorithm_args": {"percdamp": 0.1, "damp_percent": 0.1}},
            "'damp_percent' twice",
        ),
        (
            {"algorithm": "AWQ", "algorithm_args": {"folding": True}},
            r"algorithm_args\['folding'\]=True has no meaning",
        ),
        ({"weight_dtype": "nf4", "scheme": "asym"}, "asym"),
    ],
    ids=str,
)
def test_what_has_no_counterpart_is_an_error(arguments, message, installed):
    with pytest.raises(InvalidArgument, match=message):
        installed.WeightOnlyQuantConfig(**arguments)


def test_bits_and_dtype_must_agree(installed):
    with pytest.raises(InvalidArgument, match="'nf4' has 4 bits, bits is 8"):
        installed.AwqConfig(weight_dtype="nf4", zero_point=False)
    assert installed.RtnConfig(weight_dtype="int4_fullrange").weight_dtype == "int4_fullrange"


# Models


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folders = {}
    for kind, make in (("llama", llama), ("t5", t5)):
        torch.manual_seed(0)
        folders[kind] = str(tmp_path_factory.mktemp(kind))
        make().save_pretrained(folders[kind])
    return folders


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"load_in_4bit": True}, ("nf4", 32, "fp32")),
        ({"load_in_8bit": True}, ("int8", 32, "fp32")),
        ({"load_in_4bit": True, "torch_dtype": torch.bfloat16}, ("nf4", 32, "bf16")),
        ({"config": "WeightOnlyQuantConfig"}, ("nf4", 32, "fp32")),
        ({"config": "RtnConfig", "use_neural_speed": False}, ("int4_clip", 32, "fp32")),
        # All five, as langchain_community passes them.
        (
            {"config": "RtnConfig", "load_in_4bit": False, "load_in_8bit": False,
             "use_llm_runtime": False, "device_map": "cpu"},
            ("int4_clip", 32, "fp32"),
        ),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_loading(kind, arguments, expected, installed, checkpoints):
    auto = {"llama": installed.AutoModelForCausalLM, "t5": installed.AutoModelForSeq2SeqLM}[kind]
    arguments = dict(arguments)
    configuration = (
        getattr(installed, arguments.pop("config"), None) if "config" in arguments else None
    )
    for given in {None: [None]}.get(
        configuration, [configuration, configuration and configuration()]
    ):
        model = auto.from_pretrained(checkpoints[kind], quantization_config=given, **arguments)
        assert isinstance(model, transformers.PreTrainedModel)
        found = {
            (layer.scheme["dtype"], layer.scheme["group_size"], layer.explain()["compute_dtype"])
            for layer in layers(model).values()
        }
        assert found == {expected}


def test_loading_without_quantization(installed, checkpoints, caplog):
    with caplog.at_level(logging.WARNING, "woq"):
        model = installed.AutoModelForCausalLM.from_pretrained(
            checkpoints["llama"],
            quantization_config=None,
            load_in_4bit=False,
            load_in_8bit=False,
            use_llm_runtime=False,
        )
    assert not layers(model)
    assert not caplog.records
    installed.AutoModelForCausalLM.from_pretrained(checkpoints["llama"], use_neural_speed=True)
    assert "use_neural_speed=True is ignored" in caplog.text


def test_auto_model(installed, checkpoints):
    model = installed.AutoModel.from_pretrained(checkpoints["llama"], load_in_4bit=True)
    assert isinstance(model, transformers.LlamaModel)
    assert dtypes(model) == {"nf4"}
    with pytest.raises(Unsupported, match="ONNX"):
        installed.AutoModel.from_pretrained("model.onnx", use_embedding_runtime=True)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"load_in_4bit": True, "load_in_8bit": True}, InvalidArgument, "exclude each other"),
        ({"load_in_4bit": True, "device_map": "xpu"}, Unsupported, "run on the CPU"),
        ({"model_file": "a.gguf", "gguf_file": "b.gguf"}, InvalidArgument, "contradict"),
    ],
    ids=["both", "xpu", "two files"],
)
def test_contradicting_arguments(arguments, error, message, installed, checkpoints):
    with pytest.raises(error, match=message):
        installed.AutoModelForCausalLM.from_pretrained(checkpoints["llama"], **arguments)


def llama_gguf(path):
    """Write a random Llama as a GGUF file with float weights, and return it."""
    gguf = pytest.importorskip("gguf")
    model = llama()
    config = model.config
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_token_list([f"<{i}>" for i in range(config.vocab_size)])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, value in model.state_dict().items():
        # llama.cpp keeps the two halves of each head's rotation beside each other.
        count = {"q_proj": heads, "k_proj": kv_heads}.get(name.split(".")[-2])
        if count:
            rows, columns = value.shape
            value = (
                value.view(count, 2, rows // count // 2, columns)
                .swapaxes(1, 2)
                .reshape(rows, columns)
            )
        writer.add_tensor(names.get_name(name, (".weight",)), value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def test_gguf_files(installed, tmp_path, caplog):
    torch.manual_seed(0)
    expected = llama_gguf(tmp_path / "tiny.gguf")
    ids = torch.arange(3, 19)[None]
    load = installed.AutoModelForCausalLM.from_pretrained
    model = load(str(tmp_path), model_file="tiny.gguf", model_type="llama", use_neural_speed=True)
    assert "not run packed: none of its tensors is quantized" in caplog.text
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, expected(ids).logits, rtol=1e-4, atol=1e-4)
    caplog.clear()
    config = installed.WeightOnlyQuantConfig(weight_dtype="int8")
    model = load(str(tmp_path), model_file="tiny.gguf", quantization_config=config)
    assert dtypes(model) == {"int8"}
    assert "packed" not in caplog.text


def test_saved_models_come_back(installed, checkpoints, tmp_path):
    load = installed.AutoModelForSeq2SeqLM.from_pretrained
    model = load(checkpoints["t5"], load_in_4bit=True)
    model.save_pretrained(tmp_path)
    arguments = {
        "input_ids": torch.arange(2, 12)[None],
        "decoder_input_ids": torch.zeros(1, 3).long(),
    }
    with torch.no_grad():
        assert torch.equal(load(tmp_path)(**arguments).logits, model(**arguments).logits)
