// SPDX-License-Identifier: Apache-2.0
// GPTQ (Frantar et al., arXiv:2210.17323, algorithm 1): columns are quantized one after the other,
// and the columns that are still to come are changed so that they compensate each column's error.
//
// The paper keeps the weights in flight: with U the upper Cholesky factor of H^-1, column i's error
// e_i = (w_i - q_i) / U_ii is subtracted from the columns j > i as e_i U_ij. Here the same numbers
// are written with R = U^-1, for which H = R R^T, and with d_i = (the original w_i) - q_i:
//     w_j in flight, when its turn comes = w_j + (sum over i < j of d_i R_ij) / R_jj
// which needs no inverse of H, and gathers all that a block of columns has to make up for in one
// product of matrices. For columns j >= k behind the turn of k, in flight are W - D with
//     D_rest R_rest,rest = -(D_done R_done,rest)
// a triangular system of which a group's scale needs only the group's own columns.
//
// GPTAQ (Li et al., arXiv:2504.02692) adds the difference between the inputs of the full-precision
// model and of the quantized prefix: w_i in flight moves the columns j > i by w_i P_ij, where
// P = alpha triu(dX X^T U^T, 1) U. In the form above that is one more sum, of w_i T_ij for
// T = alpha triu(dX X^T R^-T, 1).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "woq/linalg/cholesky.h"
#include "woq/quant/hessian.h"
#include "woq/quant/layer_error.h"
#include "woq/quant/rtn.h"

