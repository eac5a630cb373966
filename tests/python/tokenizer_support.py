# SPDX-License-Identifier: Apache-2.0
"""Small tokenizers of the kinds that GGUF files have."""

from __future__ import annotations

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

TEXTS = ["the quick brown fox jumps over the lazy dog", "12345 and 67, isn't it?  WE'LL see\n\n"]


def byte_tokenizer(
    *steps: pre_tokenizers.PreTokenizer, use_regex: bool = False, ignore_merges: bool = False
):
    """A byte-level BPE of at most 384 tokens that splits texts by `steps`, and with `use_regex` by
    GPT-2's pattern."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, last]) if steps else last
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        chat_template="{{ messages }}",
    )


def sentence_tokenizer(*, prefix: bool, fallback: bool = True):
    """A BPE as SentencePiece's become: every way to make a piece is a merge, the best piece first;
    unknown characters are bytes (whose tokens are left out without `fallback`); texts begin with a
    space (Llama's) or not (Gemma's)."""
    pieces = [
        "▁▁",
        "th",
        "the",
        "▁the",
        "▁th",
        "he",
        "ick",
        "ck",
        "ow",
        "own",
        "er",
        "▁o",
        "ver",
        "▁l",
    ]
    letters = sorted(set("".join(TEXTS)) | {"▁"})
    fixed = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256 * fallback))]
    vocab = {piece: i for i, piece in enumerate([*fixed, *pieces, *letters])}
    merges = [
        (piece[:end], piece[end:])
        for piece in pieces
        for end in range(1, len(piece))
        if piece[:end] in vocab and piece[end:] in vocab
    ]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    replace = normalizers.Replace(" ", "▁")
    prepend = [normalizers.Prepend("▁")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*prepend, replace])
    if not prefix:  # Gemma's tokens of several blanks are the user's
        tokenizer.add_tokens([AddedToken("▁▁", normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template="{{ messages }}",
    )
