// SPDX-License-Identifier: Apache-2.0
// Quantized weights as other libraries' checkpoints keep them, from the hub: the inverse of
// woq/io/foreign.h. Each function makes the tensors of one linear layer by the names that they have
// behind the layer's; it writes no file. What is read back by its counterpart is the same matrix:
// codes, zero points and scales, bit for bit.
//
// Throws Unsupported for what the format has no place for: the message says what and why.
//
// The bodies are in src/io/foreign_writers.cc: these functions need the library woq::woq.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "woq/core/buffer.h"
#include "woq/core/tensor.h"
#include "woq/quant/quantized_matrix.h"

namespace woq::io {

// A contiguous tensor with its bytes.
struct OwnedTensor {
  TensorType type = TensorType::kFp32;
  std::vector<int64_t> shape;
  Buffer data;

  TensorView view() const { return {type, shape, data.data(), data.size()}; }
};

using OwnedTensors = std::map<std::string, OwnedTensor>;

// In which type scales are written, one of float32, float16 and bfloat16. A scale that it cannot
// hold exactly is an error, unless they are to be rounded; one that is too large for it always is.
struct WrittenScales {
  TensorType type = TensorType::kFp16;
  bool round = false;
};

// Whether columns belong to other groups than their places say.
bool has_act_order(const QuantizedMatrix& matrix);

// GPTQ, 2, 3, 4 or 8 bits: qweight, qzeros, scales, and g_idx, which is k / group_size where the
// matrix has no act-order. Zero points are stored less one (`v2` false: checkpoint_format "gptq"),
// which must not be done to a zero point of 0, or as they are ("gptq_v2").
OwnedTensors write_gptq(const QuantizedMatrix& matrix, bool v2, const WrittenScales& scales = {});

// AWQ ("gemm"), 4 bits, N a multiple of 8: qweight, qzeros, scales. Zero points of a symmetric
// matrix are 8.
OwnedTensors write_awq(const QuantizedMatrix& matrix, const WrittenScales& scales = {});

// compressed-tensors "pack-quantized": weight_packed, weight_scale, weight_shape, and, unless
// symmetric, weight_zero_point, packed along N.
OwnedTensors write_compressed_packed(const QuantizedMatrix& matrix, const WrittenScales& scales);

// compressed-tensors "int-quantized", 8 bits: weight, weight_scale, and, unless symmetric,
// weight_zero_point.
OwnedTensors write_compressed_int(const QuantizedMatrix& matrix, const WrittenScales& scales);

// bitsandbytes, nf4 and fp4, K a multiple of the group: weight, quant_map, absmax; doubly quantized
// scales go as they are, with nested_absmax and nested_quant_map. Their offset, and the rest of
// what bitsandbytes calls quant_state, is not among the tensors.
OwnedTensors write_bitsandbytes4(const QuantizedMatrix& matrix);

}  // namespace woq::io