namespace woq {

// kDesc: columns in descending order of H's diagonal ("act-order", desc_act); unless scales are
// static, groups are made of columns in that order, and g_idx says which. kGroupAware: groups stay
// where they are; they are taken in descending order of their largest diagonal element, and so are
// the columns of each, which costs nothing at run time.
enum class ActOrder : uint8_t { kNone, kDesc, kGroupAware };
inline constexpr const char* kActOrderNames[] = {"none", "desc", "group_aware"};

inline ActOrder parse_act_order(std::string_view text) {
  for (int i = 0; i < 3; ++i) {
    if (text == kActOrderNames[i]) return static_cast<ActOrder>(i);
  }
  fail("unknown act_order '", text, "'; known: none, desc, group_aware");
}

struct GptqOptions {
  double damp = 0.01;            // added to the diagonal, as a share of its mean
  double damp_increment = 0.01;  // added to damp while H + damp isn't positive definite
  int64_t block_size = 128;      // columns that are corrected by one product of matrices
  ActOrder act_order = ActOrder::kNone;
  bool static_groups = false;  // scales from the original weights, not from those in flight
  bool mse_range = false;      // of each group's range, with errors weighted as GPTQ weighs them
  bool fp64 = false;           // arithmetic; fp32 is twice as fast
  const CrossMoment* cross = nullptr;  // turns GPTAQ on
  double gptaq_alpha = 0;              // how far GPTAQ goes; its authors' code has 0.25
  // [N, K] or null: gets every weight as it was when its turn came. Rounded to nearest with the
  // result's scales it gives the result's codes, which makes it a start for tuning them further.
  float* in_flight = nullptr;
  // [N, K]: scales come from its groups' ranges instead of the weight's, and are static.
  const ConstMatrixView* ranges = nullptr;
  std::string name = "weight";  // for messages
};

struct GptqResult {
  QuantizedMatrix matrix;  // with g_idx if act_order is kDesc and scales are in flight
  double damp = 0;         // that H needed
};

namespace detail {

// Positions [begin, end) of the order of columns, which are group `group`.
struct GptqSegment {
  int64_t begin = 0, end = 0, group = 0;
};

// The order in which columns are quantized.
struct GptqOrder {
  std::vector<int64_t> column;        // [K]: the column at each position
  std::vector<int64_t> group;         // [K]: and its group
  std::vector<GptqSegment> segments;  // groups in order; empty if they don't lie together
  std::vector<int64_t> panel_ends;    // where the blocks of columns end
};

inline GptqOrder make_gptq_order(const std::vector<double>& diagonal, const QuantScheme& scheme,
                                 const GptqOptions& options) {
  const auto cols = static_cast<int64_t>(diagonal.size());
  const int64_t length = group_length(scheme, cols), groups = group_count(scheme, cols);
  const auto larger = [&](int64_t a, int64_t b) {
    return diagonal[static_cast<size_t>(a)] > diagonal[static_cast<size_t>(b)];
  };
  GptqOrder order;
  order.column.resize(diagonal.size());
  std::iota(order.column.begin(), order.column.end(), 0);
  const auto columns_of = [&](int64_t group) {
    return std::pair(order.column.begin() + group * length,
                     order.column.begin() + std::min(cols, (group + 1) * length));
  };
  if (options.act_order == ActOrder::kDesc) {
    std::stable_sort(order.column.begin(), order.column.end(), larger);
  } else if (options.act_order == ActOrder::kGroupAware) {
    std::vector<int64_t> ranked(static_cast<size_t>(groups));
    std::iota(ranked.begin(), ranked.end(), 0);
    for (int64_t g = 0; g < groups; ++g) {
      const auto [first, last] = columns_of(g);
      std::stable_sort(first, last, larger);
    }
    std::stable_sort(ranked.begin(), ranked.end(), [&](int64_t a, int64_t b) {
      return larger(*columns_of(a).first, *columns_of(b).first);
    });
    std::vector<int64_t> columns;
    for (const int64_t g : ranked) {
      const auto [first, last] = columns_of(g);
      columns.insert(columns.end(), first, last);
    }
    order.column = std::move(columns);
  }
  // One group a row: its scale comes from the original weights in any order.
  const bool in_flight = !options.static_groups && options.ranges == nullptr && groups > 1;
  const bool regroups = in_flight && options.act_order == ActOrder::kDesc;
  order.group.resize(diagonal.size());
  for (int64_t p = 0; p < cols; ++p) {
    const auto i = static_cast<size_t>(p);
    order.group[i] = regroups ? p / length : order.column[i] / length;
    if (!in_flight) continue;
    if (order.segments.empty() || order.segments.back().group != order.group[i])
      order.segments.push_back({p, p + 1, order.group[i]});
    order.segments.back().end = p + 1;
  }
  if (!in_flight) {
    for (int64_t p = options.block_size; p < cols; p += options.block_size)
      order.panel_ends.push_back(p);
    order.panel_ends.push_back(cols);
    return order;
  }
  // A group's scale needs all its columns in flight: blocks hold whole groups.
  int64_t begin = 0;
  for (size_t s = 0; s < order.segments.size(); ++s) {
    const bool last = s + 1 == order.segments.size();
    if (last || order.segments[s + 1].end - begin > options.block_size) {
      order.panel_ends.push_back(order.segments[s].end);
      begin = order.segments[s].end;
    }
  }
  return order;
}

// The factor of H + damp in the order of columns.
template <class T>
struct GptqFactor {
  int64_t cols = 0;
  int64_t stride = 0;         // of rows: no power of two, whose rows would share few cache lines
  std::vector<T> r;           // [K, K], upper; below the diagonal: anything
  std::vector<T> inverse;     // [K]: 1 / R_jj
  std::vector<T> cross;       // [K, K], GPTAQ's T, or empty
  std::vector<float> weight;  // [K]: R_jj^2, which weighs the errors of column j
};

template <class T>
double factor_hessian(const Hessian& hessian, const std::vector<double>& diagonal,
                      const GptqOrder& order, const GptqOptions& options, GptqFactor<T>* factor,
                      int threads) {
  const int64_t cols = hessian.cols();
  const double mean =
      std::accumulate(diagonal.begin(), diagonal.end(), 0.0) / static_cast<double>(cols);
  const int64_t stride = ((cols + 15) / 16 | 1) * 16;
  std::vector<double> a(static_cast<size_t>(cols * stride));
  double damp = options.damp;
  for (;; damp += options.damp_increment) {
    parallel_for(cols, useful_threads(threads, cols * cols, kElementGrain),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t i = begin; i < end; ++i) {
                     const int64_t row = order.column[static_cast<size_t>(i)];
                     for (int64_t j = i; j < cols; ++j) {
                       a[static_cast<size_t>(i * stride + j)] =
                           hessian.at(row, order.column[static_cast<size_t>(j)]);
                     }
                     a[static_cast<size_t>(i * stride + i)] =
                         diagonal[static_cast<size_t>(row)] + damp * mean;
                   }
                 });
    // A pivot this small is nothing but rounding errors.
    const double least = static_cast<double>(cols) * 0x1p-52 * mean;
    if (linalg::factor_upper(a.data(), cols, stride, least, threads) < 0) break;
    if (damp + options.damp_increment >= 1 || options.damp_increment <= 0) {
      fail("the Hessian of '", options.name, "' is not positive definite, not even with ", damp,
           " of its mean diagonal added; it was not made of ", hessian.rows(),
           " finite inputs: calibrate again, or raise damp_percent");
    }
  }
  if (options.cross != nullptr) {
    std::vector<double> t(a.size());
    for (int64_t i = 0; i < cols; ++i) {
      for (int64_t j = 0; j < cols; ++j) {
        t[static_cast<size_t>(i * stride + j)] =
            options.gptaq_alpha * options.cross->at(order.column[static_cast<size_t>(i)],
                                                    order.column[static_cast<size_t>(j)]);
      }
    }
    linalg::solve_transposed(a.data(), cols, stride, t.data(), cols, stride, threads);
    factor->cross.assign(t.begin(), t.end());
  }
  factor->cols = cols;
  factor->stride = stride;
  factor->inverse.resize(diagonal.size());
  factor->weight.resize(diagonal.size());
  for (int64_t j = 0; j < cols; ++j) {
    const double pivot = a[static_cast<size_t>(j * stride + j)];
    factor->inverse[static_cast<size_t>(j)] = static_cast<T>(1 / pivot);
    factor->weight[static_cast<size_t>(j)] = static_cast<float>(pivot * pivot);
  }
  if constexpr (std::is_same_v<T, double>) {
    factor->r = std::move(a);
  } else {
    factor->r.assign(a.begin(), a.end());
  }
  return damp;
}

