// SPDX-License-Identifier: Apache-2.0
// What a kernel is: plain data and two pure functions. Kernels allocate nothing, know nothing of
// threads and compute a portion C[m0:m1, tiles t0:t1] of
//     C [M, N] = act(X) [M, K] W^T [K, N] + bias [N] + residual [M, N], or
//     C [M, N] = silu(act(X) W^T + bias) * up [M, N] + residual
// from prepared activations and a PackedMatrix.
//
// Every kernel computes, for each row m of X and each row n of W, over the blocks b of K (see
// BlockGeometry; g is the group of b):
//     P = sum over k in b of t(n, k) * a(m, k)
//     P = P - z(n, g) * sum over k in b of a(m, k)
//     C = C + P * scale
//     C = C + minimum(n, g) * A
// with
//     a      prepared activation
//     t      centred integer of the code, or its value in the dtype's table
//     z      zero point minus centre, minus the centre where W has minima; the second line is left
//            out when W has neither
//     A      sum over k in b of a(m, k), in int8 times s_a(m, b); the fourth line is left out when
//            W has no minima
//     scale  s(n, g) in fp32 and bf16, s(n, g) * (s_a(m, b) * unit) in int8
//
// int8 results are bit-identical on every target. The first line is an integer sum: |t| <= 255,
// |a| <= 127 and blocks of at most 128 keep it below 2^24, and with integer zero points the second
// line too, so that fp32 holds both exactly. The third line is one rounded product and one fused
// multiply-add, in the order of b. fp32 and bf16 results differ between targets by the order of
// additions within a block, but not by the portion that a thread computes. Of weights with minima
// the second line gives the sum of code * a, from which int8 kernels start at once.
//
// The kernels of target onednn instead multiply dequantized weights, where C has kDequantizedRows
// and more:
//     C = C + sum over k of w(n, k) * a(m, k)
//     w = (t - z) * s + minimum
// The difference, the product and the sum in w are each rounded to fp32, and for bf16 the result to
// bfloat16 as well. The products are accumulated in fp32, in an order that oneDNN chooses. These
// kernels keep scratch memory for each thread, which the first call allocates. What is compared
// with kDequantizedRows is the number of rows of C, not of the portion, so that the number of
// threads does not change which weights are multiplied.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string_view>

#include "woq/core/check.h"
#include "woq/core/dtype.h"
#include "woq/core/view.h"
#include "woq/pack/packed_matrix.h"
#include "woq/simd/target.h"

namespace woq::kernels {

// fp32: weights dequantized and accumulated in fp32. bf16: activations and code values rounded to
// bfloat16, products accumulated in fp32, scales applied in fp32. int8: activations quantized to 8
// bits at run time.
enum class ComputeType : uint8_t { kFp32, kBf16, kInt8 };
inline constexpr const char* kComputeTypeNames[] = {"fp32", "bf16", "int8"};

inline const char* name_of(ComputeType compute) {
  return kComputeTypeNames[static_cast<int>(compute)];
}

// Rows of C from which panels of weights are dequantized. At 16 they reach 0.7 to 0.96 of our own
// kernels' speed (docs/performance.md), below that less and less.
inline constexpr int64_t kDequantizedRows = 16;

// A compute type, or none: then the fastest one is taken whose own error is small beside that of
// the quantized weight (choose_compute in select.h).
class ComputeRequest {
 public:
  ComputeRequest(ComputeType compute) : automatic_(false), compute_(compute) {}
  static ComputeRequest automatic() { return ComputeRequest(); }

  bool is_automatic() const { return automatic_; }
  ComputeType compute() const { return compute_; }
  const char* name() const { return automatic_ ? "auto" : name_of(compute_); }

 private:
  ComputeRequest() = default;

  bool automatic_ = true;
  ComputeType compute_ = ComputeType::kFp32;
};

inline ComputeRequest parse_compute_request(std::string_view text) {
  if (text == "auto") return ComputeRequest::automatic();
  for (int i = 0; i < 3; ++i) {
    if (text == kComputeTypeNames[i]) return static_cast<ComputeType>(i);
  }
  fail("unknown compute dtype '", text, "'; known: fp32, bf16, int8, auto");
}

// What kernels distinguish in a weight once a step is loaded: integers of up to 4 bits, look-ups in
// a table by up to 4 bits, integers of 5 to 8 bits.
enum class WeightKind : uint8_t { kU4, kT4, kU8 };
inline constexpr const char* kWeightKindNames[] = {"u4", "t4", "u8"};

constexpr WeightKind kind_of(const DtypeTraits& dtype) {
  return dtype.bits > 4 ? WeightKind::kU8 : dtype.is_integer() ? WeightKind::kU4 : WeightKind::kT4;
}

// How activations are laid out for a kernel; rows start at multiples of 64 bytes and are 0 past K.
//   kF32   fp32
//   kF32B  fp32 numbers that bfloat16 holds
//   kBf16  bfloat16, each 8 elements in the order 0 2 4 6 1 3 5 7: one shift of packed codes yields
//          pairs in that order
//   kS8    int8
enum class ActFormat : uint8_t { kF32, kF32B, kBf16, kS8 };

// Blocks of K: each group, cut into pieces of at most 128 elements. 128 bounds the int8 sums
// (above) and keeps the activation scale of a long group local: with one scale per row of K = 4096
// the quantization error of activations grows several-fold.
inline constexpr int64_t kBlock = 128;

struct BlockGeometry {
  int64_t cols = 0, padded_cols = 0, group_length = 0, groups = 0;
  float unit = 1.0f;  // of the 8-bit image of a codebook's values; 1 for integers
  bool has_minima = false;
  int center = 0;  // of W's codes; 0 for a codebook

