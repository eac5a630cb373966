# SPDX-License-Identifier: Apache-2.0
"""Runs a model for calibration: its blocks one after another, and what their layers see.

- corpus: token ids of texts, chats, files and data sets
- samples: samples of them, or of what the model makes up, as a model's arguments
- recorder: finds the blocks of a model in the order of their calls, and records what they are given
- activations: hidden states of all batches, in memory or in a file, and a block's other arguments
- block: one block with its layers, replayed on the hidden states of any batch
- walk: the one loop over the blocks, each of which it hands to its caller
- attention: the bfloat16 attention that blocks run with while they are observed
- moments: second moments (Hessians) of the inputs of layers
"""
