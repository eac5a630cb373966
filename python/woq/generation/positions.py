# SPDX-License-Identifier: Apache-2.0
"""How many positions a model has a vector for: beyond them its lookup fails in the middle of a
forward pass."""

from __future__ import annotations

from typing import Any

import torch

# The last part of their names in transformers' models. Relative positions (T5), rotary ones (Llama)
# and ALiBi (BLOOM) are computed for any length and have no such table.
_TABLES = frozenset(
    {
        "embed_positions",
        "position_embedding",
        "position_embeddings",
        "positions_embed",
        "wpe",
    }
)
# Types of models whose table is neither a module nor a buffer -> the field with its size. CTRL's is
# a plain tensor, MPT's biases are made for that many.
_FIELDS = {"ctrl": "n_positions", "mpt": "max_seq_len"}
# Towers beside the language model: their positions are those of patches and frames.
_TOWERS = ("vision", "visual", "image", "audio", "speech")


def position_limit(model: Any) -> int | None:
    """Tokens of a sequence at most, where positions have a table; None where they have none.

    `model` is a transformers model or a part of one: the encoder and the decoder of one that has
    both have limits of their own.
    """
    limits = [
        rows
        for name, table in _tables(model)
        if not any(tower in name for tower in _TOWERS) and (rows := _usable_rows(table)) > 0
    ]
    config = getattr(model, "config", None)
    if field := _FIELDS.get(getattr(config, "model_type", "")):
        limits.append(getattr(config, field))
    if not limits:
        return None
    own = getattr(config and config.get_text_config(), "max_position_embeddings", None)
    return min([*limits, *([own] if isinstance(own, int) and own > 0 else [])])


def _tables(model: Any) -> list[tuple[str, Any]]:
    modules = [pair for pair in model.named_modules() if isinstance(pair[1], torch.nn.Embedding)]
    # GPT-J and CodeGen keep the sines of rotary positions as a buffer [positions, width].
    buffers = [(name, buffer) for name, buffer in model.named_buffers() if buffer.dim() == 2]
    return [pair for pair in modules + buffers if pair[0].rpartition(".")[2] in _TABLES]


def _usable_rows(table: Any) -> int:
    """Rows that stand for a position of a text."""
    if not isinstance(table, torch.nn.Embedding):
        return len(table)
    offset = getattr(table, "offset", 0)  # OPT and BART count from 2
    if table.padding_idx is not None:
        offset = max(offset, table.padding_idx + 1)  # RoBERTa counts from behind the padding's
    return table.num_embeddings - offset