  explicit BlockGeometry(const PackedMatrix& weights)
      : cols(weights.cols),
        padded_cols(weights.padded_cols()),
        group_length(weights.group_length()),
        groups(weights.groups()),
        has_minima(weights.scheme.zeros == ZeroKind::kMin),
        center(weights.dtype().center()) {
    const DtypeTraits& dtype = weights.dtype();
    if (!dtype.is_integer()) unit = dtype.codebook->image_unit;
  }

  // Groups start at multiples of 8; the last one ends at the padded K.
  int64_t group_end(int64_t g) const {
    return g + 1 == groups ? padded_cols : (g + 1) * group_length;
  }
  int64_t blocks() const {
    const int64_t per_group = (group_length + kBlock - 1) / kBlock;
    const int64_t last = padded_cols - (groups - 1) * group_length;
    return (groups - 1) * per_group + (last + kBlock - 1) / kBlock;
  }
};

// Symmetric, round to nearest even, -127..127: the one definition of activation quantization. A
// block whose largest magnitude is below kTinyActivation counts as zeros (its reciprocal would
// overflow); a block with a NaN or infinity gets the scale NaN, so that the result shows it.
inline constexpr float kActivationMax = 127.0f;
inline constexpr float kTinyActivation = 1e-36f;

// Rows of prepared activations.
struct PreparedActivations {
  int64_t row_bytes = 0;
  uint8_t* data = nullptr;  // [M] rows in the kernel's ActFormat
  // [M, blocks]: sum of the prepared values of a block; for weights with minima A, see above.
  float* sums = nullptr;
  // kS8 only:
  float* scales = nullptr;    // [M, blocks]: s_a * unit
  int32_t* starts = nullptr;  // [M, blocks]: what a kernel's integer sums of a block start from
  int64_t blocks = 0;
};

constexpr int64_t element_bytes(ActFormat format) {
  return format == ActFormat::kS8 ? 1 : format == ActFormat::kBf16 ? 2 : 4;
}

// 16 elements of slack let vector stores run past the last block of a row.
constexpr int64_t prepared_row_bytes(ActFormat format, int64_t padded_cols) {
  return round_up((padded_cols + 16) * element_bytes(format), Buffer::kAlignment);
}

struct PrepareTask {
  ConstMatrixView x;  // [M, K]
  BlockGeometry geometry;
  PreparedActivations out;
  int64_t m0 = 0, m1 = 0;
  // PackedMatrix's input_order and act_scales, nullptr for none: element i of a row is prepared
  // from x[order[i]] * scales[i], one rounded product.
  const int32_t* order = nullptr;
  const float* scales = nullptr;
};

struct GemmTask {
  const PackedMatrix* weights = nullptr;
  PreparedActivations a;
  const float* bias = nullptr;  // [tiles * 16] or nullptr
  ConstMatrixView up;           // [M, N], data nullptr for none; may be C's memory
  ConstMatrixView residual;     // [M, N], added after the bias; data nullptr for none
  MatrixView c;                 // [M, N]; may be the residual's memory
  int64_t m0 = 0, m1 = 0;       // rows of C
  int64_t t0 = 0, t1 = 0;       // tiles of 16 columns of C
};

// The name is gemm_<activations>_<weights>_<rows>x<columns>_<target>: the largest register tile.
struct Kernel {
  const char* name;
  Target target;
  ComputeType compute;
  WeightKind weights;
  ActFormat format;
  void (*prepare)(const PrepareTask& task);
  void (*run)(const GemmTask& task);
};

struct KernelTable {
  const Kernel* begin = nullptr;
  int size = 0;
};

}  // namespace woq::kernels

// What a user of WeightOnlyLinear meets.
namespace woq {

using kernels::ComputeRequest;
using kernels::ComputeType;
using kernels::kComputeTypeNames;
using kernels::Kernel;
using kernels::parse_compute_request;

}  // namespace woq
