// SPDX-License-Identifier: Apache-2.0
// Any bytes as a quantized tensor of a GGUF file: an error, or a matrix that may be used: it
// dequantizes to finite numbers, the same after it was packed and unpacked.
//
// An input is a header of 4 bytes: the type as an index into kGgufTypes; rows; blocks of a row;
// flags (1: rows in reverse order, 2: columns are not whole blocks). What follows are the blocks.
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string_view>
#include <vector>

#include "fuzz_matrix.h"
#include "woq/core/check.h"
#include "woq/io/gguf_matrix.h"

using woq::fuzz::require;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 4) return 0;
  const woq::io::GgufType& type = woq::io::kGgufTypes[data[0] % std::size(woq::io::kGgufTypes)];
  const int64_t rows = data[1];
  const int64_t cols = data[2] * type.block_elements + (data[3] >> 1 & 1);
  std::vector<int64_t> order;
  for (int64_t n = rows; (data[3] & 1) != 0 && n-- > 0;) order.push_back(n);
  // An array of its own, so that the sanitizer sees what is read beyond it.
  const std::vector<char> bytes(data + 4, data + size);
  woq::QuantizedMatrix matrix;
  try {
    matrix = woq::io::read_gguf_matrix(type, {bytes.data(), bytes.size()}, rows, cols, order, 1);
  } catch (const woq::InvalidArgument&) {
    return 0;
  } catch (const woq::Unsupported&) {
    require(!woq::io::is_gguf_matrix(type));
    return 0;
  }
  woq::fuzz::require_usable(matrix);
  return 0;
}
