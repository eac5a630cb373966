// SPDX-License-Identifier: Apache-2.0
// One weight in every dtype: how large it gets, how far it is from the original, which kernel
// multiplies with it here, and how far its product is from the float one.
#include <woq/woq.h>

#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

namespace {

constexpr int64_t kRows = 256, kCols = 1024, kInputs = 4;  // N, K, M

std::vector<float> normal(int64_t n, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> distribution;
  std::vector<float> values(static_cast<size_t>(n));
  for (float& value : values) value = distribution(generator);
  return values;
}

// The product in double precision: y [M, N] = x [M, K] W [N, K]^T.
std::vector<double> product(const std::vector<float>& x, const std::vector<float>& weight) {
  std::vector<double> y(static_cast<size_t>(kInputs * kRows));
  for (int64_t m = 0; m < kInputs; ++m) {
    for (int64_t n = 0; n < kRows; ++n) {
      double& sum = y[static_cast<size_t>(m * kRows + n)];
      for (int64_t k = 0; k < kCols; ++k)
        sum += static_cast<double>(x[static_cast<size_t>(m * kCols + k)]) *
               static_cast<double>(weight[static_cast<size_t>(n * kCols + k)]);
    }
  }
  return y;
}

}  // namespace

int main() {
  const std::vector<float> weight = normal(kRows * kCols, 1), x = normal(kInputs * kCols, 2);
  const std::vector<double> expected = product(x, weight);
  std::vector<float> y(expected.size());

  std::printf("%-16s %6s %12s  %s\n", "dtype", "bits", "error of y", "kernel");
  for (const woq::DtypeTraits& dtype : woq::kDtypes) {
    woq::QuantScheme scheme;
    scheme.dtype = dtype.dtype;
    scheme.group_size = 32;
    const woq::QuantizedMatrix quantized =
        woq::quantize_rtn(woq::view_of(weight.data(), kRows, kCols), scheme);
    const woq::WeightOnlyLinear layer(quantized, {}, woq::ComputeRequest::automatic());
    layer.forward(woq::view_of(x.data(), kInputs, kCols), woq::view_of(y.data(), kInputs, kRows));

    double error = 0, size = 0;
    for (size_t i = 0; i < y.size(); ++i) {
      error += std::pow(static_cast<double>(y[i]) - expected[i], 2);
      size += expected[i] * expected[i];
    }
    std::printf("%-16s %6.2f %11.2f%%  %s\n", dtype.name,
                8.0 * static_cast<double>(quantized.bytes()) / (kRows * kCols),
                100 * std::sqrt(error / size), layer.kernel().name);
  }
}
