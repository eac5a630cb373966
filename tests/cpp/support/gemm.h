// SPDX-License-Identifier: Apache-2.0
// Runs one kernel on one problem the way its contract says, without threads.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "support/dequantizing.h"
#include "support/machine.h"
#include "support/matrices.h"
#include "support/random.h"
#include "support/schemes.h"
#include "woq/kernels/select.h"
#include "woq/pack/pack.h"

namespace woq::testing {

using namespace kernels;

// Every kernel of this build, whatever the CPU.
inline std::vector<const Kernel*> all_kernels() {
  std::vector<const Kernel*> kernels;
  for (const TargetTraits& target : kTargets) {
    const KernelTable table = kernels_of(target.target);
    for (int i = 0; i < table.size; ++i) kernels.push_back(table.begin + i);
  }
  return kernels;
}

template <class Condition>
std::vector<const Kernel*> kernels_with(const Condition& condition) {
  std::vector<const Kernel*> kernels;
  for (const Kernel* kernel : all_kernels()) {
    if (condition(*kernel)) kernels.push_back(kernel);
  }
  return kernels;
}

inline std::vector<const Kernel*> int8_kernels() {
  return kernels_with([](const Kernel& k) { return k.compute == ComputeType::kInt8; });
}

// Those of integer weights.
inline std::vector<const Kernel*> integer_kernels() {
  return kernels_with([](const Kernel& k) { return k.weights != WeightKind::kT4; });
}

inline std::string kernel_test_name(const ::testing::TestParamInfo<const Kernel*>& info) {
  return info.param->name;
}

// Why the target cannot be tested; empty if it can.
inline std::string why_not_here(const TargetTraits& target) {
  const CpuFeatureSet missing = target.required & ~cpu_features();
  if (missing != 0) return "this CPU lacks " + names_of(missing);
  return is_built(target.target) ? "" : std::string("this build has no target ") + target.name;
}

inline const Kernel& reference_of(const Kernel& kernel) {
  if (dequantizes(kernel)) return dequantizing_reference(kernel.weights, kernel.compute);
  const KernelTable table = kernels_of(Target::kRef);
  for (int i = 0; i < table.size; ++i) {
    const Kernel& reference = table.begin[i];
    if (reference.weights == kernel.weights && reference.compute == kernel.compute) {
      return reference;
    }
  }
  fail<Unsupported>("no reference kernel for ", kernel.name);
}

inline std::vector<WeightDtype> dtypes_of(WeightKind kind) {
  std::vector<WeightDtype> dtypes;
  for (const DtypeTraits& traits : kDtypes) {
    if (kind_of(traits) == kind) dtypes.push_back(traits.dtype);
  }
  return dtypes;
}

// A test of one kernel, skipped where the CPU cannot run it.
class KernelTest : public ::testing::TestWithParam<const Kernel*> {
 protected:
  const Kernel& kernel() const { return *GetParam(); }
  const Kernel& reference() const { return reference_of(kernel()); }

  void SetUp() override {
    const std::string why_not = why_not_here(traits_of(kernel().target));
    if (!why_not.empty()) GTEST_SKIP() << why_not;
  }
};

struct GemmProblem {
  QuantizedMatrix hub;
  PackedMatrix weights;
  FloatMatrix x;            // [M, K]
  std::vector<float> bias;  // [tiles * 16], or empty

  GemmProblem(QuantizedMatrix matrix, FloatMatrix activations)
      : hub(std::move(matrix)), weights(pack(hub, 1)), x(std::move(activations)) {}

  int64_t rows() const { return x.rows(); }
  int64_t cols() const { return hub.rows; }
};

// Elements between rows and before the first are there to make addresses odd.
inline GemmProblem random_problem(Random& random, const QuantScheme& scheme, int64_t m, int64_t n,
                                  int64_t k, FloatType type = FloatType::kFp32, bool bias = false) {
  FloatMatrix x(type, m, k, random.below(4), random.below(4));
  fill_activations(random, &x);
  GemmProblem problem(random_hub(random, scheme, n, k), std::move(x));
  if (bias) {
    problem.bias.resize(static_cast<size_t>(problem.weights.tiles() * kTileRows));
    for (float& b : problem.bias) b = random.normal();
  }
  return problem;
}

// Any scheme of the kind.
inline QuantScheme random_scheme(Random& random, WeightKind kind) {
  return random.pick(schemes_of(traits_of(random.pick(dtypes_of(kind)))));
}

// Prepared activations in memory of exactly their size. What only int8 has is a null pointer for
// the other formats.
struct Prepared {
  Buffer data;
  std::vector<float> scales, sums;
  std::vector<int32_t> starts;
  PreparedActivations view;

  Prepared(const Kernel& kernel, const PackedMatrix& weights, const ConstMatrixView& x)
      : Prepared(kernel, weights, x, 0, x.rows) {}

  Prepared(const Kernel& kernel, const PackedMatrix& weights, const ConstMatrixView& x, int64_t m0,
           int64_t m1) {
    const BlockGeometry geometry(weights);
    view.blocks = geometry.blocks();
    view.row_bytes = prepared_row_bytes(kernel.format, geometry.padded_cols);
    data = Buffer(x.rows * view.row_bytes);
    std::memset(data.data(), kCanary, static_cast<size_t>(data.size()));
    const auto statistics = static_cast<size_t>(x.rows * view.blocks);
    sums.assign(statistics, kUnset);
    if (kernel.format == ActFormat::kS8) {
      scales.assign(statistics, kUnset);
      starts.assign(statistics, static_cast<int32_t>(kUnset));
    }
    view.data = data.data();
    view.sums = sums.data();
    view.scales = scales.empty() ? nullptr : scales.data();
    view.starts = starts.empty() ? nullptr : starts.data();
    PrepareTask task{x, geometry, view, m0, m1};
    if (weights.input_order.size() > 0) task.order = weights.input_order.as<int32_t>();
    if (weights.act_scales.size() > 0) task.scales = weights.act_scales.as<float>();
    kernel.prepare(task);
  }

  const uint8_t* row(int64_t m) const { return data.data() + m * view.row_bytes; }

  static constexpr float kUnset = -12345.5f;
};

struct Portion {
  int64_t m0 = 0, m1 = 0, t0 = 0, t1 = 0;
};

inline Portion whole(const GemmProblem& problem) {
  return {0, problem.rows(), 0, problem.weights.tiles()};
}

inline void run_gemm(const Kernel& kernel, const GemmProblem& problem, const Prepared& prepared,
                     const Portion& portion, FloatMatrix* c) {
  GemmTask task;
  task.weights = &problem.weights;
  task.a = prepared.view;
  task.bias = problem.bias.empty() ? nullptr : problem.bias.data();
  task.c = c->view();
  task.m0 = portion.m0;
  task.m1 = portion.m1;
  task.t0 = portion.t0;
  task.t1 = portion.t1;
  kernel.run(task);
}

inline FloatMatrix run_gemm(const Kernel& kernel, const GemmProblem& problem,
                            FloatType type = FloatType::kFp32) {
  const Prepared prepared(kernel, problem.weights, problem.x.view());
  FloatMatrix c(type, problem.rows(), problem.cols(), 3, 1);
  run_gemm(kernel, problem, prepared, whole(problem), &c);
  return c;
}

inline std::string describe(const GemmProblem& problem) {
  return describe(problem.hub) + ", M=" + std::to_string(problem.rows()) + " " +
         name_of(problem.x.type()) + (problem.bias.empty() ? "" : ", bias");
}

}  // namespace woq::testing
