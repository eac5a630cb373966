// SPDX-License-Identifier: Apache-2.0
#include "gemm_case.h"

#include <algorithm>
#include <random>

#include "woq/core/float16.h"

namespace woq::bench {

namespace {

QuantizedMatrix random_matrix(const Work& work, uint32_t seed) {
  const QuantScheme scheme = {work.dtype, work.group_size, work.zeros, work.scales};
  QuantizedMatrix matrix = QuantizedMatrix::allocate(scheme, work.n, work.k);
  std::minstd_rand random(seed);
  const auto fill = [&](Buffer& buffer, uint8_t mask) {
    for (int64_t i = 0; i < buffer.size(); ++i)
      buffer.data()[i] = static_cast<uint8_t>(random() >> 8) & mask;
  };
  const auto fill_fp16 = [&](Buffer& buffer) {
    for (int64_t i = 0; i < buffer.size() / 2; ++i) {
      buffer.as<uint16_t>()[i] =
          float_to_fp16(0.001f + 1e-6f * static_cast<float>(random() % 1000));
    }
  };
  const auto random_scales = [&] {
    ScaleTable scales = ScaleTable::allocate(scheme, work.n, matrix.groups());
    if (scheme.scales == ScaleEncoding::kTwoLevel) {
      fill(scales.values, 63);
      fill_fp16(scales.supers);
    } else {
      fill_fp16(scales.values);
    }
    return scales;
  };
  fill(matrix.qweight, 0xff);
  fill(matrix.zero_points, matrix.dtype().bits == 4 ? 15 : 255);
  matrix.scales = random_scales();
  if (scheme.zeros == ZeroKind::kMin) matrix.minima = random_scales();
  return matrix;
}

const char* name_of_zeros(ZeroKind zeros) {
  return zeros == ZeroKind::kNone ? "sym" : zeros == ZeroKind::kMin ? "min" : "asym";
}

}  // namespace

std::string Work::name() const {
  return concat(name_of(dtype), " g", group_size, " ", name_of_zeros(zeros), " ",
                scales == ScaleEncoding::kFp16 ? "" : concat(name_of(scales), " "),
                name_of(compute), " ", target.empty() ? "best" : target, " M", m, " ", n, "x", k,
                " ", threads, "T");
}

double Work::weight_bytes() const {
  const auto groups = static_cast<double>((k + group_size - 1) / group_size);
  double a_group = static_cast<double>(stored_scale_bytes(scales));
  if (scales == ScaleEncoding::kTwoLevel) a_group += 2.0 * group_size / 256;
  if (zeros == ZeroKind::kMin) a_group *= 2;
  if (zeros == ZeroKind::kInt) a_group += 0.5;
  return static_cast<double>(n * k) * traits_of(dtype).bits / 8 +
         static_cast<double>(n) * groups * a_group;
}

GemmCase::GemmCase(const Work& work) : work_(work) {
  const double wanted = 4.2 * static_cast<double>(last_level_cache_bytes());
  const int copies =
      work.m > kMemoryBoundRows ? 1 : static_cast<int>(wanted / work.weight_bytes()) + 1;
  const QuantizedMatrix matrix = random_matrix(work, 1);
  for (int i = 0; i < copies; ++i) {
    copies_.push_back(std::make_unique<WeightOnlyLinear>(matrix, std::vector<float>{}, work.compute,
                                                         "", work.threads, work.target));
  }
  kernel_name_ = copies_[0]->kernel().name;
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  x_.resize(static_cast<size_t>(work.m * work.k));
  for (float& x : x_) x = normal(random);
  y_.resize(static_cast<size_t>(work.m * work.n));
}

double GemmCase::run(double seconds) {
  const ConstMatrixView x{x_.data(), FloatType::kFp32, work_.m, work_.k, work_.k};
  const MatrixView y{y_.data(), FloatType::kFp32, work_.m, work_.n, work_.n};
  const double start = now();
  int64_t calls = 0;
  do {
    team_limit().reset();  // so many threads are what is measured
    for (const auto& layer : copies_) layer->forward(x, y, work_.threads);
    calls += static_cast<int64_t>(copies_.size());
  } while (now() - start < seconds);
  return (now() - start) / static_cast<double>(calls);
}

Limit limit_of(const Work& work) {
  if (work.m <= kMemoryBoundRows) return Limit::kRead;
  if (work.compute == ComputeType::kInt8) return Limit::kInt8;
  const bool bf16 = work.compute == ComputeType::kBf16 && has_limit(Limit::kBf16, isa_of(work));
  return bf16 ? Limit::kBf16 : Limit::kFp32;
}

Isa isa_of(const Work& work) {
  const bool narrow = work.target == "avx2" || work.target == "avx_vnni";
  // AVX-512 without VNNI: the 256-bit byte products are the only int8 limit that runs.
  const Limit needed = work.compute == ComputeType::kInt8 ? Limit::kInt8 : Limit::kFp32;
  const Limit limit = work.compute == ComputeType::kBf16 ? Limit::kBf16 : needed;
  const bool amx = (work.target.empty() || work.target == "amx") && has_limit(limit, Isa::kAmx);
  if (amx && work.m > kMemoryBoundRows) return Isa::kAmx;
  return !narrow && has_limit(needed, Isa::kAvx512) ? Isa::kAvx512 : Isa::kAvx2;
}

double share(const Work& work, double seconds, double limit_rate) {
  const double amount = limit_of(work) == Limit::kRead ? work.weight_bytes() : work.operations();
  return amount / seconds / limit_rate;
}

}  // namespace woq::bench
