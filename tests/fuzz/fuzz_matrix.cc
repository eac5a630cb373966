// SPDX-License-Identifier: Apache-2.0
#include "fuzz_matrix.h"

#include <cmath>
#include <cstring>

#include "woq/pack/pack.h"
#include "woq/quant/dequantize.h"

namespace woq::fuzz {

std::vector<float> dequantized(const QuantizedMatrix& matrix) {
  std::vector<float> out(static_cast<size_t>(matrix.rows * matrix.cols));
  dequantize(matrix, out.data(), 1);
  return out;
}

QuantizedMatrix packed_and_unpacked(const QuantizedMatrix& matrix) {
  return unpack(pack(matrix, 1), 1);
}

void require_usable(const QuantizedMatrix& matrix) {
  if (!is_small(matrix)) return;
  const std::vector<float> weight = dequantized(matrix);
  for (const float w : weight) require(std::isfinite(w));
  const std::vector<float> again = dequantized(packed_and_unpacked(matrix));
  require(std::memcmp(weight.data(), again.data(), weight.size() * sizeof(float)) == 0);
}

}  // namespace woq::fuzz
