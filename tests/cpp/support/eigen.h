// SPDX-License-Identifier: Apache-2.0
// Eigen, the independent oracle of the tests of linear algebra: it shares no line with what it
// judges. The library itself never uses it. Everything here is fp64.
#pragma once

#include <Eigen/Cholesky>
#include <Eigen/Core>
#include <Eigen/Eigenvalues>
#include <cstdint>

namespace woq::testing {

using EigenMatrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// A copy of a [rows, cols] matrix with any strides.
template <class T>
EigenMatrix eigen_of(const T* data, int64_t rows, int64_t cols, int64_t row_stride,
                     int64_t col_stride = 1) {
  EigenMatrix matrix(rows, cols);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j)
      matrix(i, j) = static_cast<double>(data[i * row_stride + j * col_stride]);
  }
  return matrix;
}

// gamma(n) = n u / (1 - n u), the relative error of n roundings (Higham, Accuracy and Stability of
// Numerical Algorithms, 2nd ed., 3.1); u is 2^-24 for float and 2^-53 for double.
template <class T>
double gamma_of(int64_t roundings) {
  const double nu = static_cast<double>(roundings) * (sizeof(T) == 4 ? 0x1p-24 : 0x1p-53);
  return nu / (1 - nu);
}

}  // namespace woq::testing
