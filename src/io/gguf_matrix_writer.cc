// SPDX-License-Identifier: Apache-2.0
#include "woq/io/gguf_matrix_writer.h"

#include <cmath>
#include <cstring>
#include <string_view>

#include "woq/core/check.h"
#include "woq/core/code_row.h"
#include "woq/core/float16.h"
#include "woq/io/foreign_writers.h"

namespace woq::io {

namespace {

constexpr int64_t kBlock = 32;

enum class Kind : uint8_t { kQ4_0, kQ4_1, kQ8_0, kIq4Nl };

Kind kind_of(const GgufType& type) {
  const std::string_view name = type.name;
  if (name == "Q4_0") return Kind::kQ4_0;
  if (name == "Q4_1") return Kind::kQ4_1;
  if (name == "Q8_0") return Kind::kQ8_0;
  if (name == "IQ4_NL") return Kind::kIq4Nl;
  fail<Unsupported>("GGUF tensors of type ", name,
                    " are not written; known: Q4_0, Q4_1, Q8_0, IQ4_NL");
}

void check_codes(const QuantizedMatrix& matrix, Kind kind, const char* name) {
  const DtypeTraits& dtype = matrix.dtype();
  const int bits = kind == Kind::kQ8_0 ? 8 : 4;
  const bool fits = kind == Kind::kIq4Nl ? matrix.scheme.dtype == WeightDtype::kIq4Nl
                                         : dtype.is_integer() && dtype.bits == bits;
  if (!fits) {
    fail<Unsupported>("its dtype is ", dtype.name, ", and ", name, " has ",
                      kind == Kind::kIq4Nl ? "iq4_nl"
                      : bits == 8          ? "int8"
                                           : "int4");
  }
  const ZeroKind zeros = matrix.scheme.zeros;
  const bool asym = kind == Kind::kQ4_1;
  if (asym ? zeros != ZeroKind::kInt && zeros != ZeroKind::kMin : zeros != ZeroKind::kNone) {
    fail<Unsupported>("its zeros are of the kind '", name_of(zeros), "', and ", name,
                      asym ? " is for integer zero points and minima" : " is symmetric");
  }
}

void check_shape(const QuantizedMatrix& matrix, const char* name) {
  if (matrix.act_scales.size() > 0)
    fail<Unsupported>("its input is multiplied by act_scales, for which ", name, " has no place");
  if (has_act_order(matrix))
    fail<Unsupported>("its columns are in act-order, for which ", name, " has no place");
  if (matrix.cols % kBlock != 0 || matrix.group_length() % kBlock != 0) {
    fail<Unsupported>("its rows of ", matrix.cols, " columns in groups of ", matrix.group_length(),
                      " are no blocks of ", kBlock, ", as ", name, " has");
  }
}

// The bytes of a float16 that is exactly `value`.
void store_exact(float value, const char* what, const char* name, uint8_t* out) {
  const uint16_t half = float_to_fp16(value);
  if (fp16_to_float(half) != value) {
    fail<Unsupported>("its ", what, " ", value, " is not exact in float16, which ", name,
                      " stores it in");
  }
  std::memcpy(out, &half, sizeof half);
}

// What is added after scaling.
float minimum_of(const QuantizedMatrix& matrix, int64_t n, int64_t g) {
  if (matrix.scheme.zeros == ZeroKind::kMin) return matrix.minima.at(n, g);
  return -matrix.zero_point(n, g) * matrix.scales.at(n, g);
}

// A block of codes: the first half in the low nibbles, the second in the high ones.
void join_nibbles(const uint8_t* codes, uint8_t* out) {
  for (int64_t i = 0; i < kBlock / 2; ++i)
    out[i] = static_cast<uint8_t>(codes[i] | codes[kBlock / 2 + i] << 4);
}

}  // namespace

Buffer write_gguf_matrix(const QuantizedMatrix& matrix, const GgufType& type) {
  const Kind kind = kind_of(type);
  check_codes(matrix, kind, type.name);
  check_shape(matrix, type.name);
  const int64_t blocks = matrix.cols / kBlock, length = matrix.group_length();
  Buffer bytes(matrix.rows * blocks * type.block_bytes);
  uint8_t* out = bytes.data();
  for (int64_t n = 0; n < matrix.rows; ++n) {
    for (int64_t b = 0; b < blocks; ++b, out += type.block_bytes) {
      const int64_t g = b * kBlock / length;
      uint8_t codes[kBlock];
      read_codes(matrix.row(n), b * kBlock, (b + 1) * kBlock, matrix.dtype().bits, codes);
      store_exact(matrix.scales.at(n, g), "scale", type.name, out);
      if (kind == Kind::kQ8_0) {
        for (int64_t i = 0; i < kBlock; ++i)
          out[2 + i] = static_cast<uint8_t>(codes[i] ^ 0x80);  // less 128, signed
        continue;
      }
      if (kind == Kind::kQ4_1) store_exact(minimum_of(matrix, n, g), "minimum", type.name, out + 2);
      join_nibbles(codes, out + (kind == Kind::kQ4_1 ? 4 : 2));
    }
  }
  return bytes;
}

}  // namespace woq::io
