// SPDX-License-Identifier: Apache-2.0
// The loop nests, written once: kernel.h's formulas on a register tile of kRows rows of X by kTiles
// tiles of 16 rows of W, over the ISA vocabulary. A policy says how one step (8 elements of K) of a
// tile is unpacked and multiplied.

// The register tiles of many rows, rows x tiles of 16 columns, how kernel names show them, and
// WOQ_REGISTER_SUMS, the outputs (rows x tiles) whose results fit registers beside a block's sums.
// 512 bits, 32 registers, a tile of 16 columns is one. Floats: 8 x 2 = 16 sums and a few operands;
// results go through memory once a block. int8 multiplies four times as fast, so that a block of 32
// is over after 8 instructions for each sum: 4 x 3 = 12 sums, and their 12 results stay in
// registers. 256 bits, 16 registers, a tile is two: 4 x 1 = 8 sums where a weight takes two
// registers and more, 6 x 1 = 12 where it takes one.
#undef WOQ_INT8_ROWS
#undef WOQ_INT8_TILES
#undef WOQ_INT8_NAME
#undef WOQ_FLOAT_ROWS
#undef WOQ_FLOAT_TILES
#undef WOQ_FLOAT_NAME
#undef WOQ_REGISTER_SUMS
#if WOQ_VECTOR_BITS == 512
#define WOQ_INT8_ROWS 4
#define WOQ_INT8_TILES 3
#define WOQ_INT8_NAME "4x48"
#define WOQ_FLOAT_ROWS 8
#define WOQ_FLOAT_TILES 2
#define WOQ_FLOAT_NAME "8x32"
#define WOQ_REGISTER_SUMS 12
#else
#define WOQ_INT8_ROWS 4
#define WOQ_INT8_TILES 1
#define WOQ_INT8_NAME "4x16"
#define WOQ_FLOAT_ROWS 6
#define WOQ_FLOAT_TILES 1
#define WOQ_FLOAT_NAME "6x16"
#define WOQ_REGISTER_SUMS 2
#endif

namespace woq::WOQ_TARGET_NS {

// Sums of one block, kChains partial ones per output: few outputs alone cannot fill the
// multipliers' latency (4 to 6 cycles, one or two results a cycle).
template <class Acc, int kRows, int kTiles, int kChains>
struct Accumulators {
  Acc v[kRows][kTiles][kChains];
};

constexpr int chains_for(int outputs, int wanted) {
  return outputs >= wanted ? 1 : outputs * 2 >= wanted ? 2 : 4;
}

inline constexpr int64_t kCacheLine = 64;

// Value of a 4-bit code of a step at scale 1, as load_step leaves it.
inline float step_value4(const DtypeTraits& dtype, int code) {
  return dtype.is_integer() ? static_cast<float>(code - 8) : code_value(dtype, code);
}

// The codes of a step: one register of 4-bit codes, two of 8-bit ones (elements 0-3 and 4-7).
// Integers of other widths are moved to the centre of these, 8 or 128.
struct StepCodes {
  I32 first, second;
};
template <WeightKind kWeights>
WOQ_INLINE StepCodes load_step(const uint8_t* p, int bits) {
  if constexpr (kWeights == WeightKind::kU8) {
    const I32 codes = load_codes(p);
    if (bits == 8) return {codes, load_codes(p + kStepBytes4)};
    const I32 excess = set_bytes(128 - (1 << (bits - 1)));
    StepCodes step = {or_i32(low_nibbles(codes), excess), or_i32(high_nibbles(codes), excess)};
    p += kStepBytes4;
    for (int bit = 4; bit < bits; ++bit, p += kPlaneBytes) {
      step.first = add_where(step.first, p, 1 << bit);
      step.second = add_where(step.second, p + kPlaneBytes / 2, 1 << bit);
    }
    return step;
  } else if (bits == 4) {
    const I32 codes = load_codes(p);
    return {codes, codes};
  } else {
    constexpr bool kInteger = kWeights == WeightKind::kU4;
    I32 codes = set_bytes(kInteger ? (8 - (1 << (bits - 1))) * 0x11 : 0);
    for (int bit = 0; bit < bits; ++bit, p += kPlaneBytes) {
      codes = add_where(codes, p, 1 << bit);
      codes = add_where(codes, p + kPlaneBytes / 2, 16 << bit);
    }
    return {codes, codes};
  }
}

// A policy takes a step apart into kOperands operands; operand i meets the i-th part of the step's
// activations, which is broadcast to all lanes:
//   Table(policy), operand<i>(table, codes), activation(p), multiply(acc, operand, activation)

// fp32 activations; kFormat kF32B: activations and table hold bfloat16 values.
template <WeightKind kWeights, ActFormat kFormat>
struct FloatPolicy {
  using Acc = F32;
  using Operand = F32;
  static constexpr WeightKind kKind = kWeights;
  static constexpr bool kInteger = false;
  static constexpr int kOperands = 8, kRows = WOQ_FLOAT_ROWS, kTiles = WOQ_FLOAT_TILES;
  static constexpr int64_t kActBytes = 4 * kStep;
  static constexpr int chains(int outputs) { return chains_for(outputs, WOQ_VECTOR_BITS / 64); }

  alignas(64) float values[16] = {};

  explicit FloatPolicy(const DtypeTraits& dtype) {
    for (int code = 0; code < 16 && kWeights != WeightKind::kU8; ++code) {
      values[code] = step_value4(dtype, code);
      if (kFormat == ActFormat::kF32B) values[code] = woq::round_to_bf16(values[code]);
    }
  }

  struct Table {
    FloatTable values;
    explicit Table(const FloatPolicy& policy) : values(policy.values) {}
  };

