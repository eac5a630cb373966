# SPDX-License-Identifier: Apache-2.0
"""`woq.quantize` and what plans, drives and reports a quantization.

- quantize: replaces the layers of a model, one at a time
- hooks: how transformers learns that one of its models has been quantized
- driver: runs a calibrated algorithm over a model block by block
- work_dir: finished layers on disk, from which an interrupted run goes on
- imatrix: `woq.collect_imatrix` and `woq.ImportanceMatrix`
- planning: `woq.plan_layer_config`
- report, histograms: `woq.QuantizationReport` and the histograms in it
"""
