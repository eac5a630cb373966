# SPDX-License-Identifier: Apache-2.0
"""Checkpoints for other libraries: what their settings say of a model that woq quantized, what they
have no place for, and where the result loads. The bytes are made by the core
(woq/io/foreign_writers.h); no file is written here.

- names: the one list of formats
- form: a model to be exported, and what a format does with it
- gptq, awq, compressed_tensors, bitsandbytes: the formats
"""
