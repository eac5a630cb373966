# SPDX-License-Identifier: Apache-2.0
"""Tiny models with random weights, subprocesses, and seeds that derive from the test's name."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

os.environ.setdefault("HF_HUB_OFFLINE", "1")

# A trained T5 of the flan-t5 kind, which stands in for google/flan-t5-large.
TINY_T5 = Path(__file__).parents[1] / "models" / "tiny-t5"


def seed(request: pytest.FixtureRequest) -> int:
    number = zlib.crc32(request.node.nodeid.encode())
    torch.manual_seed(number)
    return number


def llama(*, tied: bool = False, dtype: torch.dtype = torch.float32, **overrides: object):
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 256,
    }
    return LlamaForCausalLM(LlamaConfig(**{**settings, **overrides})).to(dtype).eval()


def letters_checkpoint(folder: Path) -> Path:
    """A Llama of two layers whose tokens are letters, and its tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz ."
    vocabulary = {letter: i for i, letter in enumerate(["<s>", "</s>", *letters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="."))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="."
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@contextmanager
def benchmark_modules(*names: str) -> Iterator[dict[str, ModuleType]]:
    """Modules of benchmarks/, forgotten afterwards: "common" is too common a name to stay
    importable for other tests."""
    folder = str(Path(__file__).parents[2] / "benchmarks")
    sys.path.insert(0, folder)
    try:
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(folder)
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", "")).startswith(folder):
                del sys.modules[name]


def t5(*, tied: bool = True, dtype: torch.dtype = torch.float32):
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=128,
        d_model=64,
        d_kv=16,
        d_ff=96,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=tied,
        decoder_start_token_id=0,
    )
    return T5ForConditionalGeneration(config).to(dtype).eval()


def gpt2(*, dtype: torch.dtype = torch.float32):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=128, n_positions=64, n_embd=64, n_layer=2, n_head=4)
    return GPT2LMHeadModel(config).to(dtype).eval()


def mixtral(*, dtype: torch.dtype = torch.float32):
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
    )
    return MixtralForCausalLM(config).to(dtype).eval()


def logits(model: nn.Module) -> torch.Tensor:
    """Logits of a fixed prompt."""
    ids = torch.arange(3, 19).reshape(2, 8)
    arguments = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        arguments["decoder_input_ids"] = ids[:, :5]
    with torch.no_grad():
        return model(**arguments).logits


def run_python(code: str, *, timeout: float = 240, check: bool = True, **env: str):
    """Run `code` in a fresh interpreter that finds the same woq; returns the finished process."""
    import woq

    path = os.pathsep.join(
        [str(Path(woq.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    )
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", **env},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if check and process.returncode:
        pytest.fail(f"exit code {process.returncode}\n{process.stdout}\n{process.stderr}")
    return process


def last_json(process: subprocess.CompletedProcess[str]):
    """What the subprocess printed as JSON on its last line."""
    return json.loads(process.stdout.strip().splitlines()[-1])