  template <int kElement>
  static WOQ_INLINE F32 operand(const Table& table, const StepCodes& codes) {
    if constexpr (kWeights == WeightKind::kU8) {
      return centred_byte<kElement % 4>(kElement < 4 ? codes.first : codes.second);
    } else if constexpr (kWeights == WeightKind::kU4) {
      return integer_nibble<kElement>(table.values, codes.first);
    } else {
      return look_up<kElement>(table.values, codes.first);
    }
  }
  static WOQ_INLINE F32 activation(const uint8_t* p) {
    float x;
    std::memcpy(&x, p, sizeof x);
    return set_f32(x);
  }
  static WOQ_INLINE void multiply_add(F32& acc, const F32& w, const F32& a) {
    acc = fused_add(w, a, acc);
  }
};

// int8 activations. t is stored as an unsigned byte with an excess, which the accumulator's start
// takes back.
template <WeightKind kWeights>
struct Int8Policy {
  static constexpr bool kPaired = kWeights == WeightKind::kU4 && !WOQ_HAS_VNNI;
  using Acc = I32;
  using Operand = std::conditional_t<kPaired, NibblePair, ByteOperand>;
  using Activation = std::conditional_t<kPaired, BroadcastPair, I32>;
  static constexpr WeightKind kKind = kWeights;
  static constexpr bool kInteger = true;
  static constexpr int kOperands = kPaired ? 1 : 2, kRows = WOQ_INT8_ROWS, kTiles = WOQ_INT8_TILES;
  static constexpr int64_t kActBytes = kStep;
  static constexpr int kExcess = kWeights == WeightKind::kU4 ? 8 : kByteExcess;
  static constexpr int chains(int outputs) { return kPaired || outputs >= 4 ? 1 : 2; }

  alignas(16) uint8_t table[16] = {};

  explicit Int8Policy(const DtypeTraits& dtype) {
    for (int code = 0; code < 16 && kWeights == WeightKind::kT4; ++code) {
      table[code] = static_cast<uint8_t>(dtype.codebook->image[code] + 128);
    }
  }

  struct Table {
    ByteTable image;
    explicit Table(const Int8Policy& policy) : image(policy.table) {}
  };

  template <int kHalf>
  static WOQ_INLINE Operand operand(const Table& table, const StepCodes& codes) {
    if constexpr (kPaired) {
      return {low_nibbles(codes.first), high_nibbles(codes.first)};
    } else if constexpr (kWeights == WeightKind::kU8) {
      return byte_operand(kHalf == 0 ? codes.first : codes.second);
    } else {
      const I32 nibbles = kHalf == 0 ? low_nibbles(codes.first) : high_nibbles(codes.first);
      if constexpr (kWeights == WeightKind::kU4) return Operand{nibbles};
      return byte_operand(look_up(table.image, nibbles));
    }
  }
  static WOQ_INLINE Activation activation(const uint8_t* p) {
    if constexpr (kPaired) {
      return {broadcast_bytes(p), broadcast_bytes(p + 4)};
    } else {
      return broadcast_bytes(p);
    }
  }
  static WOQ_INLINE void multiply_add(I32& acc, const Operand& w, const Activation& a) {
    acc = dot(acc, w, a);
  }
};

#if WOQ_HAS_BF16
// bfloat16 activations in the pair order of ActFormat::kBf16.
template <WeightKind kWeights>
struct Bf16Policy {
  using Acc = F32;
  using Operand = I32;
  static constexpr WeightKind kKind = kWeights;
  static constexpr bool kInteger = false;
  static constexpr int kOperands = 4, kRows = WOQ_FLOAT_ROWS, kTiles = WOQ_FLOAT_TILES;
  static constexpr int64_t kActBytes = 2 * kStep;
  static constexpr int chains(int outputs) { return chains_for(outputs, 4); }

  alignas(32) uint16_t table[16] = {};

  explicit Bf16Policy(const DtypeTraits& dtype) {
    for (int code = 0; code < 16 && kWeights != WeightKind::kU8; ++code) {
      table[code] = float_to_bf16(step_value4(dtype, code));
    }
  }

  struct Table {
    Bf16Table values;
    explicit Table(const Bf16Policy& policy) : values(policy.table) {}
  };

