# SPDX-License-Identifier: Apache-2.0
"""ctransformers' settings of a model and of its answers, with its fields and its defaults."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from ..core.native import InvalidArgument
from ..hf.location import find_files, hub_error
from ._arguments import check_known, note_idle

__all__ = ["AutoConfig", "Config"]

OWNER = "ctransformers"
# What makes no difference to the answers.
IDLE = {
    "gpu_layers": "woq runs on the CPU",
    "lib": "woq has one library, and takes the best instructions that the CPU has",
    "mlock": "woq does not lock memory",
}
# What AutoConfig takes from `task_specific_params` of config.json.
_SAMPLING = ("top_k", "top_p", "temperature", "repetition_penalty", "last_n_tokens")


@dataclasses.dataclass
class Config:
    """Options of an answer, which a call can also be given, and of the model.

    Args:
        top_k, top_p, temperature: of sampling; a temperature of 0 takes the likeliest token.
        repetition_penalty: of the last `last_n_tokens` tokens; 1: none.
        seed: -1: another answer each time.
        batch_size: has no effect: a prompt is read at once.
        threads: -1: torch's.
        max_new_tokens: the most tokens of an answer.
        stop: a text or texts that end the answer, and are not part of it.
        stream: whether a call returns a generator of pieces of text.
        reset: forget the text so far before a new one.
        context_length: the most tokens of prompt and answer; -1: the model's positions.
        gpu_layers, mmap, mlock: have no effect.

    Raises:
        InvalidArgument: a value is of the wrong kind or out of its range.
    """

    top_k: int = 40
    top_p: float = 0.95
    temperature: float = 0.8
    repetition_penalty: float = 1.1
    last_n_tokens: int = 64
    seed: int = -1
    batch_size: int = 8
    threads: int = -1
    max_new_tokens: int = 256
    stop: str | Sequence[str] | None = None
    stream: bool = False
    reset: bool = True
    context_length: int = -1
    gpu_layers: int = 0
    mmap: bool = True
    mlock: bool = False

    def __post_init__(self) -> None:
        note_idle(OWNER, {name: getattr(self, name) for name in ("gpu_layers", "mlock")}, IDLE)
        self.check()

    def check(self) -> None:
        """Raise InvalidArgument for a value that cannot be used."""
        for name, least in _INTEGERS.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InvalidArgument(
                    f"{OWNER}: {name} must be an integer of at least {least}, got {value!r}"
                )
        for name, (low, high) in _NUMBERS.items():
            value = getattr(self, name)
            if not isinstance(value, int | float) or not low <= value <= high:
                raise InvalidArgument(
                    f"{OWNER}: {name} must be a number from {low:g} to {high:g}, got {value!r}"
                )
        if not self.repetition_penalty > 0:
            raise InvalidArgument(f"{OWNER}: repetition_penalty must be above 0")
        stop = self.stop
        if stop is not None and not (
            isinstance(stop, str)
            or (isinstance(stop, Sequence) and all(isinstance(each, str) for each in stop))
        ):
            raise InvalidArgument(f"{OWNER}: stop must be a text or a list of texts, got {stop!r}")

    def with_options(self, given: Mapping[str, Any]) -> Config:
        """A copy with what a call was given; None leaves a field as it is."""
        return dataclasses.replace(self, **{k: v for k, v in given.items() if v is not None})


_INTEGERS = {
    "top_k": 0,
    "last_n_tokens": 0,
    "seed": -1,
    "batch_size": 1,
    "threads": -1,
    "max_new_tokens": 0,
    "context_length": -1,
    "gpu_layers": 0,
}
_NUMBERS = {
    "top_p": (0.0, 1.0),
    "temperature": (0.0, float("inf")),
    "repetition_penalty": (0.0, float("inf")),
}


@dataclasses.dataclass
class AutoConfig:
    """A `Config`, and the type of the model as its config.json says it."""

    config: Config
    model_type: str | None = None

    @classmethod
    def from_pretrained(
        cls,
        model_path_or_repo_id: str | PathLike[str],
        local_files_only: bool = False,
        revision: str | None = None,
        **kwargs: Any,
    ) -> AutoConfig:
        """The settings in config.json of a folder or repository, if it has one, and in `kwargs`.

        Raises:
            InvalidArgument: an argument that is no field of `Config`, or a damaged config.json.
        """
        fields = [field.name for field in dataclasses.fields(Config)]
        check_known(f"{OWNER}.AutoConfig.from_pretrained", kwargs, fields)
        stored: dict[str, Any] = {}
        path = str(model_path_or_repo_id)
        if not Path(path).is_file():
            where = {"local_files_only": local_files_only, "revision": revision or "main"}
            file = file_of(path, "config.json", where, required=False)
            stored = {} if file is None else _read(Path(file))
        tasks = stored.get("task_specific_params") or {}
        found = tasks.get("text-generation") or {} if isinstance(tasks, Mapping) else {}
        values = {name: found[name] for name in _SAMPLING if found.get(name) is not None}
        return cls(Config(**{**values, **kwargs}), stored.get("model_type"))


def file_of(path: str, name: str, where: Mapping[str, Any], *, required: bool) -> str | None:
    """A file of a folder or repository; None where there is none and none is required."""
    try:
        found = find_files(path, [name], where, required=required)
    except OSError as error:
        raise hub_error(path, error, where) or error from error
    return found[0] if found else None


def _read(file: Path) -> dict[str, Any]:
    try:
        stored = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise InvalidArgument(f"{file} is damaged ({error})") from error
    if not isinstance(stored, dict):
        raise InvalidArgument(f"{file} is no JSON object")
    return stored