// The state of one pass over the columns.
template <class T>
struct GptqSweep {
  const QuantScheme& scheme;
  const GptqOptions& options;
  const GptqOrder& order;
  const GptqFactor<T>& factor;
  int64_t rows = 0, cols = 0, groups = 0;
  const std::vector<T>& w;                             // [N, K], in the order of columns
  std::vector<GroupParameters>* parameters = nullptr;  // [N, G], before rounding to a stored form
  std::vector<GroupCoder>* coders = nullptr;           // [N, G]; set here if scales are in flight
  std::vector<uint8_t>* codes = nullptr;               // [N, K], columns in their own places

  static constexpr int64_t kBatch = 8;  // rows that share one pass over R

  void run(bool in_flight, int threads) {
    std::vector<T> d(w.size()), moved(options.cross != nullptr ? w.size() : 0);
    int64_t begin = 0;
    for (const int64_t end : order.panel_ends) {
      const int64_t width = end - begin;
      const int64_t stride =
          (width + linalg::kRankOneStep - 1) / linalg::kRankOneStep * linalg::kRankOneStep;
      std::vector<T> sums(static_cast<size_t>(rows * stride));
      add_done(d, factor.r, begin, width, &sums, stride, threads);
      if (options.cross != nullptr)
        add_done(moved, factor.cross, begin, width, &sums, stride, threads);
      const std::vector<T> r = block_of(factor.r, begin, width, stride);
      const std::vector<T> t = options.cross != nullptr
                                   ? block_of(factor.cross, begin, width, stride)
                                   : std::vector<T>();
      const int64_t batches = (rows + kBatch - 1) / kBatch;
      parallel_for(batches, useful_threads(threads, rows * width, 4096),
                   [&](int64_t first, int64_t last) {
                     Batch batch(*this, begin, width, stride, r, t, in_flight);
                     for (int64_t b = first; b < last; ++b)
                       batch.run(b * kBatch, &sums, &d, &moved);
                   });
      begin = end;
    }
  }

