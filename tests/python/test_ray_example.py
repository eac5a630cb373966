# SPDX-License-Identifier: Apache-2.0
"""examples/ray_batch.py on a Ray of this machine, with two actors."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from model_support import last_json, letters_checkpoint, run_python

import woq

EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_batch.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed"),
]


def test_two_actors_answer_as_one_pipeline_does(tmp_path: Path) -> None:
    folder = letters_checkpoint(tmp_path / "letters")
    prompts = [f"the cat {letter} sat" for letter in "abcdefgh"]
    asked = [{"number": i, "prompt": prompt} for i, prompt in enumerate(prompts)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(each) + "\n" for each in asked))
    # Ray counts CPUs, it does not look for them: four, so that its own tasks find some.
    code = f"""
        import json, runpy, sys, ray
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
        sys.argv = ["ray_batch.py", {str(folder)!r}, {str(tmp_path / "prompts.jsonl")!r},
                    {str(tmp_path / "answers")!r}, "--actors", "2", "--threads", "1",
                    "--batch-size", "2", "--max-new-tokens", "6"]
        runpy.run_path({str(EXAMPLE)!r}, run_name="__main__")
        print(json.dumps(ray.cluster_resources()["CPU"]))
        ray.shutdown()
    """
    ran = run_python(code, timeout=600, RAY_USAGE_STATS_ENABLED="0")
    assert last_json(ran) == 4
    lines = [
        json.loads(line)
        for file in (tmp_path / "answers").glob("*.json*")
        for line in file.read_text().splitlines()
    ]
    answers = {line["number"]: line["answer"] for line in lines}
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        pipe = woq.pipeline("text-generation", folder)
        expected = [
            records[0]["generated_text"]
            for records in pipe(prompts, max_new_tokens=6, return_full_text=False)
        ]
    finally:
        torch.set_num_threads(threads)
    assert len(lines) == len(prompts)
    assert [answers[i] for i in range(len(prompts))] == expected
    assert {line["prompt"] for line in lines} == set(prompts)
    assert 1 <= len({line["actor"] for line in lines}) <= 2
