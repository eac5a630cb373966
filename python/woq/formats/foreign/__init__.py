# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that other libraries quantized: what their settings mean, and which tensors of a
layer make its weight. The bytes are read by the core (woq/io/foreign.h); no file is opened here.

A layer's width and group size are taken from the shapes of its tensors: so are mixed widths, and no
pattern of the settings has to be matched. The settings say what shapes cannot.

- methods: the one list of methods, and the format of a checkpoint
- form: what a format is, and what shapes say
- gptq (AutoRound, too), awq, bitsandbytes, compressed_tensors, hqq, modelopt: the formats
- fp4: 4-bit floats, which two of them have
"""