 private:
  // sums [N, width] += done [N, 0:begin] factor [0:begin, begin:begin + width].
  void add_done(const std::vector<T>& done, const std::vector<T>& matrix, int64_t begin,
                int64_t width, std::vector<T>* sums, int64_t stride, int threads) const {
    linalg::multiply_add(rows, width, begin, T(1), linalg::StridedMatrix<T>{done.data(), cols, 1},
                         linalg::StridedMatrix<T>{matrix.data() + begin, factor.stride, 1},
                         sums->data(), stride, threads);
  }

  // The part of a matrix strictly above the diagonal, in the block's rows and columns.
  std::vector<T> block_of(const std::vector<T>& matrix, int64_t begin, int64_t width,
                          int64_t stride) const {
    std::vector<T> block(static_cast<size_t>(width * stride));
    for (int64_t i = 0; i < width; ++i) {
      const T* const from = matrix.data() + (begin + i) * factor.stride + begin;
      std::copy(from + i + 1, from + width, block.data() + i * stride + i + 1);
    }
    return block;
  }

  // One thread's way through a block of columns, for a few rows at a time.
  struct Batch {
    const GptqSweep& sweep;
    int64_t begin, width, stride;
    const std::vector<T>& r;
    const std::vector<T>& t;
    bool in_flight;
    linalg::TileKernel<T> kernel = linalg::tile_kernel<T>();
    size_t first_segment = 0;
    std::vector<T> ahead;
    std::vector<float> group, importance;
    WeightedSearch search;

    Batch(const GptqSweep& owner, int64_t block_begin, int64_t block_width, int64_t block_stride,
          const std::vector<T>& block_r, const std::vector<T>& block_t, bool scales_in_flight)
        : sweep(owner),
          begin(block_begin),
          width(block_width),
          stride(block_stride),
          r(block_r),
          t(block_t),
          in_flight(scales_in_flight),
          search(owner.scheme, group_length(owner.scheme, owner.cols)) {
      if (!in_flight) return;
      while (sweep.order.segments[first_segment].begin < begin) ++first_segment;
      ahead.resize(static_cast<size_t>(kBatch * stride));
      group.resize(static_cast<size_t>(kBatch * width));
      importance.resize(static_cast<size_t>(width));
    }

    // rows: [row, row + kBatch); sums [N, stride].
    void run(int64_t row, std::vector<T>* all_sums, std::vector<T>* d, std::vector<T>* moved) {
      const int64_t count = std::min(kBatch, sweep.rows - row);
      T* const sums = all_sums->data() + row * stride;
      size_t segment = first_segment;
      T error[kBatch], value[kBatch];
      for (int64_t i = 0; i < width; ++i) {
        const int64_t p = begin + i;
        const auto position = static_cast<size_t>(p);
        if (in_flight && segment < sweep.order.segments.size() &&
            sweep.order.segments[segment].begin == p) {
          choose_scales(sweep.order.segments[segment++], row, count, sums);
        }
        const int64_t column = sweep.order.column[position], g = sweep.order.group[position];
        const T inverse = sweep.factor.inverse[position];
        for (int64_t b = 0; b < count; ++b) {
          const int64_t n = row + b;
          const T original = sweep.w[static_cast<size_t>(n * sweep.cols + p)];
          value[b] = original + sums[b * stride + i] * inverse;
          const GroupCoder& coder = (*sweep.coders)[static_cast<size_t>(n * sweep.groups + g)];
          const int code = coder.encode(value[b]);
          error[b] = original - static_cast<T>(coder.value(code));
          (*sweep.codes)[static_cast<size_t>(n * sweep.cols + column)] = static_cast<uint8_t>(code);
          (*d)[static_cast<size_t>(n * sweep.cols + p)] = error[b];
          if (sweep.options.in_flight != nullptr)
            sweep.options.in_flight[n * sweep.cols + column] = static_cast<float>(value[b]);
          if (!moved->empty()) (*moved)[static_cast<size_t>(n * sweep.cols + p)] = value[b];
        }
        spread(i, stride, count, error, r, sums);
        if (!t.empty()) spread(i, stride, count, value, t, sums);
      }
      check_finite(row, count, sums);
    }

