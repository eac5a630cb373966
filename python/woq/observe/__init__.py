# SPDX-License-Identifier: Apache-2.0
"""Runs a model for calibration: its blocks one after another, and what their layers see.

- samples: token samples from texts, data sets or the model itself
- block: cuts a model into blocks, records and advances the activations between them
- walk: the one loop over the blocks, each of which it hands to its caller
- attention: the bfloat16 attention that blocks run with while they are observed
- moments: second moments (Hessians) of the inputs of layers
"""
