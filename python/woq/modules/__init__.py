# SPDX-License-Identifier: Apache-2.0
"""torch modules: the quantized linear layer, and which layers of a model become one.

- layer: `woq.WeightOnlyLinear`
- embedding: `woq.WeightOnlyEmbedding`, which gathers rows from the packed weight of such a layer
- embedding_target: whether a model's embedding is quantized, and with which head it shares a weight
- torch_op: `torch.ops.woq.linear` and `embedding`, as compilers and autograd see them
- deferred_state: state dicts whose packed weights are unpacked when they are written
- stand_in: the weight that a quantized layer shows to code that asks for its dtype and shape
- targets: finds the layers of a model that are quantized, and each one's settings
- bypassed: layers that have to stay floats, for their module reads their weight
"""