  template <int kPair>
  static WOQ_INLINE I32 operand(const Table& table, const StepCodes& codes) {
    if constexpr (kWeights == WeightKind::kU8) {
      return centred_byte_pair<kPair / 2>(kPair % 2 == 0 ? codes.first : codes.second);
    } else {
      return look_up_pair<kPair>(table.values, codes.first);
    }
  }
  static WOQ_INLINE I32 activation(const uint8_t* p) { return broadcast_bytes(p); }
  static WOQ_INLINE void multiply_add(F32& acc, const I32& w, const I32& a) {
    acc = dot_bf16(acc, w, a);
  }
};
#endif

// 16 scales of E8M0 and E4M3, as scales.h decodes them. Neither has NaN here: validate() says so.
WOQ_INLINE F32 load_e8m0(const uint8_t* p) {
  const I32 codes = load_bytes(p);
  return where_greater(codes, zero_i32(), as_f32(shift_left<23>(codes)),
                       as_f32(set_i32(0x00400000)));
}
WOQ_INLINE F32 load_e4m3(const uint8_t* p) {
  const I32 codes = load_bytes(p);
  const I32 exponent = and_i32(shift_right<3>(codes), set_i32(15));
  const I32 mantissa = and_i32(codes, set_i32(7));
  const F32 normal =
      multiply(to_f32(or_i32(mantissa, set_i32(8))), power_of_two(add_i32(exponent, set_i32(-10))));
  const F32 subnormal = multiply(to_f32(mantissa), set_f32(0x1p-9f));
  const F32 value = where_greater(exponent, zero_i32(), normal, subnormal);
  return as_f32(or_i32(as_i32(value), shift_left<24>(and_i32(codes, set_i32(128)))));
}
WOQ_INLINE F32 load_factored(const PackedMatrix& w, F32 value) {
  value = multiply(value, set_f32(w.scale_factor.multiplier));
  return w.scale_factor.divisor == 1.0f ? value : divide(value, set_f32(w.scale_factor.divisor));
}

// ---- Forms: what loops are compiled for. The matrix says what a form leaves open. ----

// Every matrix.
struct AnyForm {
  static constexpr int64_t kGroup = 0;
  static int bits(const PackedMatrix& w) { return w.code_bits(); }
  static ScaleEncoding scales(const PackedMatrix& w) { return w.scheme.scales; }
  static ZeroKind zeros(const PackedMatrix& w) { return w.scheme.zeros; }
  static bool fits(const PackedMatrix&) { return true; }
};

// Codes without planes.
template <WeightKind kWeights>
struct WholeCodes : AnyForm {
  static constexpr int kBits = kWeights == WeightKind::kU8 ? 8 : 4;
  static constexpr int bits(const PackedMatrix&) { return kBits; }
  static bool fits(const PackedMatrix& w) { return w.code_bits() == kBits; }
};

// kFixedGroup: elements of every group, at most a block; 0 for any.
template <int64_t kFixedGroup, int kBits, ScaleEncoding kScales, ZeroKind kZeros = ZeroKind::kNone>
struct FixedForm {
  static constexpr int64_t kGroup = kFixedGroup;
  static constexpr int bits(const PackedMatrix&) { return kBits; }
  static constexpr ScaleEncoding scales(const PackedMatrix&) { return kScales; }
  static constexpr ZeroKind zeros(const PackedMatrix&) { return kZeros; }
  static bool fits(const PackedMatrix& w) {
    return w.code_bits() == kBits && w.scheme.scales == kScales && w.scheme.zeros == kZeros &&
           (kGroup == 0 || (w.group_length() == kGroup && w.padded_cols() % kGroup == 0));
  }
};

// In the order in which they are tried.
template <class... Forms>
struct FormList {};

// For one row of int8 products, whose arithmetic is so short that a branch a group is 10 to 20 % of
// its time: woq's own schemes and those of checkpoints, by who writes them.
template <WeightKind kWeights>
struct OneRowForms;
template <>
struct OneRowForms<WeightKind::kU4> {
  using List = FormList<FixedForm<32, 4, ScaleEncoding::kFp32>,                      // woq
                        FixedForm<32, 4, ScaleEncoding::kFp32, ZeroKind::kInt>,      //
                        FixedForm<32, 4, ScaleEncoding::kFp16>,                      // Q4_0
                        FixedForm<32, 4, ScaleEncoding::kFp16, ZeroKind::kMin>,      // Q4_1
                        FixedForm<32, 4, ScaleEncoding::kTwoLevel, ZeroKind::kMin>,  // Q4_K
                        FixedForm<16, 2, ScaleEncoding::kTwoLevel, ZeroKind::kMin>,  // Q2_K
                        FixedForm<16, 3, ScaleEncoding::kTwoLevel>,                  // Q3_K
                        FixedForm<0, 4, ScaleEncoding::kFp32>,                       // woq
                        FixedForm<0, 4, ScaleEncoding::kFp32, ZeroKind::kInt>,       //
                        FixedForm<0, 4, ScaleEncoding::kFp16>,                       // GPTQ
                        FixedForm<0, 4, ScaleEncoding::kFp16, ZeroKind::kInt>,       // GPTQ, AWQ
                        WholeCodes<WeightKind::kU4>, AnyForm>;
};
template <>
struct OneRowForms<WeightKind::kT4> {
  using List = FormList<FixedForm<32, 4, ScaleEncoding::kFp32>,      // woq
                        FixedForm<32, 4, ScaleEncoding::kFp16>,      // IQ4_NL
                        FixedForm<32, 4, ScaleEncoding::kTwoLevel>,  // IQ4_XS
                        FixedForm<0, 4, ScaleEncoding::kFp32>,       // woq, bitsandbytes
                        WholeCodes<WeightKind::kT4>, AnyForm>;
};
template <>
struct OneRowForms<WeightKind::kU8> {
  using List = FormList<FixedForm<32, 5, ScaleEncoding::kFp16>,                      // Q5_0
                        FixedForm<32, 5, ScaleEncoding::kFp16, ZeroKind::kMin>,      // Q5_1
                        FixedForm<32, 5, ScaleEncoding::kTwoLevel, ZeroKind::kMin>,  // Q5_K
                        FixedForm<16, 6, ScaleEncoding::kTwoLevel>,                  // Q6_K
                        FixedForm<0, 8, ScaleEncoding::kFp32>,                       // woq
                        FixedForm<0, 8, ScaleEncoding::kFp32, ZeroKind::kInt>,       //
                        FixedForm<0, 8, ScaleEncoding::kFp16>,                       // GPTQ, Q8_0
                        FixedForm<0, 8, ScaleEncoding::kFp16, ZeroKind::kInt>,       //
                        WholeCodes<WeightKind::kU8>, AnyForm>;
};

// What two-level scales and minima of a tile and group are multiplied with.
struct SuperNumbers {
  F32 scale, minimum;
};
template <class Form>
WOQ_INLINE SuperNumbers load_supers(const PackedMatrix& w, int64_t offset) {
  SuperNumbers supers = {zero_f32(), zero_f32()};
  if (Form::scales(w) != ScaleEncoding::kTwoLevel) return supers;
  supers.scale = load_fp16(w.scale_supers.data() + offset);
  if (Form::zeros(w) == ZeroKind::kMin)
    supers.minimum = load_fp16(w.minimum_supers.data() + offset);
  return supers;
}

// The 16 scales of a tile and group.
template <class Form>
WOQ_INLINE F32 load_scales(const PackedMatrix& w, const uint8_t* scales, int64_t tile,
                           int64_t group, const SuperNumbers& supers) {
  switch (Form::scales(w)) {
    case ScaleEncoding::kFp32: return load_f32(scales);
    case ScaleEncoding::kFp16: return load_fp16(scales);
    case ScaleEncoding::kBf16: return load_bf16(scales);
    case ScaleEncoding::kTwoLevel: return multiply(load_s8(scales), supers.scale);
    case ScaleEncoding::kE8M0: return load_factored(w, load_e8m0(scales));
    case ScaleEncoding::kE4M3: return load_factored(w, load_e4m3(scales));
    case ScaleEncoding::kDouble: break;
  }
  alignas(64) float decoded[kTileRows] = {};
  const int64_t lanes = std::min<int64_t>(kTileRows, w.rows - tile * kTileRows);
  const bool is_signed = w.signed_double_scales();
  for (int64_t lane = 0; lane < lanes; ++lane) {
    const int64_t block = ((tile * kTileRows + lane) * w.groups() + group) / kDoubleQuantBlock;
    const float magnitude =
        rounded(dynamic_map()[scales[lane]] * w.block_absmax.as<float>()[block]) + w.scale_offset;
    decoded[lane] =
        is_signed && (scales[kTileRows + lane / 8] >> (lane % 8) & 1) ? -magnitude : magnitude;
  }
  return load_f32(decoded);
}

// The 16 zero points of a tile and group, minus the centre; those of a matrix with minima are 0.
template <class Form>
WOQ_INLINE F32 load_zeros(const PackedMatrix& w, const uint8_t* zeros) {
  const F32 center = set_f32(static_cast<float>(1 << (Form::bits(w) - 1)));
  switch (Form::zeros(w)) {
    case ZeroKind::kInt: return subtract(load_u8(zeros), center);
    case ZeroKind::kFloat: return subtract(load_f32(zeros), center);
    default: return subtract(zero_f32(), center);
  }
}

// The 16 minima of a tile and group.
template <class Form>
WOQ_INLINE F32 load_minima(const PackedMatrix& w, const uint8_t* minima,
                           const SuperNumbers& supers) {
  switch (Form::scales(w)) {
    case ScaleEncoding::kFp16: return load_fp16(minima);
    case ScaleEncoding::kBf16: return load_bf16(minima);
    case ScaleEncoding::kTwoLevel: return multiply(load_s8(minima), supers.minimum);
    default: return load_f32(minima);
  }
}

// 16 columns of a row, or the first `lanes` of them; zeros in the other lanes.
WOQ_INLINE F32 load_columns(const void* p, FloatType type, int64_t lanes) {
  if (lanes < kTileRows) {
    alignas(64) float columns[kTileRows] = {};
    load_floats(p, type, lanes, columns);
    return load_f32(columns);
  }
  return type == FloatType::kFp32   ? load_f32(p)
         : type == FloatType::kBf16 ? load_bf16(p)
                                    : load_fp16(p);
}

// silu.h's, on vectors.
WOQ_INLINE F32 silu(F32 x) {
  x = maximum(set_f32(kSiluLowest), x);
  const F32 t = subtract(zero_f32(), minimum(x, set_f32(kSiluHighest)));
  const I32 n = round_i32(multiply(t, set_f32(kInverseLn2)));
  const F32 whole = to_f32(n);
  const F32 r =
      fused_subtract(whole, set_f32(kLn2Low), fused_subtract(whole, set_f32(kLn2High), t));
  F32 p = set_f32(kExpTerms[0]);
  WOQ_UNROLL for (int i = 1; i < 8; ++i) p = fused_add(p, r, set_f32(kExpTerms[i]));
  return divide(x, fused_add(p, power_of_two(n), set_f32(1.0f)));
}

// The same columns of row m of another matrix.
WOQ_INLINE F32 load_columns_of(const ConstMatrixView& matrix, int64_t m, int64_t n, int64_t lanes) {
  const char* const row = static_cast<const char*>(matrix.row(m));
  return load_columns(row + n * size_of(matrix.type), matrix.type, lanes);
}

// Does what follows the product, and stores 16 columns of a row, fewer at the right edge.
WOQ_INLINE void store_row(const GemmTask& task, int64_t m, int64_t tile, F32 c) {
  const int64_t n = tile * kTileRows;
  const int64_t lanes = task.weights->rows - n;
  if (task.bias != nullptr) c = add(c, load_f32(task.bias + n));
  if (task.up.data != nullptr) c = multiply(silu(c), load_columns_of(task.up, m, n, lanes));
  if (task.residual.data != nullptr) c = add(c, load_columns_of(task.residual, m, n, lanes));
  const FloatType type = task.c.type;
  char* const p = static_cast<char*>(task.c.row(m)) + n * size_of(type);
  if (lanes < kTileRows) {
    alignas(64) float columns[kTileRows];
    store_f32(columns, c);
    store_floats(columns, type, lanes, p);
  } else if (type == FloatType::kFp32) {
    store_f32(p, c);
  } else if (type == FloatType::kBf16) {
    store_bf16(p, c);
  } else {
    store_fp16(p, c);
  }
}

// Starts the sums of a block; `i` is the first row's statistic.
template <class Policy, int kRows, int kTiles, int kChains>
WOQ_INLINE void start_block(const PreparedActivations& a, int64_t i,
                            Accumulators<typename Policy::Acc, kRows, kTiles, kChains>& acc) {
  WOQ_UNROLL for (int m = 0; m < kRows; ++m) {
    WOQ_UNROLL for (int t = 0; t < kTiles; ++t) {
      WOQ_UNROLL for (int j = 0; j < kChains; ++j) {
        if constexpr (Policy::kInteger) {
          acc.v[m][t][j] = j == 0 ? set_i32(a.starts[i + m * a.blocks]) : zero_i32();
        } else {
          acc.v[m][t][j] = zero_f32();
        }
      }
    }
  }
}

// Operands kOperand and up of a step, for every row and tile. One operand after the other, so that
// few registers hold weights and activations at a time.
template <class Policy, int kOperand, int kRows, int kTiles, int kChains, class Weights>
WOQ_INLINE void multiply_step(Accumulators<typename Policy::Acc, kRows, kTiles, kChains>& acc,
                              const Weights& weights, const uint8_t* const (&a)[kRows]) {
  typename Policy::Operand w[kTiles];
  WOQ_UNROLL for (int t = 0; t < kTiles; ++t) w[t] = weights.template operand<kOperand>(t);
  WOQ_UNROLL for (int m = 0; m < kRows; ++m) {
    const auto x = Policy::activation(a[m] + kOperand * Policy::kActBytes / Policy::kOperands);
    WOQ_UNROLL for (int t = 0; t < kTiles; ++t)
        Policy::multiply_add(acc.v[m][t][kOperand % kChains], w[t], x);
  }
  if constexpr (kOperand + 1 < Policy::kOperands)
    multiply_step<Policy, kOperand + 1>(acc, weights, a);
}

// What a group of weights has beside its codes.
template <int kTiles>
struct GroupNumbers {
  F32 scale[kTiles], zero[kTiles], minimum[kTiles];
};

// c = c + (sum of the block - zero * a) * scale + minimum * a, with a the sum of the block's
// activations, for every row and tile.
template <class Policy, ZeroKind kZeros, int kRows, int kTiles, int kChains, class C>
WOQ_INLINE void finish_outputs(
    const PreparedActivations& a, int64_t i,
    const Accumulators<typename Policy::Acc, kRows, kTiles, kChains>& acc,
    const GroupNumbers<kTiles>& group, C& c) {
  WOQ_UNROLL for (int m = 0; m < kRows; ++m, i += a.blocks) {
    WOQ_UNROLL for (int t = 0; t < kTiles; ++t) {
      const auto& parts = acc.v[m][t];
      F32 p, s = group.scale[t];
      if constexpr (Policy::kInteger) {
        I32 sum = parts[0];
        WOQ_UNROLL for (int j = 1; j < kChains; ++j) sum = add_i32(sum, parts[j]);
        p = to_f32(sum);
        s = multiply(s, set_f32(a.scales[i]));
      } else {
        p = parts[0];
        WOQ_UNROLL for (int j = 1; j < kChains; ++j) p = add(p, parts[j]);
      }
      constexpr bool kMinima = kZeros == ZeroKind::kMin;
      if constexpr (kZeros != ZeroKind::kNone && !(kMinima && Policy::kInteger))
        p = fused_subtract(group.zero[t], set_f32(a.sums[i]), p);
      F32 result = fused_add(p, s, c.load(m, t));
      if constexpr (kMinima) result = fused_add(group.minimum[t], set_f32(a.sums[i]), result);
      c.store(m, t, result);
    }
  }
}

// Fills number t of a group from its stored scales and zero points or minima.
template <class Form, int kTiles>
WOQ_INLINE void load_group(const PackedMatrix& w, const uint8_t* scales, const uint8_t* zeros,
                           int64_t tile, int64_t g, const SuperNumbers& supers, int t,
                           GroupNumbers<kTiles>* group) {
  group->scale[t] = load_scales<Form>(w, scales, tile, g, supers);
  group->zero[t] = group->minimum[t] = zero_f32();
  if (Form::zeros(w) == ZeroKind::kNone) return;
  group->zero[t] = load_zeros<Form>(w, zeros);
  if (Form::zeros(w) == ZeroKind::kMin) group->minimum[t] = load_minima<Form>(w, zeros, supers);
}

// kInt and kFloat have the same code, kInt's.
template <class Policy, int kRows, int kTiles, int kChains, class C>
WOQ_INLINE void finish_block(ZeroKind zeros, const PreparedActivations& a, int64_t i,
                             const Accumulators<typename Policy::Acc, kRows, kTiles, kChains>& acc,
                             const GroupNumbers<kTiles>& group, C& c) {
  if (zeros == ZeroKind::kNone) {
    finish_outputs<Policy, ZeroKind::kNone>(a, i, acc, group, c);
  } else if (zeros == ZeroKind::kMin) {
    finish_outputs<Policy, ZeroKind::kMin>(a, i, acc, group, c);
  } else {
    finish_outputs<Policy, ZeroKind::kInt>(a, i, acc, group, c);
  }
}

// C of a register tile between blocks: in registers where these suffice for it next to the sums of
// the block, else in memory, which the first-level cache holds.
template <int kRows, int kTiles>
struct RegisterSums {
  F32 v[kRows][kTiles];
  WOQ_INLINE F32 load(int m, int t) const { return v[m][t]; }
  WOQ_INLINE void store(int m, int t, const F32& c) { v[m][t] = c; }
};
template <int kRows, int kTiles>
struct MemorySums {
  alignas(64) float v[kRows][kTiles][kTileRows];
  WOQ_INLINE F32 load(int m, int t) const { return load_f32(v[m][t]); }
  WOQ_INLINE void store(int m, int t, const F32& c) { store_f32(v[m][t], c); }
};
template <int kRows, int kTiles>
using Sums = std::conditional_t<(kRows * kTiles <= WOQ_REGISTER_SUMS), RegisterSums<kRows, kTiles>,
                                MemorySums<kRows, kTiles>>;

// What a kernel call shares.
template <class Policy>
struct Gemm {
  const GemmTask& task;
  const PackedMatrix& w;
  BlockGeometry geometry;
  Policy policy;
  ZeroKind zeros;

