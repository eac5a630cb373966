# SPDX-License-Identifier: Apache-2.0
"""ctransformers' LLM: a model, its tokenizer, and the text that it has read so far."""

from __future__ import annotations

import codecs
import contextlib
import re
from collections.abc import Generator, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from ..core.native import InvalidArgument, Unsupported
from ..hf.load import load_model
from ..hf.tokenizers import load_tokenizer
from ._arguments import note_idle
from ._ct_config import IDLE, OWNER, Config

__all__ = ["LLM"]


class LLM:
    """A language model that is called with a text and answers with a text.

    Its low-level methods work on tokens: `eval` reads them, `logits` is what the model says then,
    `sample` draws the next one, `reset` forgets all of it.
    """

    def __init__(
        self,
        model_path: str | PathLike[str],
        model_type: str | None = None,
        *,
        config: Config | None = None,
        lib: str | None = None,
    ) -> None:
        """Load a GGUF file, or the folder of a GPTQ checkpoint.

        Args:
            model_type: is not needed: the file says it.
            lib: has no effect.

        Raises:
            InvalidArgument: there is no such file, or it is damaged.
            Unsupported: a file of GGML, which came before GGUF.
        """
        note_idle(OWNER, {"lib": lib}, IDLE)
        path = Path(model_path)
        if path.is_file():
            if path.suffix.lower() != ".gguf":
                raise Unsupported(
                    f"{path} is no GGUF file: woq does not read GGML, which came before it; take "
                    "a GGUF file of the model"
                )
            self.source = (str(path.parent), {"gguf_file": path.name})
        elif path.is_dir():
            self.source = (str(path), {})
        else:
            raise InvalidArgument(f"there is no model file {path}")
        folder, keywords = self.source
        self.model = load_model(AutoModelForCausalLM, folder, (), keywords).eval()
        self._tokenizer = load_tokenizer(folder, keywords)
        self._pieces = _Pieces(self._tokenizer)
        self._model_path = str(path)
        self._model_type = model_type or self.model.config.model_type
        self._config = config or Config()
        self._embeddings: list[float] = []
        self.reset()

    @property
    def model_path(self) -> str:
        return self._model_path

    @property
    def model_type(self) -> str:
        return str(self._model_type)

    @property
    def config(self) -> Config:
        return self._config

    @property
    def eos_token_id(self) -> int | None:
        token: int | None = self._tokenizer.eos_token_id
        return token

    @property
    def bos_token_id(self) -> int | None:
        token: int | None = self._tokenizer.bos_token_id
        return token

    @property
    def pad_token_id(self) -> int | None:
        token = self._tokenizer.pad_token_id
        return self.eos_token_id if token is None else token

    @property
    def vocab_size(self) -> int:
        return int(self.model.config.get_text_config().vocab_size)

    @property
    def context_length(self) -> int:
        """The most tokens of a prompt and its answer."""
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        most = limit if isinstance(limit, int) else 1 << 31
        asked = self._config.context_length
        return most if asked < 1 else min(asked, most)

    @property
    def logits(self) -> list[float]:
        """Of the token after those that were read; empty before any."""
        return [] if self._logits is None else self._logits.tolist()

    @property
    def embeddings(self) -> list[float]:
        """What `embed` returned last; empty before that."""
        return self._embeddings

    def tokenize(self, text: str, add_bos_token: bool | None = None) -> list[int]:
        """The tokens of a text; with the beginning token if the model has one, unless
        `add_bos_token` is False."""
        if not isinstance(text, str):
            raise InvalidArgument(f"{OWNER}: expected a text, got {text!r}")
        special = add_bos_token is not False
        ids: list[int] = list(self._tokenizer(text, add_special_tokens=special)["input_ids"])
        return ids

    def detokenize(self, tokens: int | Sequence[int], decode: bool = True) -> str | bytes:
        """The text of tokens, with the spaces between them; as bytes without `decode`, for a
        letter may be of several tokens."""
        ids = [tokens] if isinstance(tokens, int) else list(tokens)
        text = b"".join(self._pieces.of(token) for token in ids)
        return text.decode(errors="ignore") if decode else text

    def is_eos_token(self, token: int) -> bool:
        ends = self.model.generation_config.eos_token_id
        return token == self.eos_token_id or token in (ends if isinstance(ends, list) else [ends])

    def reset(self) -> None:
        """Forget what was read."""
        self._cache = DynamicCache(config=self.model.config)
        self._read: list[int] = []
        self._logits: torch.Tensor | None = None

    def eval(
        self, tokens: Sequence[int], *, batch_size: int | None = None, threads: int | None = None
    ) -> None:
        """Read tokens.

        Raises:
            InvalidArgument: a token that the model does not know, or more than its context holds.
        """
        config = self._config.with_options({"batch_size": batch_size, "threads": threads})
        ids = [int(token) for token in tokens]
        wrong = next((token for token in ids if not 0 <= token < self.vocab_size), None)
        if wrong is not None:
            raise InvalidArgument(
                f"{OWNER}: token {wrong} is not one of the model's, 0 to {self.vocab_size - 1}"
            )
        if len(self._read) + len(ids) > self.context_length:
            raise InvalidArgument(
                f"{OWNER}: {len(self._read) + len(ids)} tokens are more than the context of "
                f"{self.context_length}"
            )
        if not ids:
            return
        with torch.inference_mode(), _threads(config.threads):
            found = self.model(
                input_ids=torch.tensor([ids]),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
        self._read += ids
        self._logits = found.logits[0, -1].float()

    def sample(
        self,
        *,
        top_k: int | None = None,
        top_p: float | None = None,
        temperature: float | None = None,
        repetition_penalty: float | None = None,
        last_n_tokens: int | None = None,
        seed: int | None = None,
    ) -> int:
        """Draw the next token.

        Raises:
            InvalidArgument: nothing was read.
        """
        given = locals()
        config = self._config.with_options({k: v for k, v in given.items() if k != "self"})
        return self._draw(config, _generator(config.seed))

    def generate(
        self,
        tokens: Sequence[int],
        *,
        top_k: int | None = None,
        top_p: float | None = None,
        temperature: float | None = None,
        repetition_penalty: float | None = None,
        last_n_tokens: int | None = None,
        seed: int | None = None,
        batch_size: int | None = None,
        threads: int | None = None,
        reset: bool | None = None,
    ) -> Generator[int, None, None]:
        """New tokens after `tokens`, until the model ends the text or its context is full."""
        given = locals()
        options = {k: v for k, v in given.items() if k not in ("self", "tokens")}
        return self._generate(tokens, self._config.with_options(options))

    def __call__(
        self,
        prompt: str,
        *,
        max_new_tokens: int | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        temperature: float | None = None,
        repetition_penalty: float | None = None,
        last_n_tokens: int | None = None,
        seed: int | None = None,
        batch_size: int | None = None,
        threads: int | None = None,
        stop: str | Sequence[str] | None = None,
        stream: bool | None = None,
        reset: bool | None = None,
    ) -> str | Generator[str, None, None]:
        """The answer to a prompt; with `stream` a generator of its pieces."""
        given = locals()
        options = {k: v for k, v in given.items() if k not in ("self", "prompt")}
        config = self._config.with_options(options)
        pieces = self._answer(self.tokenize(prompt), config)
        return pieces if config.stream else "".join(pieces)

    def embed(
        self,
        input: str | Sequence[int],
        *,
        batch_size: int | None = None,
        threads: int | None = None,
    ) -> list[float]:
        """The last hidden state of a text's last token. What was read is forgotten."""
        ids = self.tokenize(input) if isinstance(input, str) else list(input)
        if not ids:
            raise InvalidArgument(f"{OWNER}: there are no tokens to embed")
        config = self._config.with_options({"batch_size": batch_size, "threads": threads})
        self.reset()
        with torch.inference_mode(), _threads(config.threads):
            found = self.model.base_model(input_ids=torch.tensor([ids]), use_cache=False)
        self._embeddings = found.last_hidden_state[0, -1].float().tolist()
        return self._embeddings

    def _generate(self, tokens: Sequence[int], config: Config) -> Generator[int, None, None]:
        if config.reset:
            self.reset()
        self.eval(tokens, threads=config.threads)
        generator = _generator(config.seed)
        while True:
            token = self._draw(config, generator)
            if self.is_eos_token(token):
                return
            yield token
            if len(self._read) >= self.context_length:
                return
            self.eval([token], threads=config.threads)

    def _draw(self, config: Config, generator: torch.Generator) -> int:
        """The order of llama.cpp's first sampler: penalty, top_k, top_p, temperature."""
        if self._logits is None:
            raise InvalidArgument(f"{OWNER}: nothing was read: call eval first")
        logits = self._logits.clone()
        last = sorted(set(self._read[max(0, len(self._read) - config.last_n_tokens) :]))
        if last and config.last_n_tokens:
            seen = logits[last]
            penalty = config.repetition_penalty
            logits[last] = torch.where(seen > 0, seen / penalty, seen * penalty)
        if config.temperature == 0:
            return int(logits.argmax())
        count = min(config.top_k or len(logits), len(logits))
        values, tokens = logits.topk(count)
        # Those that together have top_p, the one that reaches it among them.
        before = values.softmax(0).cumsum(0).roll(1)
        before[0] = -1.0
        kept = before < config.top_p
        chances = (values[kept] / config.temperature).softmax(0)
        return int(tokens[kept][torch.multinomial(chances, 1, generator=generator)])

    def _answer(self, tokens: list[int], config: Config) -> Generator[str, None, None]:
        stops = [config.stop] if isinstance(config.stop, str) else list(config.stop or ())
        stops = [stop for stop in stops if stop]
        decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        text = ""
        if config.max_new_tokens == 0:
            return
        for count, token in enumerate(self._generate(tokens, config), 1):
            text += decoder.decode(self._pieces.of(token))
            ends = [at for at in (text.find(stop) for stop in stops) if at >= 0]
            if ends:
                text = text[: min(ends)]
                break
            if count == config.max_new_tokens:
                break
            # The end of the text may be the beginning of a stop.
            held = max((n for stop in stops for n in range(1, len(stop) + 1)
                        if text.endswith(stop[:n])), default=0)  # fmt: skip
            if len(text) > held:
                yield text[: len(text) - held]
                text = text[len(text) - held :]
        if text:
            yield text


class _Pieces:
    """The bytes of each token."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = set(tokenizer.all_special_ids)
        decoder = str(getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", ""))
        self._by_byte = "ByteLevel" in decoder
        self._fallback = "ByteFallback" in decoder
        self._bytes = _byte_letters() if self._by_byte else {}

    def of(self, token: int) -> bytes:
        if token in self._special:
            return b""
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None:
            return b""
        if self._by_byte:
            known = all(letter in self._bytes for letter in piece)
            return bytes(self._bytes[c] for c in piece) if known else piece.encode()
        if self._fallback:
            byte = re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", piece)
            return bytes([int(byte[1], 16)]) if byte else piece.replace("\u2581", " ").encode()
        return str(self._tokenizer.decode([token])).encode()


def _byte_letters() -> dict[str, int]:
    """GPT-2's letter for each byte: its own where it can be seen, else one from 256 on."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {chr(byte): byte for byte in seen}
    others = [byte for byte in range(256) if byte not in seen]
    return letters | {chr(256 + number): byte for number, byte in enumerate(others)}


def _generator(seed: int) -> torch.Generator:
    generator = torch.Generator()
    if seed < 0:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if count > 0:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count > 0:
            torch.set_num_threads(before)
