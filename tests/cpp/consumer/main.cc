// SPDX-License-Identifier: Apache-2.0
// Quantizes a small matrix, multiplies with it, and compares with dequantize-then-multiply.
#include <woq/woq.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <vector>

// second_unit.cc: a second translation unit with the same headers links into the same program.
int count_runnable_targets();

namespace {

constexpr int64_t kM = 3, kN = 37, kK = 80;  // no multiple of a tile; the last group is shorter

std::vector<float> wave(int64_t size, float step) {
  std::vector<float> values(static_cast<size_t>(size));
  for (size_t i = 0; i < values.size(); ++i) values[i] = std::sin(step * static_cast<float>(i));
  return values;
}

// Returns the number of elements of C [M, N] beyond the rounding error of a sum of K products.
int wrong_elements(woq::WeightDtype dtype) {
  const std::vector<float> weight = wave(kN * kK, 0.7f), x = wave(kM * kK, 0.3f);
  const std::vector<float> bias = wave(kN, 1.1f);
  woq::QuantScheme scheme;
  scheme.dtype = dtype;
  scheme.group_size = 32;
  const woq::QuantizedMatrix quantized =
      woq::quantize_rtn(woq::view_of(weight.data(), kN, kK), scheme);
  const woq::WeightOnlyLinear linear(quantized, bias, woq::ComputeType::kFp32);
  std::vector<float> y(kM * kN), dequantized(kN * kK);
  linear.forward(woq::view_of(x.data(), kM, kK), woq::view_of(y.data(), kM, kN));
  woq::dequantize(quantized, dequantized.data());

  int wrong = 0;
  for (int64_t m = 0; m < kM; ++m) {
    for (int64_t n = 0; n < kN; ++n) {
      double sum = bias[static_cast<size_t>(n)], magnitude = std::fabs(sum);
      for (int64_t k = 0; k < kK; ++k) {
        const double product = static_cast<double>(x[static_cast<size_t>(m * kK + k)]) *
                               dequantized[static_cast<size_t>(n * kK + k)];
        sum += product;
        magnitude += std::fabs(product);
      }
      const double tolerance = kK * std::numeric_limits<float>::epsilon() * magnitude;
      // Negated, so that a NaN counts as wrong.
      wrong += !(std::fabs(y[static_cast<size_t>(m * kN + n)] - sum) <= tolerance);
    }
  }
  std::printf("%s on %s: %d wrong elements\n", woq::traits_of(dtype).name, linear.kernel().name,
              wrong);
  return wrong;
}

}  // namespace

int main() {
  const int wrong = wrong_elements(woq::WeightDtype::kInt4Clip) +
                    wrong_elements(woq::WeightDtype::kNf4) +
                    wrong_elements(woq::WeightDtype::kInt8);
  const int runnable = count_runnable_targets();
  std::printf("woq %s, %d targets run here\n", WOQ_VERSION, runnable);
  return wrong == 0 && runnable > 0 ? 0 : 1;
}
