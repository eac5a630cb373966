// SPDX-License-Identifier: Apache-2.0
// Quantized weights as the bytes of GGUF tensors, the inverse of woq/io/gguf_matrix.h. Nothing is
// quantized again: a matrix whose numbers a type has exactly becomes a tensor of it, another one is
// refused.
//
// The bodies are in src/io/gguf_matrix_writer.cc: these functions need the library woq::woq.
#pragma once

#include "woq/core/buffer.h"
#include "woq/io/gguf.h"
#include "woq/quant/quantized_matrix.h"

namespace woq::io {

// The rows of a tensor of type Q4_0, Q4_1, Q8_0 or IQ4_NL, one after the other. Groups may be of
// any multiple of 32; every block of 32 repeats its group's scale.
//
//   Q4_0    symmetric integers of 4 bits
//   Q4_1    integers of 4 bits with minima, or with zero points z and a scale s for which -z s is
//           exact in float16
//   Q8_0    symmetric integers of 8 bits
//   IQ4_NL  iq4_nl
//
// Throws Unsupported, saying what and why, for what the type cannot hold: scales and minima that
// float16 has not exactly among it.
Buffer write_gguf_matrix(const QuantizedMatrix& matrix, const GgufType& type);

}  // namespace woq::io