    // Sums are final once their column had its turn. One that overflows spreads to the columns
    // behind it, whose codes would mean nothing.
    void check_finite(int64_t row, int64_t count, const T* sums) const {
      constexpr T kLargest = std::numeric_limits<float>::max();
      for (int64_t b = 0; b < count; ++b) {
        const T* const original = sweep.w.data() + (row + b) * sweep.cols + begin;
        const T* const inverse = sweep.factor.inverse.data() + begin;
        bool finite = true;
        for (int64_t i = 0; i < width; ++i)
          finite &= std::fabs(original[i] + sums[b * stride + i] * inverse[i]) <= kLargest;
        if (!finite) fail_overflow(row + b);
      }
    }

    [[noreturn]] void fail_overflow(int64_t n) const {
      fail("GPTQ's corrections of '", sweep.options.name, "' overflow in row ", n,
           "; the Hessian is too ill-conditioned: raise damp_percent");
    }

    // sums[:, j] += factors block[i, j] for i < j < end.
    void spread(int64_t i, int64_t end, int64_t count, const T* factors,
                const std::vector<T>& block, T* sums) const {
      const int64_t from = (i + 1) / linalg::kRankOneStep * linalg::kRankOneStep;  // zeros up to i
      if (from >= end) return;
      kernel.rank_one(end - from, count, factors, block.data() + i * stride + from, sums + from,
                      stride);
    }

    // Scales of a group from its weights in flight.
    void choose_scales(const GptqSegment& segment, int64_t row, int64_t count, const T* sums) {
      const int64_t from = segment.begin - begin, to = segment.end - begin, length = to - from;
      const int64_t low = from / linalg::kRankOneStep * linalg::kRankOneStep;
      const int64_t high =
          (to + linalg::kRankOneStep - 1) / linalg::kRankOneStep * linalg::kRankOneStep;
      for (int64_t b = 0; b < count; ++b)
        std::copy_n(sums + b * stride + low, high - low, ahead.data() + b * stride + low);
      T difference[kBatch];
      for (int64_t i = from; i < to; ++i) {
        const auto position = static_cast<size_t>(begin + i);
        for (int64_t b = 0; b < count; ++b) {
          difference[b] =
              -ahead[static_cast<size_t>(b * stride + i)] * sweep.factor.inverse[position];
          const T original = sweep.w[static_cast<size_t>((row + b) * sweep.cols + begin + i)];
          group[static_cast<size_t>(b * length + i - from)] =
              static_cast<float>(original - difference[b]);
        }
        spread(i, high, count, difference, r, ahead.data());
      }
      const float* weights = nullptr;
      if (sweep.options.mse_range) {
        set_importance(segment);
        weights = importance.data();
      }
      for (int64_t b = 0; b < count; ++b) {
        const int64_t n = row + b;
        const float* const values = group.data() + b * length;
        const GroupRange range = range_of(values, length);
        if (!range.finite) fail_overflow(n);
        sweep.set(n, segment.group,
                  weights == nullptr ? group_parameters(sweep.scheme, range, 1.0f)
                                     : search.search(range, values, weights, length));
      }
    }

