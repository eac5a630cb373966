// SPDX-License-Identifier: Apache-2.0
// WeightOnlyLinear: y = x W^T + bias over a packed weight. The only class that the runtime and
// Python need.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "woq/core/buffer.h"
#include "woq/core/check.h"
#include "woq/core/parallel.h"
#include "woq/core/view.h"
#include "woq/kernels/select.h"
#include "woq/pack/pack.h"

namespace woq {

namespace detail {

// Rows of x that are prepared and multiplied at a time: bounds the scratch memory, and 256 rows of
// int8 activations (K = 4096: 1 MiB) still fit a second-level cache of a current server core.
inline constexpr int64_t kRowBlock = 256;

// Multiply-adds worth a thread: a core does some 10^5 in the time of waking one.
inline constexpr int64_t kMultiplyGrain = int64_t{1} << 17;

// Scratch memory of the calling thread, kept between calls.
inline Buffer& scratch(int64_t bytes) {
  static thread_local Buffer buffer;
  if (buffer.size() < bytes) buffer = Buffer(bytes);
  return buffer;
}

}  // namespace detail

class WeightOnlyLinear {
 public:
  // bias: [N] or empty. Selects the kernel now; `forced` names a target to cap the selection at
  // (default: WOQ_FORCE_TARGET). Throws InvalidArgument (bias of the wrong length) and Unsupported
  // (no kernel).
  WeightOnlyLinear(const QuantizedMatrix& weight, const std::vector<float>& bias,
                   ComputeRequest compute, std::string name = "", int threads = 0,
                   const std::string& forced = forced_target())
      : name_(std::move(name)), request_(compute) {
    const ComputeChoice chosen = choose_compute(compute, weight.dtype(), forced);
    choice_ = select_kernel(kind_of(weight.dtype()), chosen.compute, forced);
    choice_.compute_why = chosen.why;
    if (!bias.empty() && static_cast<int64_t>(bias.size()) != weight.rows) {
      fail("layer '", name_, "': the bias has ", bias.size(), " elements, but the weight has ",
           weight.rows, " rows");
    }
    weight_ = pack(weight, threads);
    if (!bias.empty()) {
      bias_ = bias;
      bias_.resize(static_cast<size_t>(weight_.tiles() * kTileRows), 0.0f);
    }
  }

  int64_t in_features() const { return weight_.cols; }
  int64_t out_features() const { return weight_.rows; }
  bool has_bias() const { return !bias_.empty(); }
  const PackedMatrix& weight() const { return weight_; }
  ComputeRequest compute_request() const { return request_; }
  const KernelChoice& choice() const { return choice_; }
  const Kernel& kernel() const { return *choice_.kernel; }
  const std::string& name() const { return name_; }

  // y [M, N] = x [M, K] W^T + bias; M may be 0. x and y must not overlap. Any mixture of fp32, bf16
  // and fp16. Safe to call from several threads at once. Throws InvalidArgument for wrong shapes.
  void forward(const ConstMatrixView& x, const MatrixView& y, int threads = 0) const {
    if (x.cols != in_features()) {
      fail("layer '", name_, "': the input has ", x.cols, " features, but in_features is ",
           in_features());
    }
    if (y.cols != out_features() || y.rows != x.rows) {
      fail("layer '", name_, "': the output is ", y.rows, " x ", y.cols, ", expected ", x.rows,
           " x ", out_features());
    }
    for (int64_t m = 0; m < x.rows; m += detail::kRowBlock) {
      const int64_t rows = std::min(detail::kRowBlock, x.rows - m);
      forward_rows({x.row(m), x.type, rows, x.cols, x.row_stride},
                   {y.row(m), y.type, rows, y.cols, y.row_stride}, threads);
    }
  }

 private:
  void forward_rows(const ConstMatrixView& x, const MatrixView& y, int threads) const {
    const Kernel& kernel = *choice_.kernel;
    const BlockGeometry geometry(weight_);
    PrepareTask prepare{x, geometry, {}, 0, x.rows};
    prepare.out.blocks = geometry.blocks();
    prepare.out.row_bytes = prepared_row_bytes(kernel.format, geometry.padded_cols);
    const int64_t data_bytes = x.rows * prepare.out.row_bytes;
    const int64_t statistics_bytes = round_up(x.rows * prepare.out.blocks * 4, Buffer::kAlignment);
    Buffer& scratch = detail::scratch(data_bytes + 3 * statistics_bytes);
    prepare.out.data = scratch.data();
    uint8_t* const statistics = scratch.data() + data_bytes;
    prepare.out.sums = reinterpret_cast<float*>(statistics);
    prepare.out.scales = reinterpret_cast<float*>(statistics + statistics_bytes);
    prepare.out.starts = reinterpret_cast<int32_t*>(statistics + 2 * statistics_bytes);

    GemmTask gemm;
    gemm.weights = &weight_;
    gemm.a = prepare.out;
    gemm.bias = bias_.empty() ? nullptr : bias_.data();
    gemm.c = y;
    const int64_t tiles = weight_.tiles();
    const int team =
        useful_threads(threads, x.rows * weight_.rows * weight_.cols, detail::kMultiplyGrain);
    // Threads share the tiles; where there are fewer tiles than threads, several split the rows of
    // one share.
    const int columns = static_cast<int>(std::min<int64_t>(team, tiles));
    const int row_shares =
        static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(team / columns, x.rows / 8)));

    run_team(columns * row_shares, [&](const TeamMember& member) {
      PrepareTask my_rows = prepare;
      member.share(x.rows, 1, &my_rows.m0, &my_rows.m1);
      if (my_rows.m0 < my_rows.m1) kernel.prepare(my_rows);
      member.barrier();
      GemmTask portion = gemm;
      // OpenMP may grant fewer threads than asked for; shares follow what came.
      const int my_columns = member.size == columns * row_shares ? columns : member.size;
      TeamMember{member.index % my_columns, my_columns}.share(tiles, 1, &portion.t0, &portion.t1);
      TeamMember{member.index / my_columns, member.size / my_columns}.share(x.rows, 8, &portion.m0,
                                                                            &portion.m1);
      if (portion.m0 < portion.m1 && portion.t0 < portion.t1) kernel.run(portion);
    });
  }

  std::string name_;
  ComputeRequest request_;
  KernelChoice choice_;
  PackedMatrix weight_;
  std::vector<float> bias_;  // padded to whole tiles
};

}  // namespace woq
