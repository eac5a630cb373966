// SPDX-License-Identifier: Apache-2.0
#include "woq/io/gguf_matrix_writer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "gguf_blocks.h"
#include "woq/core/check.h"
#include "woq/core/code_row.h"
#include "woq/core/float16.h"
#include "woq/core/parallel.h"
#include "woq/io/foreign_writers.h"

namespace woq::io {

namespace {

// Why a type does not hold a matrix. Of all types' reasons, that of the latest check is the one to
// tell: the type came nearest.
struct Mismatch {
  int check = 0;  // 0: it does hold it
  std::string reason;
};

const GgufType& type_of(const GgufForm& form) {
  return *std::find_if(std::begin(kGgufTypes), std::end(kGgufTypes), [&](const GgufType& type) {
    return std::string_view(type.name) == form.name;
  });
}

bool holds_dtype(const GgufForm& form, const DtypeTraits& dtype) {
  const DtypeTraits& own = traits_of(form.dtype);
  if (!own.is_integer()) return dtype.dtype == form.dtype;
  return dtype.is_integer() && dtype.bits <= own.bits;
}

// Zero points become minima, where a type has those.
bool holds_zeros(const GgufForm& form, ZeroKind zeros) {
  const bool one_level = traits_of(form.scales).form == ScaleForm::kEach;
  return zeros == form.zeros ||
         (form.zeros == ZeroKind::kMin && one_level && zeros == ZeroKind::kInt);
}

// Any scales, each by itself, may turn out to be float16 numbers; others stay what they are.
bool holds_encoding(const GgufForm& form, const QuantizedMatrix& matrix) {
  if (traits_of(form.scales).form != ScaleForm::kEach)
    return matrix.scheme.scales == form.scales && matrix.group_length() == form.group_size;
  const ScaleForm scales = traits_of(matrix.scheme.scales).form;
  return scales == ScaleForm::kEach || scales == ScaleForm::kDouble;
}

// Types with one scale a block that the hub holds as others do have more room for codes than for
// values; those with a zero point have one for all.
bool holds_codes(const GgufForm& form, const QuantizedMatrix& matrix) {
  if (form.least_code == 0 && form.zeros != ZeroKind::kInt) return true;
  const int64_t points = matrix.zero_points.size();
  if (form.zeros == ZeroKind::kInt &&
      std::any_of(matrix.zero_points.data(), matrix.zero_points.data() + points,
                  [](uint8_t zero) { return zero != kTernaryZero; }))
    return false;
  bool fit = true;
  for (int64_t n = 0; n < matrix.rows && fit; ++n) {
    for_each_code(matrix.row(n), 0, matrix.cols, matrix.dtype().bits, [&](int64_t, int code) {
      fit = fit && code >= form.least_code && (code - form.least_code) % form.code_step == 0;
    });
  }
  return fit;
}

Mismatch mismatch(const GgufForm& form, const QuantizedMatrix& matrix) {
  const QuantScheme& scheme = matrix.scheme;
  const GgufType& type = type_of(form);
  const char* const name = form.name;
  if (!holds_dtype(form, matrix.dtype())) {
    return {1, concat("its dtype is ", matrix.dtype().name, ", and ", name, " has ",
                      traits_of(form.dtype).name)};
  }
  if (!holds_zeros(form, scheme.zeros)) {
    const bool zero_points = holds_zeros(form, ZeroKind::kInt);
    return {2, concat("its zeros are of the kind '", name_of(scheme.zeros), "', and ", name,
                      zero_points                     ? " is for integer zero points and minima"
                      : form.zeros == ZeroKind::kNone ? " is symmetric: quantize with scheme='sym'"
                                                      : " has minima of its own")};
  }
  if (matrix.act_scales.size() > 0) {
    return {5, concat("its input is multiplied by act_scales, for which GGUF has no place: "
                      "quantize with an algorithm that makes none (RTN, GPTQ, HQQ, AutoRound)")};
  }
  if (has_act_order(matrix)) {
    return {5,
            "its columns are in act-order, for which GGUF has no place: quantize with "
            "act_order=False"};
  }
  if (!holds_encoding(form, matrix)) {
    return {3, concat("its scales are ", name_of(scheme.scales), " in groups of ",
                      matrix.group_length(), ", and ", name, " has ", name_of(form.scales),
                      " in groups of ", form.group_size)};
  }
  if (matrix.cols % type.block_elements != 0 || (matrix.group_length() % form.group_size != 0)) {
    return {4, concat("its rows of ", matrix.cols, " columns in groups of ", matrix.group_length(),
                      " are no blocks of ", type.block_elements, ", as ", name,
                      " has: quantize with group_size=32, or leave it in floating point "
                      "(modules_to_not_convert)")};
  }
  if (!holds_codes(form, matrix)) return {4, concat("it has codes that ", name, " has not")};
  return {};
}

// Fills the scales and minima of a block [32, 64, ... columns] of row n that begins at column k.
class BlockReader {
 public:
  BlockReader(const QuantizedMatrix& matrix, const GgufForm& form, bool round_scales)
      : matrix_(matrix),
        form_(form),
        type_(type_of(form)),
        round_(round_scales),
        shift_(form.zeros == ZeroKind::kNone && matrix.dtype().is_integer()
                   ? traits_of(form.dtype).center() - matrix.dtype().center()
                   : 0) {}

