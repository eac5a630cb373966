// SPDX-License-Identifier: Apache-2.0
// GGUF's quantized tensors to the hub, without requantization: the hub's values are those of ggml's
// dequantization, bit for bit. Looks at no file: gguf.h hands out types and bytes.
//
// Every type here is w = s t + m with t = code - centre or an entry of a table, s = d or d * sub,
// and m = 0, m or -dmin * submin, where d, dmin and m are fp16 and sub, submin integers of at most
// 8 bits. s t has at most 23 significant bits and is exact in fp32, so that only the sum rounds.
//
// The body is in src/io/gguf_matrix.cc: these functions need the library woq::woq.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "woq/io/gguf.h"
#include "woq/quant/quantized_matrix.h"

namespace woq::io {

// Whether read_gguf_matrix() reads the type. It does not read floats, and not IQ1, IQ2 and IQ3,
// whose weights are vectors of a codebook and not codes on a grid.
bool is_gguf_matrix(const GgufType& type);

// `data` are the rows of a matrix of N = rows and K = cols, one after the other. `row_order` is for
// files that have the rows in another order than the model: row n of the result is row
// row_order[n] of the file; empty: the same.
//
// Throws InvalidArgument for bytes that are not those of such a matrix, scales that are not finite
// among them, and Unsupported, with the type's name, for a type that it does not read.
QuantizedMatrix read_gguf_matrix(const GgufType& type, std::string_view data, int64_t rows,
                                 int64_t cols, const std::vector<int64_t>& row_order = {},
                                 int threads = 0);

}  // namespace woq::io
