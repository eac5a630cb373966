// SPDX-License-Identifier: Apache-2.0
// The quantizers' linear algebra and calibration's attention: each beside the peak of this machine,
// and beside Eigen where Eigen has the same and was found. Work, limit and Eigen are measured in
// turn; medians over the repeats. Prints a Markdown table.
//   bench_linalg [FILTER [REPEATS]]     FILTER: part of a row's name, such as "Cholesky"
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "machine_limits.h"
#include "woq/woq.h"
#if WOQ_BENCH_EIGEN
#include "eigen_rows.h"
#endif

namespace {

using namespace woq;
using namespace woq::linalg;
using namespace woq::ops;
using namespace woq::bench;

struct Row {
  std::string name;
  double operations;  // of one call, two for a multiply-add
  Limit limit;
  double share_of_limit;              // fp64 has half of fp32's peak
  std::function<void()> reset;        // not timed; may be empty
  std::function<void(int)> ours;      // of the number of threads
  std::function<void(int)> by_eigen;  // empty where Eigen has no such thing, or was not found
};

template <class T>
std::vector<T> random_values(int64_t n, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<T> values(static_cast<size_t>(n));
  for (T& value : values) value = static_cast<T>(normal(generator));
  return values;
}

std::vector<uint16_t> random_bf16(int64_t n, unsigned seed) {
  const std::vector<float> values = random_values<float>(n, seed);
  std::vector<uint16_t> result(values.size());
  store_floats(values.data(), FloatType::kBf16, n, result.data());
  return result;
}

template <class T>
Row product(const char* type, int64_t m, int64_t n, int64_t k) {
  struct Data {
    std::vector<T> a, b, c;
  };
  auto data = std::make_shared<Data>(Data{random_values<T>(m * k, 1), random_values<T>(k * n, 2),
                                          std::vector<T>(static_cast<size_t>(m * n))});
  Row row;
  row.name = std::string("product ") + type + " [" + std::to_string(m) + ", " + std::to_string(k) +
             "] x [" + std::to_string(k) + ", " + std::to_string(n) + "]";
  row.operations = 2.0 * static_cast<double>(m * n * k);
  row.limit = Limit::kFp32;
  row.share_of_limit = sizeof(T) == 8 ? 0.5 : 1.0;
  row.ours = [=](int threads) {
    multiply_add(m, n, k, T(1), StridedMatrix<T>{data->a.data(), k, 1},
                 StridedMatrix<T>{data->b.data(), n, 1}, data->c.data(), n, threads);
  };
#if WOQ_BENCH_EIGEN
  row.by_eigen = [=](int threads) {
    eigen_rows::product(m, n, k, data->a.data(), data->b.data(), data->c.data(), threads);
  };
#endif
  return row;
}

// X^T X / n + 1, positive definite.
std::vector<double> moments(int64_t n) {
  const std::vector<double> x = random_values<double>(n * n, 3);
  std::vector<double> h(static_cast<size_t>(n * n));
  const StridedMatrix<double> view{x.data(), n, 1};
  multiply_add(n, n, n, 1.0 / static_cast<double>(n), view.transposed(), view, h.data(), n, 0);
  for (int64_t i = 0; i < n; ++i) h[static_cast<size_t>(i * n + i)] += 1;
  return h;
}

Row cholesky(int64_t n) {
  struct Data {
    std::vector<double> matrix, work;
  };
  auto data = std::make_shared<Data>();
  data->matrix = moments(n);
  Row row;
  row.name = "Cholesky fp64, n = " + std::to_string(n);
  row.operations = std::pow(static_cast<double>(n), 3) / 3;
  row.limit = Limit::kFp32;
  row.share_of_limit = 0.5;
  row.reset = [=] { data->work = data->matrix; };
  row.ours = [=](int threads) { factor_upper(data->work.data(), n, n, 0.0, threads); };
#if WOQ_BENCH_EIGEN
  row.by_eigen = [=](int threads) { eigen_rows::cholesky(n, data->work.data(), threads); };
#endif
  return row;
}

Row triangular_solve(int64_t rows, int64_t n) {
  struct Data {
    std::vector<double> upper, lower, right, work;
  };
  auto data = std::make_shared<Data>();
  data->upper = moments(n);
  data->right = random_values<double>(rows * n, 4);
  factor_upper(data->upper.data(), n, n, 0.0, 0);
  data->lower.resize(data->upper.size());
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j <= i; ++j)
      data->lower[static_cast<size_t>(i * n + j)] = data->upper[static_cast<size_t>(j * n + i)];
  }
  Row row;
  row.name = "X R^T = B fp64, B [" + std::to_string(rows) + ", " + std::to_string(n) + "]";
  row.operations = static_cast<double>(rows) * static_cast<double>(n * n);
  row.limit = Limit::kFp32;
  row.share_of_limit = 0.5;
  row.reset = [=] { data->work = data->right; };
  row.ours = [=](int threads) {
    solve_transposed(data->upper.data(), n, n, data->work.data(), rows, n, threads);
  };
