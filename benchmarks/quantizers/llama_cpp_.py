# SPDX-License-Identifier: Apache-2.0
"""llama.cpp's quantizer, of the library inside llama-cpp-python.

The importance matrix is what llama-imatrix computes: for each input channel of a layer the mean
square over the calibration's tokens. `pure` gives all layers one type; without it llama.cpp's own
mixture is taken, which spends more bits on some. Rows that are no multiple of 256 fall back from
the K types to larger ones of 32. The query and key rows are not put in llama.cpp's order: blocks
lie within rows, so that changes no weight.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quality_exchange import linear_layers

from . import Made, Task

PACKAGE = "llama-cpp-python"
FORMATS = ("Q4_0", "Q4_1", "IQ4_NL", "Q4_K_S", "Q4_K_M")
OPTIONS: dict[str, Any] = {"imatrix": True, "pure": True}


def quantize(task: Task) -> Made:
    import gguf
    import llama_cpp

    if task.group_size != 32:
        raise SystemExit(f"llama.cpp: these types have blocks of 32, not {task.group_size}")
    model = task.model()
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)

    def ggml_name(name: str) -> str:
        return str(names.get_name(name, try_suffixes=(".weight",)))

    source, target = task.scratch / "f32.gguf", task.scratch / "quantized.gguf"
    layers = linear_layers(model)
    _write(source, model, ggml_name)
    mixed = task.format.startswith("Q4_K")
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread = torch.get_num_threads()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{task.format}")
    parameters.pure = task.options["pure"] and not mixed
    with task.measured():
        kept = []
        if task.options["imatrix"]:
            squares = {
                ggml_name(f"{name}.weight"): mean.numpy().astype(np.float32)
                for name, mean in _mean_squares(model, layers, task.samples).items()
            }
            kept = list(squares.values())
            parameters.imatrix = _imatrix(llama_cpp, squares)
        failed = llama_cpp.llama_model_quantize(
            str(source).encode(), str(target).encode(), ctypes.byref(parameters)
        )
    del kept
    if failed:
        raise SystemExit("llama.cpp: llama_model_quantize failed; its messages are above")

    weights, bits = {}, 0
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(target).tensors}
    for name in layers:
        tensor = tensors[ggml_name(f"{name}.weight")]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        weights[f"{name}.weight"] = torch.from_numpy(np.array(values, dtype=np.float32))
        bits += 8 * int(tensor.n_bytes)
    return Made(weights, bits)


def _imatrix(llama_cpp: Any, squares: dict[str, np.ndarray[Any, Any]]) -> Any:
    """A C array that ends with an empty entry."""
    entry = llama_cpp.llama_model_imatrix_data
    entries = (entry * (len(squares) + 1))()
    for place, (name, values) in zip(entries, squares.items(), strict=False):
        place.name = name.encode()
        place.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        place.size = values.size
    return ctypes.cast(entries, ctypes.POINTER(entry))


@torch.inference_mode()
def _mean_squares(
    model: Any, layers: dict[str, torch.nn.Linear], samples: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Of each layer's inputs, by channel: {name: [K]}."""
    sums = {
        name: torch.zeros(layer.in_features, dtype=torch.float64) for name, layer in layers.items()
    }

    def hook(name: str) -> Any:
        def add(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            sums[name] += inputs[0].flatten(0, -2).square().sum(0, dtype=torch.float64)

        return add

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    for sample in samples:
        model(input_ids=sample[None])
    for handle in handles:
        handle.remove()
    return {name: total / samples.numel() for name, total in sums.items()}


def _write(path: Path, model: Any, ggml_name: Any) -> None:
    """A GGUF file with all that the quantizer reads: sizes and tensors, no vocabulary."""
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    for name, parameter in model.named_parameters():
        writer.add_tensor(ggml_name(name), parameter.detach().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