    // Relative to the largest, so that equal weights are ones.
    void set_importance(const GptqSegment& segment) {
      const float* const all = sweep.factor.weight.data();
      const float largest = *std::max_element(all + segment.begin, all + segment.end);
      for (int64_t p = segment.begin; p < segment.end; ++p)
        importance[static_cast<size_t>(p - segment.begin)] = all[p] / largest;
    }
  };

  void set(int64_t n, int64_t g, const GroupParameters& found) const {
    const auto i = static_cast<size_t>(n * groups + g);
    (*parameters)[i] = found;
    const float scale = stored_scale(scheme.scales, found.scale);
    (*coders)[i] = GroupCoder(traits_of(scheme.dtype), scale, zero_for(scheme, found, scale));
  }
};

// Scales from the original weights of whole groups, before rounding to a stored form.
inline std::vector<GroupParameters> static_parameters(const std::vector<float>& w, int64_t rows,
                                                      int64_t cols, const QuantScheme& scheme,
                                                      const std::vector<float>& importance,
                                                      int threads) {
  const int64_t length = group_length(scheme, cols), groups = group_count(scheme, cols);
  std::vector<GroupParameters> parameters(static_cast<size_t>(rows * groups));
  parallel_for(rows, useful_threads(threads, rows * cols, kElementGrain),
               [&](int64_t begin, int64_t end) {
                 WeightedSearch search(scheme, length);
                 for (int64_t n = begin; n < end; ++n) {
                   for (int64_t g = 0; g < groups; ++g) {
                     const float* const group = w.data() + n * cols + g * length;
                     const int64_t size = std::min(length, cols - g * length);
                     const GroupRange range = range_of(group, size);
                     parameters[static_cast<size_t>(n * groups + g)] =
                         importance.empty()
                             ? group_parameters(scheme, range, 1.0f)
                             : search.search(range, group, importance.data() + g * length, size);
                   }
                 }
               });
  return parameters;
}

template <class T>
void run_gptq(const std::vector<float>& weight, const Hessian& hessian,
              const std::vector<double>& diagonal, const GptqOrder& order,
              const GptqOptions& options, GptqResult* result, int threads) {
  QuantizedMatrix& matrix = result->matrix;
  const QuantScheme& scheme = matrix.scheme;
  const int64_t rows = matrix.rows, cols = matrix.cols, groups = matrix.groups();
  GptqFactor<T> factor;
  result->damp = factor_hessian(hessian, diagonal, order, options, &factor, threads);

  std::vector<T> w(weight.size());
  const int team = useful_threads(threads, rows * cols, kElementGrain);
  parallel_for(rows, team, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      for (int64_t p = 0; p < cols; ++p) {
        w[static_cast<size_t>(n * cols + p)] = static_cast<T>(
            weight[static_cast<size_t>(n * cols + order.column[static_cast<size_t>(p)])]);
      }
    }
  });

  std::vector<GroupParameters> parameters(static_cast<size_t>(rows * groups));
  std::vector<GroupCoder> coders(parameters.size());
  std::vector<uint8_t> codes(weight.size());
  GptqSweep<T> sweep{scheme, options, order,       factor,  rows,  cols,
                     groups, w,       &parameters, &coders, &codes};
  const auto store_scales = [&] {
    std::vector<float> ideal(parameters.size());
    for (size_t i = 0; i < ideal.size(); ++i) ideal[i] = parameters[i].scale;
    matrix.scales =
        ScaleTable::encode(ideal.data(), rows, groups, scheme.scales, has_signed_scales(scheme));
    for (size_t i = 0; i < ideal.size(); ++i) {
      const float scale = matrix.scales.at(static_cast<int64_t>(i));
      coders[i] = GroupCoder(matrix.dtype(), scale, zero_for(scheme, parameters[i], scale));
    }
  };
  if (order.segments.empty()) {
    std::vector<float> importance;
    if (options.mse_range) {
      importance.resize(static_cast<size_t>(cols));
      const float largest = *std::max_element(factor.weight.begin(), factor.weight.end());
      for (size_t p = 0; p < importance.size(); ++p)
        importance[static_cast<size_t>(order.column[p])] = factor.weight[p] / largest;
    }
    parameters = static_parameters(
        options.ranges == nullptr ? weight : load_weight(*options.ranges, options.name, threads),
        rows, cols, scheme, importance, threads);
    store_scales();
    sweep.run(false, threads);
  } else {
    sweep.run(true, threads);
    store_scales();
    // Double quantization looks at all scales of the matrix, so codes are chosen once more, for the
    // scales as they are stored now.
    if (scheme.scales == ScaleEncoding::kDouble) sweep.run(false, threads);
  }
  for (size_t i = 0; scheme.zeros == ZeroKind::kInt && i < coders.size(); ++i)
    matrix.zero_points.data()[i] = static_cast<uint8_t>(coders[i].zero);
  parallel_for(rows, team, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n)
      write_codes(codes.data() + n * cols, cols, matrix.dtype().bits, matrix.row(n));
  });
}

}  // namespace detail

