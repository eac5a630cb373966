# SPDX-License-Identifier: Apache-2.0
"""A calibration that is killed (kill -9, at any moment) and goes on from its work_dir gives the
model that it would have given."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from woq.config.registry import known_algorithms

SCRIPT = Path(__file__).parent / "killed_calibration.py"
ALGORITHMS = [each.name for each in known_algorithms() if each.needs_calibration]
# Of each algorithm. The slow test's number can be set.
FEW, MANY = 2, int(os.environ.get("WOQ_KILLS", "60"))


def results(kills, seed, *algorithms):
    done = subprocess.run(
        [sys.executable, SCRIPT, str(kills), str(seed), *algorithms],
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [(each["algorithm"], each["kills"]) for each in found] == [
        (name, kills) for name in algorithms
    ]
    for each in found:
        assert not each["wrong"], f"{each['algorithm']}, seeds {each['wrong']}: another model"
    return found


def test_killed_runs_go_on():
    results(FEW, 0, *ALGORITHMS)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_killed_runs_go_on_from_everywhere(algorithm):
    (found,) = results(MANY, FEW, algorithm)
    # Moments are spread over a run and a tenth more. Half of a run is between its first layer and
    # its last: of 60 kills none is there with a probability of 1e-18.
    assert found["partial"] > 0
