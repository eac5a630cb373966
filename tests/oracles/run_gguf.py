# SPDX-License-Identifier: Apache-2.0
"""Runs GGUF files in llama.cpp, for tests/python/test_export_llama_cpp.py: how it cuts texts into
tokens, and what it says next.

    python run_gguf.py MODEL.gguf TEXTS.json OUT.json

Run with the Python of an environment that has xllamacpp, and not woq. OUT gets for each text
`tokens`, and `next`: the ids of 24 tokens that follow greedily.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

import xllamacpp


def server_of(model: str) -> xllamacpp.Server:
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx = 512
    params.n_parallel = 1
    params.warmup = False
    params.fit_params = False
    params.cpuparams.n_threads = 2
    return xllamacpp.Server(params)


def ask(server: xllamacpp.Server, path: str, question: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{server.listening_address}/{path}",
        json.dumps(question).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def main() -> None:
    model, texts, out = sys.argv[1:]
    server = server_of(model)
    found = []
    for text in json.loads(Path(texts).read_text()):
        question = {"content": text, "add_special": True, "parse_special": True}
        tokens = ask(server, "tokenize", question)["tokens"]
        settings = {"n_predict": 24, "temperature": 0, "return_tokens": True}
        answer = ask(server, "completion", {"prompt": tokens, **settings})
        found.append({"tokens": tokens, "next": answer["tokens"]})
    Path(out).write_text(json.dumps(found))


main()