  void read(int64_t n, int64_t b, GgufBlock* block) const {
    const int64_t k = b * type_.block_elements;
    read_codes(matrix_.row(n), k, k + type_.block_elements, matrix_.dtype().bits, block->codes);
    for (int64_t i = 0; i < type_.block_elements && shift_ > 0; ++i)
      block->codes[i] = static_cast<uint8_t>(block->codes[i] + shift_);
    switch (traits_of(form_.scales).form) {
      case ScaleForm::kEach: return read_one(n, k / matrix_.group_length(), block);
      case ScaleForm::kTwoLevel: return read_two_level(n, b, block);
      case ScaleForm::kFactored: return read_factored(n, b, block);
      case ScaleForm::kDouble: break;  // no type of GGUF has it
    }
  }

 private:
  void read_one(int64_t n, int64_t g, GgufBlock* block) const {
    const float scale = store(matrix_.scales.at(n, g), "scale", block->scales);
    if (form_.zeros != ZeroKind::kMin) return;
    const float minimum = matrix_.scheme.zeros == ZeroKind::kMin
                              ? matrix_.minima.at(n, g)
                              : -matrix_.zero_point(n, g) * scale;
    store(minimum, "minimum", block->minima);
  }

  // The float16 of a value; returns what it stands for.
  float store(float value, const char* what, uint8_t* out) const {
    const uint16_t half = float_to_fp16(value);
    const float stored = fp16_to_float(half);
    if (!std::isfinite(stored))
      fail<Unsupported>("its ", what, " ", value, " is too large for float16, in which ",
                        form_.name, " has it");
    if (stored != value && !round_) {
      fail<Unsupported>("its ", what, " ", value, " is not exact in float16, in which ", form_.name,
                        " has it: quantize with scale_dtype='fp16', or have scales "
                        "rounded (round_scales)");
    }
    std::memcpy(out, &half, sizeof half);
    return stored;
  }

  void read_two_level(int64_t n, int64_t b, GgufBlock* block) const {
    copy_sub_scales(matrix_.scales, n, b, block->scales, block->super);
    if (form_.zeros == ZeroKind::kMin)
      copy_sub_scales(matrix_.minima, n, b, block->minima, block->minimum_super);
  }

