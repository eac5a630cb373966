# SPDX-License-Identifier: Apache-2.0
"""woq within transformers: loading, quantizing while loading, saving.

- autoload: registers woq with transformers, whichever is imported first
- quantizer: the quantizer that transformers calls while it loads a model
- on_load: quantizes float weights as the loader comes to them
- stored_layers: holds the tensors of a saved checkpoint until their layer can be packed
- attach: tells a model that it is quantized
- answers: what a quantized model says of its size
- conversions: keeps transformers from joining tensors of quantized layers when it saves
- load: the one door through which woq loads a model
- auto_model: `woq.AutoModelForCausalLM` and its like
- saving: `woq.save_pretrained`
- location: where a model's files are: a folder, a file of it, or a hub id
"""
