// SPDX-License-Identifier: Apache-2.0
#include "eigen_rows.h"

#include <Eigen/Cholesky>
#include <Eigen/Core>
#include <string>

namespace eigen_rows {

namespace {

template <class T>
using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
template <class T>
using MatrixMap = Eigen::Map<Matrix<T>>;
template <class T>
using ConstMap = Eigen::Map<const Matrix<T>>;

template <class T>
void multiply(int64_t m, int64_t n, int64_t k, const T* a, const T* b, T* c, int threads) {
  Eigen::setNbThreads(threads);
  MatrixMap<T>(c, m, n).noalias() += ConstMap<T>(a, m, k) * ConstMap<T>(b, k, n);
}

}  // namespace

const char* description() {
  static const std::string text =
      "Eigen " + std::to_string(EIGEN_WORLD_VERSION) + "." + std::to_string(EIGEN_MAJOR_VERSION) +
      "." + std::to_string(EIGEN_MINOR_VERSION) + ", " + Eigen::SimdInstructionSetsInUse() + ", " +
      std::to_string(Eigen::internal::packet_traits<float>::size) + " floats in a register";
  return text.c_str();
}

void product(int64_t m, int64_t n, int64_t k, const float* a, const float* b, float* c,
             int threads) {
  multiply(m, n, k, a, b, c, threads);
}

void product(int64_t m, int64_t n, int64_t k, const double* a, const double* b, double* c,
             int threads) {
  multiply(m, n, k, a, b, c, threads);
}

void cholesky(int64_t n, double* a, int threads) {
  Eigen::setNbThreads(threads);
  MatrixMap<double> matrix(a, n, n);
  Eigen::LLT<Eigen::Ref<Matrix<double>>> factored(matrix);
}

void solve(int64_t n, const double* l, double* b, int64_t rows, int threads) {
  Eigen::setNbThreads(threads);
  MatrixMap<double> right(b, rows, n);
  ConstMap<double>(l, n, n)
      .transpose()
      .triangularView<Eigen::Upper>()
      .solveInPlace<Eigen::OnTheRight>(right);
}

}  // namespace eigen_rows
