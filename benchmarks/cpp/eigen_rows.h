// SPDX-License-Identifier: Apache-2.0
// The same work as bench_linalg's, done by Eigen: the rows to beat. Its own source file is compiled
// with -march=native, without which Eigen uses 128-bit registers only; so this header must not
// mention woq or Eigen.
#pragma once

#include <cstdint>

namespace eigen_rows {

// "Eigen 3.4.0, AVX512, 16 floats", what its figures are about.
const char* description();

// c [m, n] += a [m, k] b [k, n], all without gaps between rows.
void product(int64_t m, int64_t n, int64_t k, const float* a, const float* b, float* c,
             int threads);
void product(int64_t m, int64_t n, int64_t k, const double* a, const double* b, double* c,
             int threads);

// The lower Cholesky factor of a [n, n], in place.
void cholesky(int64_t n, double* a, int threads);

// b [rows, n] becomes the X with X L^T = B, for the lower l [n, n].
void solve(int64_t n, const double* l, double* b, int64_t rows, int threads);

}  // namespace eigen_rows
