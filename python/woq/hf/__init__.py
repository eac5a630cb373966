# SPDX-License-Identifier: Apache-2.0
"""woq within transformers: loading, quantizing while loading, saving.

- autoload: registers woq with transformers, whichever is imported first
- quantizer: the quantizer that transformers calls while it loads a model
- on_load: quantizes float weights as the loader comes to them
- holder: what a layer of a saved checkpoint is while it is loaded
- stored_layers: layers of checkpoints that woq saved
- foreign_layers: layers of checkpoints that other libraries quantized
- foreign: loads such a checkpoint, and runs it packed
- gguf: runs a GGUF file packed
- install: has transformers itself load such checkpoints so
- others_configs: transformers' configs of other methods, as woq's own
- errors: one error for those of several layers
- attach: tells a model that it is quantized
- answers: what a quantized model says of its size
- conversions: keeps transformers from joining tensors of quantized layers when it saves
- load: the one door through which woq loads a model
- auto_model: `woq.AutoModelForCausalLM` and its like
- saving: `woq.save_pretrained`
- location: where a model's files are: a folder, a file of it, or a hub id
"""
