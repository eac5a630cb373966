# SPDX-License-Identifier: Apache-2.0
"""killed_calibration.py KILLS SEED ALGORITHM ...: calibrates a tiny model in child processes that
are killed at random moments, goes on from what each of them left, and compares the model with that
of an uninterrupted run. A process of its own: it computes on one thread, so that its children can.

Prints a line of JSON for each algorithm: its name, the kills, how many hit a run that was under
way, how many of those left some of its layers, and the seeds of the runs that gave another model.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from model_support import llama

import woq

torch.set_num_threads(1)


def model_of_run(algorithm: str, work: Path | None) -> str:
    """A digest of the model that a run gives."""
    torch.manual_seed(0)
    model = llama()
    data = torch.randint(0, 128, (16, 32), generator=torch.Generator().manual_seed(3))
    config = woq.WeightOnlyQuantConfig(
        "int4_clip",
        algorithm=algorithm,
        algorithm_args={"nsamples": 8, "seqlen": 32},
        dataset=data,
        work_dir=work,
    )
    woq.quantize(model, config)
    digest = hashlib.sha256()
    for name, layer in sorted(model.named_modules()):
        if isinstance(layer, woq.WeightOnlyLinear):
            for key, tensor in sorted(layer.stored_tensors().items()):
                digest.update(f"{name}.{key}".encode())
                digest.update(tensor.contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def killed(algorithm: str, work: Path, after: float) -> bool:
    """Whether the run was still under way `after` seconds."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            model_of_run(algorithm, work)
            code = 0
        finally:
            os._exit(code)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
        raise SystemExit(f"{algorithm}: a run failed by itself")
    return os.WIFSIGNALED(status)


def main(algorithm: str, kills: int, seed: int) -> None:
    want = model_of_run(algorithm, None)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        assert model_of_run(algorithm, Path(folder)) == want
        layers = len(list(Path(folder).glob("*.safetensors")))
    duration = time.perf_counter() - started
    hit = partial = 0
    wrong = []
    for number in range(seed, seed + kills):
        after = random.Random(number).uniform(0, 1.1) * duration
        with tempfile.TemporaryDirectory() as folder:
            hit += killed(algorithm, Path(folder), after)
            partial += 0 < len(list(Path(folder).glob("*.safetensors"))) < layers
            if model_of_run(algorithm, Path(folder)) != want:
                wrong.append(number)
    found = {"kills": kills, "hit": hit, "partial": partial, "wrong": wrong}
    print(json.dumps({"algorithm": algorithm, **found}), flush=True)


if __name__ == "__main__":
    for name in sys.argv[3:]:
        main(name, int(sys.argv[1]), int(sys.argv[2]))
