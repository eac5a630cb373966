// SPDX-License-Identifier: Apache-2.0
// Floating-point matrices that end where their allocation ends, so that a sanitizer sees the first
// byte read or written too far; and that show when a byte between or outside their rows changes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "support/random.h"
#include "woq/core/view.h"

namespace woq::testing {

inline constexpr FloatType kFloatTypes[] = {FloatType::kFp32, FloatType::kBf16, FloatType::kFp16};
inline constexpr uint8_t kCanary = 0xa5;

class FloatMatrix {
 public:
  // `gap` elements lie between rows. `offset` elements lie before the first, so that rows start at
  // addresses that are multiples of the element size only.
  FloatMatrix(FloatType type, int64_t rows, int64_t cols, int64_t gap = 0, int64_t offset = 0)
      : type_(type), rows_(rows), cols_(cols), stride_(cols + gap), offset_(offset) {
    const int64_t elements = rows > 0 ? offset + (rows - 1) * stride_ + cols : offset;
    bytes_.assign(static_cast<size_t>(elements * size_of(type)), kCanary);
  }

  FloatType type() const { return type_; }
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  const std::vector<uint8_t>& bytes() const { return bytes_; }

  MatrixView view() { return {at(0, 0), type_, rows_, cols_, stride_}; }
  ConstMatrixView view() const { return {at(0, 0), type_, rows_, cols_, stride_}; }

  void set(int64_t r, int64_t c, float value) { store_floats(&value, type_, 1, at(r, c)); }
  float get(int64_t r, int64_t c) const {
    float value = 0;
    load_floats(at(r, c), type_, 1, &value);
    return value;
  }
  uint32_t bits(int64_t r, int64_t c) const {
    uint32_t bits = 0;
    std::memcpy(&bits, at(r, c), static_cast<size_t>(size_of(type_)));
    return bits;
  }

  // Row r as fp32.
  std::vector<float> row(int64_t r) const {
    std::vector<float> values(static_cast<size_t>(cols_));
    if (cols_ > 0) load_floats(at(r, 0), type_, cols_, values.data());
    return values;
  }

  // "" if every byte outside rows [r0, r1) x columns [c0, c1) still has the canary's value.
  std::string changed_outside(int64_t r0, int64_t r1, int64_t c0, int64_t c1) const {
    std::vector<uint8_t> expected(bytes_.size(), kCanary);
    for (int64_t r = r0; r < r1; ++r) {
      const int64_t begin = (offset_ + r * stride_ + c0) * size_of(type_);
      std::copy_n(bytes_.begin() + begin, (c1 - c0) * size_of(type_), expected.begin() + begin);
    }
    for (size_t i = 0; i < expected.size(); ++i) {
      if (bytes_[i] == expected[i]) continue;
      const int64_t element = static_cast<int64_t>(i) / size_of(type_) - offset_;
      return "element " + std::to_string(element) + " of a matrix with row stride " +
             std::to_string(stride_) + " was written";
    }
    return {};
  }

 private:
  void* at(int64_t r, int64_t c) {
    return bytes_.data() + (offset_ + r * stride_ + c) * size_of(type_);
  }
  const void* at(int64_t r, int64_t c) const {
    return bytes_.data() + (offset_ + r * stride_ + c) * size_of(type_);
  }

  FloatType type_;
  int64_t rows_, cols_, stride_, offset_;
  std::vector<uint8_t> bytes_;
};

// Activations as they are in a transformer: normal, with one value in 64 twenty times larger.
inline void fill_activations(Random& random, FloatMatrix* x) {
  for (int64_t r = 0; r < x->rows(); ++r) {
    for (int64_t c = 0; c < x->cols(); ++c) {
      x->set(r, c, random.normal() * (random.below(64) == 0 ? 20.0f : 1.0f));
    }
  }
}

inline std::vector<float> normal_weights(Random& random, int64_t rows, int64_t cols,
                                         float deviation = 0.02f) {
  std::vector<float> weights(static_cast<size_t>(rows * cols));
  for (float& w : weights) w = random.normal() * deviation;
  return weights;
}

}  // namespace woq::testing
