# SPDX-License-Identifier: Apache-2.0
"""From MODEL on the command line to a model and its tokenizer."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

from ._command import Failure, Output, one_line
from ._options import Choice, apply, option

__all__ = [
    "Loading",
    "Source",
    "check_float",
    "find_model",
    "load_model",
    "load_tokenizer",
    "model_options",
    "read_config",
]

Function = TypeVar("Function", bound=Callable[..., Any])

_DTYPES = {"auto": "auto", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a model is, as from_pretrained takes it."""

    name: str
    keywords: dict[str, Any]
    label: str  # for people

    @property
    def is_gguf(self) -> bool:
        return "gguf_file" in self.keywords


@dataclasses.dataclass(frozen=True)
class Loading:
    """What the options say of how models are found, loaded and run."""

    threads: int | None
    float_dtype: str
    trust_remote_code: bool
    revision: str | None
    gguf_file: str | None

    def find(self, text: str) -> Source:
        """MODEL of the command line, with its revision."""
        return find_model(
            text,
            gguf_file=self.gguf_file,
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
        )

    def load(
        self, source: Source, output: Output, *, config: Any = None, tokenizer: Any = None
    ) -> Any:
        """`load_model` with the threads and the dtype that were asked for."""
        if self.threads is not None:
            import torch

            torch.set_num_threads(self.threads)
        return load_model(
            source, output, config=config, float_dtype=self.float_dtype, tokenizer=tokenizer
        )


_of_model = functools.partial(option, group="Loading and running the model")
_OPTIONS = (
    _of_model(
        "--threads",
        type=click.IntRange(1),
        metavar="N",
        show_default="torch's",
        help="Threads to compute on.",
    ),
    _of_model(
        "--float-dtype",
        type=Choice(list(_DTYPES)),
        default="auto",
        show_default=True,
        help="Dtype of what is not quantized; auto: as stored.",
    ),
    _of_model(
        "--trust-remote-code", is_flag=True, help="Run model code that lies beside the model."
    ),
    _of_model("--revision", help="Branch, tag or commit of a model on the hub."),
    _of_model("--gguf-file", metavar="NAME", help="A GGUF file of a model on the hub."),
)


def model_options(function: Function) -> Function:
    """Add the options of `Loading`, which the command gets as `loading`."""
    names = [field.name for field in dataclasses.fields(Loading)]

    @functools.wraps(function)
    def command(*arguments: Any, **keywords: Any) -> Any:
        loading = Loading(**{name: keywords.pop(name) for name in names})
        return function(*arguments, loading=loading, **keywords)

    return apply(command, _OPTIONS)  # type: ignore[return-value]