#if WOQ_BENCH_EIGEN
  // A lower factor, as Eigen's own Cholesky yields; the operations are as many.
  row.by_eigen = [=](int threads) {
    eigen_rows::solve(n, data->lower.data(), data->work.data(), rows, threads);
  };
#endif
  return row;
}

Row second_moments(FloatType type, int64_t rows, int64_t cols) {
  struct Data {
    std::vector<float> wide;
    std::vector<uint16_t> narrow;
  };
  auto data = std::make_shared<Data>();
  const bool bf16 = type == FloatType::kBf16;
  if (bf16) {
    data->narrow = random_bf16(rows * cols, 5);
  } else {
    data->wide = random_values<float>(rows * cols, 5);
  }
  const void* const values = bf16 ? static_cast<const void*>(data->narrow.data())
                                  : static_cast<const void*>(data->wide.data());
  Row row;
  row.name = std::string("Hessian::add ") + name_of(type) + ", X [" + std::to_string(rows) + ", " +
             std::to_string(cols) + "]";
  row.operations = static_cast<double>(rows) * static_cast<double>(cols * cols);  // one triangle
  row.limit = bf16 && has_limit(Limit::kBf16, Isa::kAvx512) ? Limit::kBf16 : Limit::kFp32;
  row.share_of_limit = 1;
  auto hessian = std::make_shared<Hessian>(cols);
  row.ours = [=](int threads) {
    static_cast<void>(data);  // keeps the values alive
    hessian->add(ConstMatrixView{values, type, rows, cols, cols}, threads);
  };
  return row;
}

Row causal_attention(int64_t tokens, int64_t heads, int64_t kv_heads, int64_t head_dim) {
  struct Data {
    std::vector<uint16_t> q, k, v, out;
  };
  const int64_t width = heads * head_dim, kv_width = kv_heads * head_dim;
  auto data =
      std::make_shared<Data>(Data{random_bf16(tokens * width, 6), random_bf16(tokens * kv_width, 7),
                                  random_bf16(tokens * kv_width, 8),
                                  std::vector<uint16_t>(static_cast<size_t>(tokens * width))});
  AttentionShape shape;
  shape.queries = shape.keys = tokens;
  shape.heads = heads;
  shape.kv_heads = kv_heads;
  shape.head_dim = head_dim;
  shape.scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  shape.causal = true;
  Row row;
  row.name = "attention bf16, causal, " + std::to_string(tokens) + " tokens, " +
             std::to_string(heads) + " / " + std::to_string(kv_heads) + " heads of " +
             std::to_string(head_dim);
  // Two products for each query and the keys up to it.
  row.operations = 2.0 * static_cast<double>(tokens * tokens * width);
  row.limit = has_limit(Limit::kBf16, Isa::kAvx512) ? Limit::kBf16 : Limit::kFp32;
  row.share_of_limit = 1;
  row.ours = [=](int threads) {
    const auto view = [=](auto* values, int64_t cols) {
      return BasicMatrixView<decltype(values + 0)>{values, FloatType::kBf16, tokens, cols, cols};
    };
    const auto q = view(data->q.data(), width), k = view(data->k.data(), kv_width);
    const auto v = view(data->v.data(), kv_width), out = view(data->out.data(), width);
    attention(shape, {q.data, q.type, q.rows, q.cols, q.row_stride},
              {k.data, k.type, k.rows, k.cols, k.row_stride},
              {v.data, v.type, v.rows, v.cols, v.row_stride},
              {out.data, out.type, out.rows, out.cols, out.row_stride}, threads);
  };
  return row;
}

