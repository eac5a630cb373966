# SPDX-License-Identifier: Apache-2.0
"""One file for each algorithm, and nothing else; what several of them share is in `shared/`.

A file has `ALGORITHM`, a `woq.config.registry.Algorithm`, and the functions that it names:

- `quantize_weight(weight, config, target)` quantizes one weight [N, K] without any data, and
  returns the core's `QuantizedMatrix`.
- `quantize_block(block, config)` is given a block (`woq.observe.block.Block`) of a model that is
  being calibrated, and yields each layer (`shared.finished.Finished`) as it is finished. The layer
  is replaced in the block before the next one is asked for.
- `round_scaled` is `shared.scaled.Round`: the second half of a pair such as AWQ+GPTQ.

A file must be cheap to import, for the configs read the records: it imports torch, and modules that
do, inside its functions.
"""
