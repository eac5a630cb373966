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

namespace detail {
class SharedForward;
}

class WeightOnlyLinear {
 public:
  // bias: [N] or empty. Selects the kernel now; `forced` names a target to cap the selection at
  // (default: WOQ_FORCE_TARGET). Throws InvalidArgument (bias of the wrong length) and Unsupported
  // (no kernel).
  WeightOnlyLinear(const QuantizedMatrix& weight, const std::vector<float>& bias,
                   ComputeRequest compute, std::string name = "", int threads = 0,
                   const std::string& forced = forced_target())
      : name_(std::move(name)), request_(compute) {
    const kernels::ComputeChoice chosen = kernels::choose_compute(compute, weight.dtype(), forced);
    choice_ = kernels::select_kernel(kernels::kind_of(weight.dtype()), chosen.compute, forced);
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
  void forward(const ConstMatrixView& x, const MatrixView& y, int threads = 0) const;

  // Whether the activations that the two layers' kernels read are the same for the same input.
  bool shares_activations_with(const WeightOnlyLinear& other) const {
    const kernels::BlockGeometry mine(weight_), theirs(other.weight_);
    return kernel().prepare == other.kernel().prepare && mine.cols == theirs.cols &&
           mine.group_length == theirs.group_length && mine.unit == theirs.unit &&
           weight_.input_order == other.weight_.input_order &&
           weight_.act_scales == other.weight_.act_scales;
  }

 private:
  friend class detail::SharedForward;

  std::string name_;
  ComputeRequest request_;
  KernelChoice choice_;
  PackedMatrix weight_;
  std::vector<float> bias_;  // padded to whole tiles
};

// One product of a call over a common input: y [M, N] = x W^T + bias + residual, or, with up,
// y = silu(x W^T + bias) * up + residual. up and residual: data nullptr for none; may be y's own
// memory.
struct LinearOutput {
  const WeightOnlyLinear* layer = nullptr;
  MatrixView y;
  ConstMatrixView residual = {};
  ConstMatrixView up = {};
};

namespace detail {

// At most kRowBlock rows of x times the weights of several layers, by one team of threads.
class SharedForward {
 public:
  SharedForward(const ConstMatrixView& x, const std::vector<LinearOutput>& outputs, int threads)
      : x_(x) {
    int64_t work = 0, least_tiles = outputs[0].layer->weight_.tiles(), bytes = 0;
    for (const LinearOutput& output : outputs) {
      const WeightOnlyLinear& layer = *output.layer;
      work += x.rows * layer.weight_.rows * layer.weight_.cols;
      least_tiles = std::min(least_tiles, layer.weight_.tiles());
      size_t source = 0;
      while (source < sources_.size() && !sources_[source].layer->shares_activations_with(layer))
        ++source;
      if (source == sources_.size()) {
        sources_.push_back({&layer, make_preparation(x, layer.weight_), bytes});
        bytes += scratch_bytes(&sources_.back());
      }
      products_.push_back({&layer, source, make_task(layer, output)});
    }
    // Threads share the tiles of each layer; where there are fewer tiles than threads, several
    // split the rows of one share.
    const int team = useful_threads(threads, work, kMultiplyGrain);
    columns_ = static_cast<int>(std::min<int64_t>(team, least_tiles));
    row_shares_ =
        static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(team / columns_, x.rows / 8)));
    // A single row would be prepared by one thread, for which the others would wait: each prepares
    // a copy for itself instead, and a team has nothing to wait for before its end.
    if (x.rows == 1) copy_bytes_ = bytes;
    Buffer& memory = scratch(bytes + copy_bytes_ * (columns_ * row_shares_ - 1));
    for (Source& source : sources_) place(memory.data() + source.offset, &source);
  }

  void run() const {
    run_brief_team(columns_ * row_shares_, [&](const TeamMember& member) {
      const int64_t copy = member.index * copy_bytes_;
      for (const Source& source : sources_) {
        kernels::PrepareTask rows = source.task;
        rows.out = moved(rows.out, copy);
        if (copy_bytes_ == 0) member.share(x_.rows, 1, &rows.m0, &rows.m1);
        if (rows.m0 < rows.m1) source.layer->kernel().prepare(rows);
      }
      if (copy_bytes_ == 0) member.barrier();
      // OpenMP may grant fewer threads than asked for; shares follow what came.
      const int columns = member.size == columns_ * row_shares_ ? columns_ : member.size;
      for (const Product& product : products_) {
        kernels::GemmTask task = product.task;
        task.a = moved(sources_[product.source].task.out, copy);
        TeamMember{member.index % columns, columns}.share(task.weights->tiles(), 1, &task.t0,
                                                          &task.t1);
        TeamMember{member.index / columns, member.size / columns}.share(x_.rows, 8, &task.m0,
                                                                        &task.m1);
        if (task.m0 < task.m1 && task.t0 < task.t1) product.layer->kernel().run(task);
      }
    });
  }

 private:
  // Activations, prepared once for every layer that shares them.
  struct Source {
    const WeightOnlyLinear* layer;
    kernels::PrepareTask task;
    int64_t offset;
  };
  struct Product {
    const WeightOnlyLinear* layer;
    size_t source;
    kernels::GemmTask task;
  };

