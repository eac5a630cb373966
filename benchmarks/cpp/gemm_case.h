// SPDX-License-Identifier: Apache-2.0
// One piece of work: y = x W^T with a weight dtype, compute dtype, target, shape and thread count.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "machine_limits.h"
#include "woq/linear.h"

namespace woq::bench {

struct Work {
  WeightDtype dtype = WeightDtype::kInt4Clip;
  int group_size = 32;
  ZeroKind zeros = ZeroKind::kNone;
  ScaleEncoding scales = ScaleEncoding::kFp16;
  ComputeType compute = ComputeType::kInt8;
  std::string target;  // forced; empty for the best
  int64_t m = 1, n = 0, k = 0;
  int threads = 1;

  std::string name() const;
  // Bytes of the weight in a file: codes, scales, minima, half a byte a zero point.
  double weight_bytes() const;
  double operations() const { return 2.0 * static_cast<double>(m * n * k); }
};

// Layers of random codes. With few rows they come in turn from copies of more than four last-level
// caches, so that every call reads its weights from memory, as in a model's decoding.
class GemmCase {
 public:
  explicit GemmCase(const Work& work);

  const Work& work() const { return work_; }
  const std::string& kernel_name() const { return kernel_name_; }
  // Seconds of one call: the mean over all copies, or over about `seconds`.
  double run(double seconds);

 private:
  Work work_;
  std::string kernel_name_;
  std::vector<std::unique_ptr<WeightOnlyLinear>> copies_;
  std::vector<float> x_, y_;
};

// The limit that bounds the work: memory for few rows, else the peak of its compute type, with the
// instructions of its target.
Limit limit_of(const Work& work);
Isa isa_of(const Work& work);

// Limit over figure: the share of the limit that a call of `seconds` reaches.
double share(const Work& work, double seconds, double limit_rate);

// Rows up to which a call counts as bound by memory.
inline constexpr int64_t kMemoryBoundRows = 4;

}  // namespace woq::bench
