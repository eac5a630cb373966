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

// The smallest type that holds the matrix, its scales aside:
//
//   Q4_0, Q5_0, Q8_0  symmetric integers of up to 4, 5 and 8 bits; fewer bits than the type has are
//                     codes nearer to its middle
//   Q4_1, Q5_1        integers of up to 4 and 5 bits with zero points, or with minima
//   IQ4_NL            iq4_nl
//   the others        what was read as such: two-level scales, E8M0, E4M3, ternary codes
//
// In types whose blocks have one scale, groups may be of any multiple of the block, which repeats
// its group's scale. Throws Unsupported that says what no type has room for, and what mends it.
const GgufType& gguf_type_for(const QuantizedMatrix& matrix);

// The rows of a tensor of that type, or of another one that holds the matrix, one after the other.
// Scales and minima (-z s, where the matrix has zero points z) that float16 has not exactly are an
// error, unless they are to be rounded; those that are too large for it always are. Throws
// Unsupported, saying what and why, for what the type cannot hold.
//
// The tensors that the reader reads come out with the same bytes, but for codes of MXFP4 and NVFP4
// that stand for minus zero, and scales of NVFP4 that stand for no number: both are 0 in the hub.
Buffer write_gguf_matrix(const QuantizedMatrix& matrix, const GgufType& type,
                         bool round_scales = false, int threads = 0);

}  // namespace woq::io
