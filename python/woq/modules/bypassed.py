# SPDX-License-Identifier: Apache-2.0
"""Linear layers whose module does not call them, but reads their weight: such layers have to stay
floats, for the weight of a quantized one exists packed only.

Which do that stands in the code of the model's class, so it is a table of classes. It has what runs
on the CPU: fused GPU kernels that are given a weight do not count. Where a class is missing here,
the stand-in for the weight raises an error that names the layer.
"""

from __future__ import annotations

from torch import nn

__all__ = ["reads_weight"]

# Class of the parent -> names of its layers. Jamba's and Falcon-Mamba's mixers do as Mamba's does,
# but call the layer once their config is marked as a quantized model's.
_READ = {
    "ConditionalDetrMHAttentionMap": ("k_proj",),
    "DabDetrMHAttentionMap": ("k_linear",),
    "DetrMHAttentionMap": ("k_proj",),
    "LSHSelfAttention": ("query_key", "value"),  # Reformer's, when it generates
    "LongcatFlashTopkRouter": ("classifier",),
    "MambaMixer": ("dt_proj",),
    "MaskFormerDetrMHAttentionMap": ("k_proj",),
    "MobileBertLMPredictionHead": ("decoder", "dense"),
    "RwkvFeedForward": ("value",),  # the model divides it by powers of two before it runs
    "RwkvSelfAttention": ("output",),
    "TDNNLayer": ("kernel",),  # of Wav2Vec2 and its relatives
    "WavLMAttention": ("k_proj", "out_proj", "q_proj", "v_proj"),
}


def reads_weight(parent: nn.Module, child: str) -> bool:
    """Whether `parent` computes with the weight of its layer `child` by itself."""
    return any(child in _READ.get(base.__name__, ()) for base in type(parent).__mro__)
