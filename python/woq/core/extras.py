# SPDX-License-Identifier: Apache-2.0
"""Optional packages: an error for one that is absent says which extra of woq brings it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator

__all__ = ["EXTRAS", "check_transformers", "needed_by", "require", "what_is_missing"]

# Package -> extra in pyproject.toml.
EXTRAS = {
    **dict.fromkeys(
        ("torch", "transformers", "accelerate", "safetensors", "tokenizers", "huggingface_hub"),
        "transformers",
    ),
    "click": "cli",
    "gguf": "gguf",
    "llguidance": "grammar",
    "matplotlib": "report",
}
# The first version whose interface of quantizers is the one that woq implements.
_TRANSFORMERS = 5


def what_is_missing(error: ImportError) -> str | None:
    """What to install, if `error` says that a package of an extra is absent."""
    package = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or package not in EXTRAS:
        return None
    return f"{package}, which is not installed: pip install 'woq[{EXTRAS[package]}]'"


@contextlib.contextmanager
def needed_by(what: str) -> Iterator[None]:
    """For imports: the error for an absent package says that `what` needs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        missing = what_is_missing(error)
        if missing is None or "woq[" in str(error):
            raise
        raise ModuleNotFoundError(f"{what} needs {missing}", name=error.name) from error


def require(package: str, what: str) -> None:
    """
    Raises:
        ModuleNotFoundError: `package`, which `what` needs, is not installed.
    """
    with needed_by(what):
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)


def check_transformers() -> None:
    """
    Raises:
        Unsupported: a transformers that is too old.
    """
    version = importlib.metadata.version("transformers")
    if int(version.partition(".")[0]) < _TRANSFORMERS:
        from .native import Unsupported  # `import torch` must work where the core cannot be loaded

        raise Unsupported(
            f"transformers {version} is installed, and woq needs transformers>={_TRANSFORMERS}: "
            "pip install --upgrade 'woq[transformers]'"
        )
