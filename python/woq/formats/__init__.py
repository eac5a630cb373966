# SPDX-License-Identifier: Apache-2.0
"""What woq reads and writes as files and stored tensors.

- stored_tensors: names, shapes and dtypes of a quantized weight's tensors in a checkpoint
- safetensors: writes safetensors files one tensor at a time
- checkpoint: what the files of a checkpoint say of themselves, and whether they belong together
- foreign: checkpoints that other libraries quantized
- export: checkpoints for other libraries
- gguf: whether a GGUF model is whole
- gguf_models: what a GGUF file says of its model: config and names of tensors
- imatrix_files: llama.cpp's importance matrices, both kinds
- files: files and folders that appear whole or not at all
- pages: gives the memory of a checkpoint's mapped files back while it is read
"""