// Quantizes weight [N, K] for the inputs that `hessian` has seen. A column whose input was always
// zero is rounded to nearest and moves nothing; if all are, the result is quantize_rtn()'s. Throws
// InvalidArgument for options out of range, matrices that don't fit each other, and a weight that
// isn't finite.
inline GptqResult quantize_gptq(const ConstMatrixView& weight, const Hessian& hessian,
                                const QuantScheme& scheme, const GptqOptions& options = {},
                                int threads = 0) {
  if (scheme.zeros == ZeroKind::kFloat)
    fail("GPTQ has no float zero points; use integer ones, or HQQ");
  check_written(scheme, "GPTQ");
  if (!(options.damp >= 0 && options.damp < 1))
    fail("damp_percent is ", options.damp, "; it must lie in [0, 1)");
  if (options.block_size < 1) fail("block_size is ", options.block_size, "; it must be positive");
  detail::check_widths(weight, hessian, options.name);
  if (options.cross != nullptr && options.cross->cols() != weight.cols) {
    fail("GPTAQ's cross moment of '", options.name, "' has ", options.cross->cols(),
         " columns, expected ", weight.cols);
  }
  if (options.ranges != nullptr &&
      (options.ranges->rows != weight.rows || options.ranges->cols != weight.cols)) {
    fail("the ranges of '", options.name, "' are [", options.ranges->rows, ", ",
         options.ranges->cols, "], expected [", weight.rows, ", ", weight.cols, "]");
  }
  GptqResult result;
  result.matrix = QuantizedMatrix::allocate(scheme, weight.rows, weight.cols);
  const std::vector<float> w = detail::load_weight(weight, options.name, threads);

  // A dead column is independent of the others; it gets the mean importance.
  std::vector<double> diagonal(static_cast<size_t>(weight.cols));
  double sum = 0;
  for (int64_t k = 0; k < weight.cols; ++k) {
    diagonal[static_cast<size_t>(k)] = hessian.at(k, k);
    sum += hessian.at(k, k);
  }
  const int64_t live = weight.cols - hessian.dead_columns();
  for (double& element : diagonal) {
    if (element == 0) element = live > 0 ? sum / static_cast<double>(live) : 1;
  }
  const detail::GptqOrder order = detail::make_gptq_order(diagonal, scheme, options);
  if (options.fp64) {
    detail::run_gptq<double>(w, hessian, diagonal, order, options, &result, threads);
  } else {
    detail::run_gptq<float>(w, hessian, diagonal, order, options, &result, threads);
  }
  if (!order.segments.empty() && options.act_order == ActOrder::kDesc) {
    result.matrix.g_idx = Buffer(weight.cols * 4);
    for (size_t p = 0; p < order.column.size(); ++p)
      result.matrix.g_idx.as<int32_t>()[order.column[p]] = static_cast<int32_t>(order.group[p]);
  }
  check_overflow(result.matrix);
  return result;
}

}  // namespace woq