def find_model(
    text: str,
    *,
    gguf_file: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Source:
    """A checkpoint folder, a GGUF file, or (where there is neither) an id on the hub.

    Raises:
        InvalidArgument, Failure: it is none of them.
    """
    from ..hf.location import locate

    keywords: dict[str, Any] = {}
    if trust_remote_code:
        keywords["trust_remote_code"] = True
    name, file = locate(text)
    if file:
        return Source(name, {**keywords, **file}, Path(file["gguf_file"]).stem)
    path = Path(name)
    if path.is_dir():
        if gguf_file is not None:
            return find_model(str(path / gguf_file), trust_remote_code=trust_remote_code)
        if (path / "config.json").is_file():
            return Source(str(path), keywords, path.resolve().name)
        files = sorted(path.glob("*.gguf"))
        if len(files) == 1:
            return find_model(str(files[0]), trust_remote_code=trust_remote_code)
        found = f"; it has {len(files)} GGUF files: name one" if files else ""
        raise Failure(f"{path} is no checkpoint: it has no config.json{found}")
    if revision is not None:
        keywords["revision"] = revision
    if "/" not in text:
        _check_on_hub(text, gguf_file or "config.json", revision)
    if gguf_file is not None:
        keywords["gguf_file"] = gguf_file
    return Source(text, keywords, text.rpartition("/")[2])


def _check_on_hub(name: str, file: str, revision: str | None) -> None:
    """Ask the hub once for a name without an owner, which is often a mistyped folder: where the hub
    cannot be reached, transformers would try for most of a minute before it says so.

    Raises:
        Failure: the hub has no such model, or cannot be reached and the model is not in its cache.
    """
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError

    if isinstance(huggingface_hub.try_to_load_from_cache(name, file, revision=revision), str):
        return
    url = huggingface_hub.hf_hub_url(name, file, revision=revision)
    try:
        huggingface_hub.get_hf_file_metadata(url)
    except EntryNotFoundError:
        return  # what loads the model says which files it has
    except Exception as error:  # the classes of the hub's HTTP client differ between its versions
        if isinstance(error, HfHubHTTPError) and not isinstance(error, RepositoryNotFoundError):
            return  # what loads the model tries again
        raise Failure(_not_loaded(Source(name, {}, name), "model", error)) from error


def load_tokenizer(source: Source) -> Any:
    """The tokenizer beside the model.

    Raises:
        Failure: there is none.
    """
    from ..core.native import InvalidArgument
    from ..hf import tokenizers

    try:
        return tokenizers.load_tokenizer(source.name, source.keywords)
    except InvalidArgument:
        raise
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise Failure(_not_loaded(source, "tokenizer", error)) from error


def load_model(
    source: Source,
    output: Output,
    *,
    config: Any = None,
    float_dtype: str = "auto",
    tokenizer: Any = None,
) -> Any:
    """The model, quantized on the way if `config` (a WeightOnlyQuantConfig) says so.

    Raises:
        Failure: it cannot be loaded.
    """
    import transformers

    from ..hf import load

    _show_bars(output)
    keywords: dict[str, Any] = {"dtype": _DTYPES[float_dtype], **source.keywords}
    # transformers reads only decoders from GGUF files.
    decoder = not getattr(read_config(source), "is_encoder_decoder", False)
    kind = transformers.AutoModelForCausalLM if decoder else transformers.AutoModelForSeq2SeqLM
    float_first = config is not None and config.needs_calibration
    if float_first and config.tokenizer is None:
        config.tokenizer = tokenizer
    with _without_advice():
        model = load.load_model(
            kind,
            source.name,
            keywords=keywords,
            quantization_config=config,
            float_first=float_first,
            progress=output.progress,
            explain=lambda error: Failure(_not_loaded(source, "model", error)),
        )
    return model.eval()


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """When it is interrupted, woq.quantize tells how to go on with the model in memory: here the
    model ends with the process."""

    logger = logging.getLogger("woq.advice")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def read_config(source: Source) -> Any:
    """The model's config; None for a GGUF file, whose header takes seconds to read.

    Raises:
        Failure: there is no such model.
    """
    if source.is_gguf:
        return None
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source.name, **source.keywords)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise Failure(_not_loaded(source, "model", error)) from error


def check_float(source: Source) -> None:
    """Raises Failure for a model that is quantized already, or is not there."""
    stored = getattr(read_config(source), "quantization_config", None)
    if stored is not None:
        method = stored.get("quant_method") if isinstance(stored, dict) else stored.quant_method
        raise Failure(
            f"{source.label} is quantized already ({method}): start from the model in floating "
            "point"
        )


def _show_bars(output: Output) -> None:
    from transformers.utils import logging

    if output.progress:
        logging.enable_progress_bar()
    else:
        logging.disable_progress_bar()


def _not_loaded(source: Source, what: str, error: Exception) -> str:
    folder = Path(source.name)
    if folder.is_dir():
        if what == "tokenizer" and not any(folder.glob("tokenizer*")):
            return (
                f"{source.name} holds no tokenizer: put it there, in Python by "
                f"tokenizer.save_pretrained({source.name!r})"
            )
        return f"cannot load the {what} of {source.name}: {one_line(error)}"
    first = one_line(str(error).strip().split("\n")[0])
    return f"no such folder or file: {source.name}; nor could the hub's {what} be had: {first}"