  void copy_sub_scales(const ScaleTable& table, int64_t n, int64_t b, uint8_t* subs,
                       uint8_t* super) const {
    const int64_t groups = type_.block_elements / form_.group_size;
    std::memcpy(subs, table.values.data() + n * table.groups + b * groups,
                static_cast<size_t>(groups));
    std::memcpy(super, table.supers.data() + (n * table.super_groups() + b) * 2, 2);
    for (int64_t j = 0; j < groups; ++j) {
      const int sub = static_cast<int8_t>(subs[j]);
      if (sub < form_.least_sub_scale || sub > form_.largest_sub_scale) {
        fail<Unsupported>("a sub-scale is ", sub, ", and ", form_.name, " has ",
                          form_.least_sub_scale, " to ", form_.largest_sub_scale);
      }
    }
  }

  void read_factored(int64_t n, int64_t b, GgufBlock* block) const {
    const ScaleTable& table = matrix_.scales;
    if (table.factor.multiplier != 1.0f || table.factor.divisor != 1.0f) {
      fail<Unsupported>("its scales have a factor of the whole matrix, ", table.factor.multiplier,
                        " / ", table.factor.divisor, ", for which ", form_.name, " has no place");
    }
    const int64_t groups = type_.block_elements / form_.group_size;
    const uint8_t* const scales = table.values.data() + n * table.groups + b * groups;
    for (int64_t j = 0; j < groups; ++j) {
      if (form_.scales == ScaleEncoding::kE4M3 && scales[j] > 127)
        fail<Unsupported>("a scale is negative, and those of ", form_.name, " have no sign");
    }
    std::memcpy(block->scales, scales, static_cast<size_t>(groups));
  }

  const QuantizedMatrix& matrix_;
  const GgufForm& form_;
  const GgufType& type_;
  const bool round_;
  const int shift_;  // from the matrix's codes to the type's
};

}  // namespace

const GgufType& gguf_type_for(const QuantizedMatrix& matrix) {
  Mismatch nearest;
  for (const bool same_bits : {true, false}) {
    for (const GgufForm& form : kGgufForms) {
      if ((traits_of(form.dtype).bits == matrix.dtype().bits) != same_bits) continue;
      const Mismatch found = mismatch(form, matrix);
      if (found.check == 0) return type_of(form);
      if (found.check > nearest.check) nearest = found;
    }
  }
  if (nearest.check > 1) fail<Unsupported>(nearest.reason);
  fail<Unsupported>("its dtype is ", matrix.dtype().name,
                    ", and GGUF has no type for that: quantize with weight_dtype 'int4', 'int8', "
                    "'int5' or 'iq4_nl', group_size=32 and scale_dtype='fp16'");
}

Buffer write_gguf_matrix(const QuantizedMatrix& matrix, const GgufType& type, bool round_scales,
                         int threads) {
  const GgufForm* const form = gguf_form(type);
  if (form == nullptr) {
    std::string known;
    for (const GgufForm& each : kGgufForms) known += concat(known.empty() ? "" : ", ", each.name);
    fail<Unsupported>("GGUF tensors of type ", type.name, " are not written; known: ", known);
  }
  const Mismatch found = mismatch(*form, matrix);
  if (found.check != 0) fail<Unsupported>(found.reason);
  const BlockReader reader(matrix, *form, round_scales);
  const int64_t blocks = matrix.cols / type.block_elements;
  Buffer bytes(matrix.rows * blocks * type.block_bytes);
  parallel_for(matrix.rows, useful_threads(threads, matrix.rows * matrix.cols, kElementGrain),
               [&](int64_t begin, int64_t end) {
                 GgufBlock block;
                 uint8_t* out = bytes.data() + begin * blocks * type.block_bytes;
                 for (int64_t n = begin; n < end; ++n) {
                   for (int64_t b = 0; b < blocks; ++b, out += type.block_bytes) {
                     reader.read(n, b, &block);
                     form->encode(block, out);
                   }
                 }
               });
  return bytes;
}

}  // namespace woq::io