  static kernels::PrepareTask make_preparation(const ConstMatrixView& x,
                                               const PackedMatrix& weight) {
    kernels::PrepareTask task{x, kernels::BlockGeometry(weight), {}, 0, x.rows};
    if (weight.input_order.size() > 0) task.order = weight.input_order.as<int32_t>();
    if (weight.act_scales.size() > 0) task.scales = weight.act_scales.as<float>();
    return task;
  }

  static kernels::GemmTask make_task(const WeightOnlyLinear& layer, const LinearOutput& output) {
    kernels::GemmTask task;
    task.weights = &layer.weight_;
    task.bias = layer.bias_.empty() ? nullptr : layer.bias_.data();
    task.up = output.up;
    task.residual = output.residual;
    task.c = output.y;
    return task;
  }

  int64_t data_bytes(const Source& source) const { return x_.rows * source.task.out.row_bytes; }
  int64_t statistics_bytes(const Source& source) const {
    return round_up(x_.rows * source.task.out.blocks * 4, Buffer::kAlignment);
  }
  int64_t scratch_bytes(Source* source) const {
    kernels::PreparedActivations& out = source->task.out;
    out.blocks = source->task.geometry.blocks();
    out.row_bytes = kernels::prepared_row_bytes(source->layer->kernel().format,
                                                source->task.geometry.padded_cols);
    return data_bytes(*source) + 3 * statistics_bytes(*source);
  }
  void place(uint8_t* memory, Source* source) const {
    kernels::PreparedActivations& out = source->task.out;
    out.data = memory;
    memory += data_bytes(*source);
    out.sums = reinterpret_cast<float*>(memory);
    memory += statistics_bytes(*source);
    out.scales = reinterpret_cast<float*>(memory);
    memory += statistics_bytes(*source);
    out.starts = reinterpret_cast<int32_t*>(memory);
  }

  static kernels::PreparedActivations moved(kernels::PreparedActivations a, int64_t bytes) {
    a.data += bytes;
    a.sums += bytes / 4;
    a.scales += bytes / 4;
    a.starts += bytes / 4;
    return a;
  }

  ConstMatrixView x_;
  std::vector<Source> sources_;
  std::vector<Product> products_;
  int columns_ = 1, row_shares_ = 1;
  int64_t copy_bytes_ = 0;  // of a thread's own prepared activations; 0: all threads share one copy
};

template <class View>
View rows_of(const View& view, int64_t first, int64_t count) {
  if (view.data == nullptr) return view;
  return {view.row(first), view.type, count, view.cols, view.row_stride};
}

}  // namespace detail

// Several layers over one input, such as q, k and v, or gate and up: one call to the threads, and
// activations prepared once for all layers that share them (shares_activations_with). Results are
// those of forward() for each. Throws InvalidArgument for wrong shapes, before anything is written.
inline void forward_shared(const ConstMatrixView& x, const std::vector<LinearOutput>& outputs,
                           int threads = 0) {
  for (const LinearOutput& output : outputs) {
    const WeightOnlyLinear& layer = *output.layer;
    const MatrixView& y = output.y;
    if (x.cols != layer.in_features()) {
      fail("layer '", layer.name(), "': the input has ", x.cols, " features, but in_features is ",
           layer.in_features());
    }
    if (y.cols != layer.out_features() || y.rows != x.rows) {
      fail("layer '", layer.name(), "': the output is ", y.rows, " x ", y.cols, ", expected ",
           x.rows, " x ", layer.out_features());
    }
    const auto check_addend = [&](const char* what, const ConstMatrixView& matrix) {
      if (matrix.data != nullptr && (matrix.rows != y.rows || matrix.cols != y.cols)) {
        fail("layer '", layer.name(), "': ", what, " is ", matrix.rows, " x ", matrix.cols,
             ", expected ", y.rows, " x ", y.cols);
      }
    };
    check_addend("the residual", output.residual);
    check_addend("the factor up", output.up);
  }
  if (outputs.empty()) return;
  for (int64_t m = 0; m < x.rows; m += detail::kRowBlock) {
    const int64_t rows = std::min(detail::kRowBlock, x.rows - m);
    std::vector<LinearOutput> part = outputs;
    for (LinearOutput& output : part) {
      output.y = detail::rows_of(output.y, m, rows);
      output.residual = detail::rows_of(output.residual, m, rows);
      output.up = detail::rows_of(output.up, m, rows);
    }
    detail::SharedForward(detail::rows_of(x, m, rows), part, threads).run();
  }
}

// The gated half of a Llama-style MLP: y [M, N] = silu(x Wg^T + bg) * (x Wu^T + bu), in one call,
// without memory for either factor: y holds the second one, in its type, until the first is there.
// Both layers have N outputs.
inline void forward_gated(const ConstMatrixView& x, const WeightOnlyLinear& gate,
                          const WeightOnlyLinear& up, const MatrixView& y, int threads = 0) {
  // The second product reads y, which the first one wrote. No barrier is needed between the two:
  // both layers have N outputs, so a thread gets the same columns of both, and reads no element of
  // y that another thread writes.
  forward_shared(x, {{&up, y, {}, {}}, {&gate, y, {}, y}}, threads);
}

inline void WeightOnlyLinear::forward(const ConstMatrixView& x, const MatrixView& y,
                                      int threads) const {
  forward_shared(x, {{this, y, {}}}, threads);
}

}  // namespace woq