  explicit Gemm(const GemmTask& t)
      : task(t), w(*t.weights), geometry(w), policy(w.dtype()), zeros(w.scheme.zeros) {}

  const uint8_t* activations(int64_t m, int64_t k) const {
    return task.a.data + m * task.a.row_bytes + k / kStep * Policy::kActBytes;
  }
};

// ---- Few rows: every weight is unpacked where it is used, and read once. ----

// Prefetches the cache lines of the step that lies 1 KiB ahead of `codes`. The arithmetic of a step
// is so long that the processor's own window does not reach the loads of later steps. One row of
// int8 products is the exception: its arithmetic is short, and it runs faster without prefetches.
template <class Policy, int kRows>
WOQ_INLINE void prefetch_step(const uint8_t* codes, int64_t step_bytes) {
  if constexpr (kRows > 1 || !Policy::kInteger) {
    for (int64_t i = 0; i < step_bytes; i += kCacheLine) __builtin_prefetch(codes + 1024 + i, 0, 3);
  }
}

template <class Policy, int kTiles>
struct UnpackedStep {
  const typename Policy::Table& table;
  StepCodes codes[kTiles];

  template <int kOperand>
  WOQ_INLINE typename Policy::Operand operand(int t) const {
    return Policy::template operand<kOperand>(table, codes[t]);
  }
};

// One step of every row and tile; moves `stream` and `a` behind it.
template <class Policy, class Form, int kRows, int kTiles, int kChains>
WOQ_INLINE void multiply_direct_step(
    const typename Policy::Table& table, int bits, const uint8_t* (&stream)[kTiles],
    const uint8_t* (&a)[kRows], Accumulators<typename Policy::Acc, kRows, kTiles, kChains>& acc) {
  UnpackedStep<Policy, kTiles> step{table, {}};
  WOQ_UNROLL for (int t = 0; t < kTiles; ++t) {
    prefetch_step<Policy, kRows>(stream[t], kPlaneBytes * bits);
    step.codes[t] = load_step<Policy::kKind>(stream[t], bits);
    stream[t] += kPlaneBytes * bits;
  }
  multiply_step<Policy, 0>(acc, step, a);
  WOQ_UNROLL for (int m = 0; m < kRows; ++m) a[m] += Policy::kActBytes;
}

template <class Policy, int kRows, int kTiles, int kChains, class Form>
void multiply_direct(const Gemm<Policy>& gemm, int64_t m0, int64_t tile) {
  const PackedMatrix& w = gemm.w;
  const int bits = Form::bits(w);
  const int64_t scale_bytes = w.scale_bytes(), header_bytes = w.header_bytes();
  const int64_t groups_in_super = groups_in_super_block(w.scheme);
  const PreparedActivations& prepared = gemm.task.a;
  const typename Policy::Table table(gemm.policy);
  const uint8_t *stream[kTiles], *a[kRows];
  SuperNumbers supers[kTiles];
  int64_t super_offset[kTiles];
  Sums<kRows, kTiles> c;
  WOQ_UNROLL for (int t = 0; t < kTiles; ++t) {
    stream[t] = w.tile(tile + t);
    super_offset[t] = w.super_offset(tile + t, 0);
    WOQ_UNROLL for (int m = 0; m < kRows; ++m) c.store(m, t, zero_f32());
  }
  WOQ_UNROLL for (int m = 0; m < kRows; ++m) a[m] = gemm.activations(m0 + m, 0);

  int64_t k = 0, statistics = m0 * prepared.blocks, next_super = 0;
  for (int64_t g = 0; g < gemm.geometry.groups; ++g) {
    if (Form::scales(w) == ScaleEncoding::kTwoLevel && g == next_super) {
      WOQ_UNROLL for (int t = 0; t < kTiles; ++t) {
        supers[t] = load_supers<Form>(w, super_offset[t]);
        super_offset[t] += kSuperBytes;
      }
      next_super += groups_in_super;
    }
    GroupNumbers<kTiles> group;
    WOQ_UNROLL for (int t = 0; t < kTiles; ++t) {
      load_group<Form>(w, stream[t], stream[t] + scale_bytes, tile + t, g, supers[t], t, &group);
      stream[t] += header_bytes;
    }
    Accumulators<typename Policy::Acc, kRows, kTiles, kChains> acc;
    if constexpr (Form::kGroup > 0) {
      static_assert(Form::kGroup <= kBlock);
      start_block<Policy>(prepared, statistics, acc);
      WOQ_UNROLL for (int64_t i = 0; i < Form::kGroup; i += kStep)
          multiply_direct_step<Policy, Form>(table, bits, stream, a, acc);
      finish_block<Policy>(Form::zeros(w), prepared, statistics++, acc, group, c);
    } else {
      for (const int64_t group_end = gemm.geometry.group_end(g); k < group_end; ++statistics) {
        const int64_t block_end = std::min(group_end, k + kBlock);
        start_block<Policy>(prepared, statistics, acc);
        do {
          multiply_direct_step<Policy, Form>(table, bits, stream, a, acc);
          k += kStep;
        } while (k < block_end);  // never empty: a test before the loop costs GCC registers
        finish_block<Policy>(Form::zeros(w), prepared, statistics, acc, group, c);
      }
    }
  }
  WOQ_UNROLL for (int m = 0; m < kRows; ++m) {
    WOQ_UNROLL for (int t = 0; t < kTiles; ++t)
        store_row(gemm.task, m0 + m, tile + t, c.load(m, t));
  }
}

template <class Policy, int kRows, int kTiles, int kChains, class... Forms>
void multiply_direct(const Gemm<Policy>& gemm, int64_t m, int64_t tile, FormList<Forms...>) {
  static_cast<void>(
      (... || (Forms::fits(gemm.w) &&
               (multiply_direct<Policy, kRows, kTiles, kChains, Forms>(gemm, m, tile), true))));
}

template <class Policy, int kRows, int kTiles>
using DirectForms = std::conditional_t<kRows * kTiles == 1 && Policy::kInteger,
                                       typename OneRowForms<Policy::kKind>::List,
                                       FormList<WholeCodes<Policy::kKind>>>;

// As many full register tiles of rows as fit, then halves. Sums have the chains of kChainTiles
// tiles, which decide the order of their additions.
template <class Policy, int kRows, int kTiles, int kChainTiles>
void multiply_direct_rows(const Gemm<Policy>& gemm, int64_t m, int64_t tile) {
  for (; m + kRows <= gemm.task.m1; m += kRows)
    multiply_direct<Policy, kRows, kTiles, Policy::chains(kRows * kChainTiles)>(
        gemm, m, tile, DirectForms<Policy, kRows, kTiles>());
  if constexpr (kRows > 1)
    multiply_direct_rows<Policy, kRows / 2, kTiles, kChainTiles>(gemm, m, tile);
}

// ---- Many rows: a panel of weights is unpacked once for all of them. ----

// Bytes of unpacked operands: half of a first-level cache of 32 KiB, next to the activations and
// sums of a register tile. At least 16 steps, a whole block.
inline constexpr int64_t kPanelBytes = 16384;
// Rows whose sums are kept between panels: 32 or 48 KiB.
inline constexpr int64_t kPanelRows = 256;

// kTiles tiles of W over some whole blocks of K, as operands.
template <class Policy, int kTiles>
struct Panel {
  using Operand = typename Policy::Operand;
  static constexpr int64_t kStepOperands = Policy::kOperands * kTiles;
  static constexpr int64_t kSteps =
      kPanelBytes / (kStepOperands * static_cast<int64_t>(sizeof(Operand)));
  static_assert(kSteps * kStep >= kBlock);

