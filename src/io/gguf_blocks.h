// SPDX-License-Identifier: Apache-2.0
// The blocks of GGUF's quantized tensors, and how the hub holds each type: the table that the
// reader (gguf_matrix.cc) and the writer (gguf_matrix_writer.cc) share. Every layout stands once,
// taken apart and put together side by side.
#pragma once

#include <cstdint>

#include "woq/io/gguf.h"
#include "woq/quant/quantized_matrix.h"

namespace woq::io {

constexpr int64_t kMostElements = 256;  // of a block
constexpr int64_t kMostGroups = 16;

// A block, taken apart. Scales and minima are bytes in the encoding that the hub stores.
struct GgufBlock {
  uint8_t codes[kMostElements];
  uint8_t scales[kMostGroups * 2], minima[kMostGroups * 2];
  uint8_t super[2], minimum_super[2];  // fp16, what they are multiplied by
};

// How the hub holds a type.
struct GgufForm {
  const char* name;  // kGgufTypes has its sizes
  WeightDtype dtype;
  int64_t group_size;
  ZeroKind zeros;
  ScaleEncoding scales;
  void (*decode)(const uint8_t* in, GgufBlock* out);
  // The inverse. It looks at the block's codes and scales only, which writers have checked.
  void (*encode)(const GgufBlock& in, uint8_t* out);
  // The numbers that a block has room for, where it has not for all that the hub's types hold: sub-
  // scales of two-level scales, and codes.
  int least_sub_scale = -128, largest_sub_scale = 127;
  int least_code = 0, code_step = 1;
};

// The zero point of the types with ZeroKind::kInt.
constexpr uint8_t kTernaryZero = 1;

// All of them: exactly those that run packed.
extern const GgufForm kGgufForms[18];

// The row of a type, or nullptr for one that the hub does not hold.
const GgufForm* gguf_form(const GgufType& type);

}  // namespace woq::io