double seconds_of(const Row& row, const std::function<void(int)>& call, int threads) {
  double total = 0;
  int calls = 0;
  while (total < 0.05) {
    if (row.reset) row.reset();
    const double begin = now();
    call(threads);
    total += now() - begin;
    ++calls;
  }
  return total / calls;
}

void print(const Row& row, int threads, int repeats) {
  const Isa isa = has_limit(row.limit, Isa::kAvx512) ? Isa::kAvx512 : Isa::kAvx2;
  std::vector<double> times, shares, ratios;
  for (int repeat = 0; repeat < repeats + 1; ++repeat) {
    const double peak = measure(row.limit, isa, threads, 0.03) * row.share_of_limit;
    const double seconds = seconds_of(row, row.ours, threads);
    const double eigen = row.by_eigen ? seconds_of(row, row.by_eigen, threads) : 0;
    if (repeat == 0) continue;  // warms up
    times.push_back(seconds);
    shares.push_back(row.operations / seconds / peak);
    if (row.by_eigen) ratios.push_back(eigen / seconds);
  }
  const double seconds = median(times);
  std::printf("| %s | %d | %.2f | %.0f | %.0f %% of %s | ", row.name.c_str(), threads,
              1e3 * seconds, row.operations / seconds / 1e9, 100 * median(shares),
              row.share_of_limit < 1 ? "fp64" : kLimitNames[static_cast<int>(row.limit)]);
  if (ratios.empty()) {
    std::printf("- |\n");
  } else {
    std::printf("%.2fx |\n", median(ratios));
  }
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  const char* filter = argc > 1 ? argv[1] : "";
  const int repeats = argc > 2 ? std::atoi(argv[2]) : 5;
  if (repeats < 1) {
    std::fprintf(stderr, "usage: bench_linalg [FILTER [REPEATS]]\n");
    return 1;
  }
  // What GPTQ of a 4096 x 4096 layer is made of; attention of a 1.7 B model.
  const std::vector<std::function<Row()>> rows = {
      [] { return product<float>("fp32", 4096, 4096, 4096); },
      [] { return product<float>("fp32", 4096, 128, 128); },
      [] { return product<double>("fp64", 2048, 2048, 2048); },
      [] { return cholesky(4096); },
      [] { return triangular_solve(1024, 4096); },
      [] { return second_moments(FloatType::kFp32, 2048, 4096); },
      [] { return second_moments(FloatType::kBf16, 2048, 4096); },
      [] { return causal_attention(2048, 32, 32, 64); },
      [] { return causal_attention(2048, 9, 3, 64); },
  };
#if WOQ_BENCH_EIGEN
  const char* const eigen = eigen_rows::description();
#else
  const char* const eigen = "no Eigen was found when this was built";
#endif
  std::printf("%s; %s; median of %d repeats\n\n", machine_description().c_str(), eigen, repeats);
  std::printf("| work | threads | ms | GFLOP/s | share of the peak | faster than Eigen by |\n");
  std::printf("|---|---|---|---|---|---|\n");
  try {
    for (const auto& make : rows) {
      const Row row = make();
      if (std::strstr(row.name.c_str(), filter) == nullptr) continue;
      for (const int threads : {1, usable_threads()}) print(row, threads, repeats);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench_linalg: %s\n", error.what());
    return 1;
  }
}