  struct Block : GroupNumbers<kTiles> {
    int64_t steps;
  };

  alignas(64) Operand operands[kSteps * kStepOperands];
  alignas(64) Block blocks[kSteps];
  int64_t k = 0, first_block = 0, block_count = 0;
  const uint8_t* next[kTiles];  // codes of the panel after this one
};

template <class Policy, int kTiles>
struct PanelStep {
  const typename Policy::Operand* operands;

  template <int kOperand>
  WOQ_INLINE const typename Policy::Operand& operand(int t) const {
    return operands[kOperand * kTiles + t];
  }
};

template <class Policy, int kTiles, int kOperand>
WOQ_INLINE void unpack_step(const typename Policy::Table& table, const StepCodes& codes, int t,
                            typename Policy::Operand* out) {
  out[kOperand * kTiles + t] = Policy::template operand<kOperand>(table, codes);
  if constexpr (kOperand + 1 < Policy::kOperands)
    unpack_step<Policy, kTiles, kOperand + 1>(table, codes, t, out);
}

// Fills the panel with the blocks from (k, group, block) on, and moves these behind them.
template <class Policy, int kTiles>
void fill_panel(const Gemm<Policy>& gemm, int64_t tile, int64_t* k, int64_t* group, int64_t* block,
                Panel<Policy, kTiles>* panel) {
  const PackedMatrix& w = gemm.w;
  const int bits = w.code_bits();
  const int64_t step_bytes = w.step_bytes();
  const typename Policy::Table table(gemm.policy);
  panel->k = *k;
  panel->first_block = *block;
  panel->block_count = 0;
  int64_t steps = 0;
  while (*group < gemm.geometry.groups) {
    const int64_t group_end = gemm.geometry.group_end(*group);
    const int64_t end = std::min(group_end, *k + kBlock);
    const int64_t block_steps = (end - *k) / kStep;
    if (steps + block_steps > Panel<Policy, kTiles>::kSteps) return;
    auto& out = panel->blocks[panel->block_count++];
    out.steps = block_steps;
    WOQ_UNROLL for (int t = 0; t < kTiles; ++t) {
      load_group<AnyForm, kTiles>(
          w, w.scales(tile + t, *group), w.zeros(tile + t, *group), tile + t, *group,
          load_supers<AnyForm>(w, w.super_offset(tile + t, *group)), t, &out);
      const uint8_t* codes = w.codes(tile + t, *group) +
                             (*k - *group * gemm.geometry.group_length) / kStep * step_bytes;
      auto* operands = panel->operands + steps * Panel<Policy, kTiles>::kStepOperands;
      for (int64_t i = 0; i < block_steps; ++i) {
        unpack_step<Policy, kTiles, 0>(table, load_step<Policy::kKind>(codes, bits), t, operands);
        codes += step_bytes;
        operands += Panel<Policy, kTiles>::kStepOperands;
      }
      panel->next[t] = codes;
    }
    steps += block_steps;
    *k = end;
    ++*block;
    if (end == group_end) ++*group;
  }
}

// sums [kRows][kTiles * 16] += rows m0 and up of the activations times the panel.
template <class Policy, int kRows, int kTiles>
void multiply_panel(const Gemm<Policy>& gemm, const Panel<Policy, kTiles>& panel, int64_t m0,
                    float* sums) {
  const PreparedActivations& prepared = gemm.task.a;
  const uint8_t* a[kRows];
  WOQ_UNROLL for (int m = 0; m < kRows; ++m) a[m] = gemm.activations(m0 + m, panel.k);
  Sums<kRows, kTiles> c;
  WOQ_UNROLL for (int m = 0; m < kRows; ++m) {
    WOQ_UNROLL for (int t = 0; t < kTiles; ++t)
        c.store(m, t, load_f32(sums + (m * kTiles + t) * kTileRows));
  }
  const typename Policy::Operand* operands = panel.operands;
  int64_t statistics = m0 * prepared.blocks + panel.first_block;
  for (int64_t b = 0; b < panel.block_count; ++b, ++statistics) {
    const auto& block = panel.blocks[b];
    Accumulators<typename Policy::Acc, kRows, kTiles, 1> acc;
    start_block<Policy>(prepared, statistics, acc);
    int64_t steps = block.steps;
    do {
      multiply_step<Policy, 0>(acc, PanelStep<Policy, kTiles>{operands}, a);
      operands += Panel<Policy, kTiles>::kStepOperands;
      WOQ_UNROLL for (int m = 0; m < kRows; ++m) a[m] += Policy::kActBytes;
    } while (--steps > 0);
    finish_block<Policy, kRows, kTiles, 1>(gemm.zeros, prepared, statistics, acc, block, c);
  }
  WOQ_UNROLL for (int m = 0; m < kRows; ++m) {
    WOQ_UNROLL for (int t = 0; t < kTiles; ++t)
        store_f32(sums + (m * kTiles + t) * kTileRows, c.load(m, t));
  }
}

// Into the second-level cache: share i of n of the next panel's codes. Spread over the
// multiplications, which leave memory idle; an eighth to a third faster at 16 rows.
template <class Policy, int kTiles>
WOQ_INLINE void prefetch_panel(const Panel<Policy, kTiles>& panel, int64_t step_bytes, int64_t i,
                               int64_t n) {
  const int64_t lines = Panel<Policy, kTiles>::kSteps * step_bytes / kCacheLine;
  for (int64_t line = lines * i / n; line < lines * (i + 1) / n; ++line) {
    WOQ_UNROLL for (int t = 0; t < kTiles; ++t)
        __builtin_prefetch(panel.next[t] + kCacheLine * line, 0, 2);
  }
}

template <class Policy, int kRows, int kTiles>
void multiply_panel_rows(const Gemm<Policy>& gemm, const Panel<Policy, kTiles>& panel, int64_t m,
                         int64_t m1, float* sums) {
  const int64_t parts = (m1 - m) / kRows;
  for (int64_t i = 0; i < parts; ++i, m += kRows, sums += kRows * kTiles * kTileRows) {
    if (kRows == Policy::kRows) prefetch_panel(panel, gemm.w.step_bytes(), i, parts);
    multiply_panel<Policy, kRows, kTiles>(gemm, panel, m, sums);
  }
  if constexpr (kRows > 1) multiply_panel_rows<Policy, kRows / 2, kTiles>(gemm, panel, m, m1, sums);
}

// multiply(panel, m0, m1, sums) is multiply_panel_rows, or does the same in another way.
template <class Policy, int kTiles, class Multiply>
void multiply_panels(const Gemm<Policy>& gemm, int64_t tile, const Multiply& multiply) {
  Panel<Policy, kTiles> panel;
  alignas(64) float sums[kPanelRows * kTiles * kTileRows];
  for (int64_t m0 = gemm.task.m0; m0 < gemm.task.m1; m0 += kPanelRows) {
    const int64_t m1 = std::min(m0 + kPanelRows, gemm.task.m1);
    std::memset(sums, 0, static_cast<size_t>((m1 - m0) * kTiles * kTileRows) * sizeof(float));
    int64_t k = 0, group = 0, block = 0;
    while (group < gemm.geometry.groups) {
      fill_panel<Policy>(gemm, tile, &k, &group, &block, &panel);
      multiply(panel, m0, m1, sums);
    }
    for (int64_t m = m0; m < m1; ++m) {
      for (int t = 0; t < kTiles; ++t)
        store_row(gemm.task, m, tile + t, load_f32(sums + ((m - m0) * kTiles + t) * kTileRows));
    }
  }
}

// ---- The portion: pairs of tiles halve the loads of activations. ----

// Rows from which unpacking once for all of them pays for storing and loading the operands.
inline constexpr int64_t kManyRows = 8;
// Rows from which a pair of tiles beats one stream of weights.
inline constexpr int kPairRows = 4;

template <class Policy>
void multiply_many_rows(const Gemm<Policy>& gemm) {
  const GemmTask& task = gemm.task;
  const auto multiply = [&](const auto& panel, int64_t m0, int64_t m1, float* sums) {
    multiply_panel_rows<Policy, Policy::kRows>(gemm, panel, m0, m1, sums);
  };
  int64_t tile = task.t0;
  for (; tile + Policy::kTiles <= task.t1; tile += Policy::kTiles)
    multiply_panels<Policy, Policy::kTiles>(gemm, tile, multiply);
  for (; tile < task.t1; ++tile) multiply_panels<Policy, 1>(gemm, tile, multiply);
}

template <class Policy>
void multiply_few_rows(const Gemm<Policy>& gemm) {
  const GemmTask& task = gemm.task;
  int64_t tile = task.t0;
  if constexpr (Policy::kTiles > 1) {
    if (task.m1 - task.m0 >= kPairRows) {
      for (; tile + 2 <= task.t1; tile += 2)
        multiply_direct_rows<Policy, 4, 2, 2>(gemm, task.m0, tile);
      // Which tile has no partner depends on the number of threads, its results must not: float
      // sums are added in a pair's order. Integer sums are exact in any.
      if (tile < task.t1)
        multiply_direct_rows<Policy, 4, 1, Policy::kInteger ? 1 : 2>(gemm, task.m0, tile);
      return;
    }
  }
  constexpr int kRows = Policy::kTiles > 1 ? kPairRows / 2 : 4;
  for (; tile < task.t1; ++tile) multiply_direct_rows<Policy, kRows, 1, 1>(gemm, task.m0, tile);
}

// Planes are taken apart where a panel is filled, and by one row of int8 products: loops of every
// kind for them would double the code.
template <class Policy>
bool has_many_rows(const Gemm<Policy>& gemm) {
  const int64_t rows = gemm.task.m1 - gemm.task.m0;
  const bool direct = WholeCodes<Policy::kKind>::fits(gemm.w) || (Policy::kInteger && rows == 1);
  return rows >= kManyRows || !direct;
}

template <class Policy>
void gemm(const GemmTask& task) {
  const Gemm<Policy> gemm(task);
  has_many_rows(gemm) ? multiply_many_rows(gemm) : multiply_few_rows(gemm);
}

#define WOQ_KERNEL_NAME(act, weights, tile) \
  "gemm_" act "_" weights "_" tile "_" WOQ_STRING(WOQ_TARGET)
#define WOQ_FLOAT_KERNEL_NAME(act, weights) WOQ_KERNEL_NAME(act, weights, WOQ_FLOAT_NAME)
#define WOQ_INT8_KERNEL_NAME(act, weights) WOQ_KERNEL_NAME(act, weights, WOQ_INT8_NAME)
// What targets list, for every kind of weight.
#define WOQ_FLOAT_KERNELS                                                         \
  float_kernel<WeightKind::kU4>(WOQ_FLOAT_KERNEL_NAME("f32", "u4")),              \
      float_kernel<WeightKind::kT4>(WOQ_FLOAT_KERNEL_NAME("f32", "t4")),          \
      float_kernel<WeightKind::kU8>(WOQ_FLOAT_KERNEL_NAME("f32", "u8")),          \
      rounded_float_kernel<WeightKind::kU4>(WOQ_FLOAT_KERNEL_NAME("f32b", "u4")), \
      rounded_float_kernel<WeightKind::kT4>(WOQ_FLOAT_KERNEL_NAME("f32b", "t4")), \
      rounded_float_kernel<WeightKind::kU8>(WOQ_FLOAT_KERNEL_NAME("f32b", "u8"))
#define WOQ_INT8_KERNELS                                              \
  int8_kernel<WeightKind::kU4>(WOQ_INT8_KERNEL_NAME("s8", "u4")),     \
      int8_kernel<WeightKind::kT4>(WOQ_INT8_KERNEL_NAME("s8", "t4")), \
      int8_kernel<WeightKind::kU8>(WOQ_INT8_KERNEL_NAME("s8", "u8"))
inline constexpr Target kThisTarget = WOQ_THIS_TARGET;

template <WeightKind kWeights>
constexpr Kernel float_kernel(const char* name) {
  return {name,
          kThisTarget,
          ComputeType::kFp32,
          kWeights,
          ActFormat::kF32,
          &prepare_float<ActFormat::kF32>,
          &gemm<FloatPolicy<kWeights, ActFormat::kF32>>};
}
template <WeightKind kWeights>
constexpr Kernel rounded_float_kernel(const char* name) {
  return {name,
          kThisTarget,
          ComputeType::kBf16,
          kWeights,
          ActFormat::kF32B,
          &prepare_float<ActFormat::kF32B>,
          &gemm<FloatPolicy<kWeights, ActFormat::kF32B>>};
}
template <WeightKind kWeights>
constexpr Kernel int8_kernel(const char* name) {
  return {name,
          kThisTarget,
          ComputeType::kInt8,
          kWeights,
          ActFormat::kS8,
          &prepare_s8<Int8Policy<kWeights>::kExcess>,
          &gemm<Int8Policy<kWeights>>};
}
#if WOQ_HAS_BF16
template <WeightKind kWeights>
constexpr Kernel bf16_kernel(const char* name) {
  return {name,
          kThisTarget,
          ComputeType::kBf16,
          kWeights,
          ActFormat::kBf16,
          &prepare_float<ActFormat::kBf16>,
          &gemm<Bf16Policy<kWeights>>};
}
#endif

}  // namespace woq::WOQ_TARGET_NS
