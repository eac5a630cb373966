// SPDX-License-Identifier: Apache-2.0
// The loop nest, written once: kernel.h's formulas on a register tile of kRows rows of X by kTiles
// tiles of 16 rows of W, over the ISA vocabulary. A policy says how one step (8 elements of K) of a
// tile is unpacked and multiplied.
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

// fp32 activations; kFormat kF32B: activations and table hold bfloat16 values.
template <WeightKind kWeights, ActFormat kFormat>
struct FloatPolicy {
  using Acc = F32;
  static constexpr bool kInteger = false;
  static constexpr int64_t kActBytes = 4 * kStep;
  static constexpr int chains(int outputs) { return chains_for(outputs, WOQ_VECTOR_BITS / 64); }

  alignas(64) float values[16] = {};

  explicit FloatPolicy(const DtypeTraits& dtype) {
    for (int code = 0; code < 16 && kWeights != WeightKind::kU8; ++code) {
      values[code] = code_value(dtype, code);
      if (kFormat == ActFormat::kF32B) values[code] = woq::round_to_bf16(values[code]);
    }
  }

  template <int kElement>
  static WOQ_INLINE F32 weight(const FloatTable& table, I32 first, I32 second) {
    if constexpr (kWeights == WeightKind::kU8) {
      return decode8<kElement % 4>(kElement < 4 ? first : second);
    } else {
      return decode4<kElement>(table, first);
    }
  }

  // Element by element, so that few registers hold decoded weights and broadcast activations at a
  // time.
  template <int kElement, int kRows, int kTiles, int kChains>
  static WOQ_INLINE void element(const FloatTable& table, const I32 (&first)[kTiles],
                                 const I32 (&second)[kTiles],
                                 Accumulators<F32, kRows, kTiles, kChains>& acc,
                                 const uint8_t* const (&a)[kRows]) {
    F32 w[kTiles];
    WOQ_UNROLL for (int t = 0; t < kTiles; ++t) w[t] = weight<kElement>(table, first[t], second[t]);
    WOQ_UNROLL for (int m = 0; m < kRows; ++m) {
      float x;
      std::memcpy(&x, a[m] + 4 * kElement, sizeof x);
      const F32 broadcast = set_f32(x);
      WOQ_UNROLL for (int t = 0; t < kTiles; ++t) {
        F32& sum = acc.v[m][t][kElement % kChains];
        sum = fused_add(w[t], broadcast, sum);
      }
    }
  }

  template <int kRows, int kTiles, int kChains>
  WOQ_INLINE void step(Accumulators<F32, kRows, kTiles, kChains>& acc,
                       const uint8_t* const (&codes)[kTiles],
                       const uint8_t* const (&a)[kRows]) const {
    const FloatTable table(values);
    I32 first[kTiles], second[kTiles];
    WOQ_UNROLL for (int t = 0; t < kTiles; ++t) {
      first[t] = load_codes(codes[t]);
      second[t] = first[t];
      if constexpr (kWeights == WeightKind::kU8) {
        first[t] = flip_sign_bits(first[t]);
        second[t] = flip_sign_bits(load_codes(codes[t] + kStepBytes4));
      }
    }
    element<0>(table, first, second, acc, a);
    element<1>(table, first, second, acc, a);
    element<2>(table, first, second, acc, a);
    element<3>(table, first, second, acc, a);
    element<4>(table, first, second, acc, a);
    element<5>(table, first, second, acc, a);
    element<6>(table, first, second, acc, a);
    element<7>(table, first, second, acc, a);
  }
};

template <class Operand>
struct OperandPair {
  Operand lo, hi;
};

// int8 activations. t is stored as an unsigned byte with an excess, which the accumulator's start
// takes back.
template <WeightKind kWeights>
struct Int8Policy {
  using Acc = I32;
  static constexpr bool kInteger = true;
  static constexpr int64_t kActBytes = kStep;
  static constexpr int kExcess = kWeights == WeightKind::kU4 ? 8 : kByteExcess;
  static constexpr int chains(int outputs) { return outputs < 4 ? 2 : 1; }

  alignas(16) uint8_t table[16] = {};

  explicit Int8Policy(const DtypeTraits& dtype) {
    for (int code = 0; code < 16 && kWeights == WeightKind::kT4; ++code) {
      table[code] = static_cast<uint8_t>(dtype.codebook->image[code] + 128);
    }
  }

  // The operands of elements 0-3 and 4-7 of a step.
  WOQ_INLINE auto operands(const uint8_t* codes, const ByteTable& image) const {
    const I32 first = load_codes(codes);
    if constexpr (kWeights == WeightKind::kU4) {
      return OperandPair<NibbleOperand>{nibble_operand(low_nibbles(first)),
                                        nibble_operand(high_nibbles(first))};
    } else if constexpr (kWeights == WeightKind::kT4) {
      return OperandPair<ByteOperand>{byte_operand(look_up(image, low_nibbles(first))),
                                      byte_operand(look_up(image, high_nibbles(first)))};
    } else {
      return OperandPair<ByteOperand>{byte_operand(first),
                                      byte_operand(load_codes(codes + kStepBytes4))};
    }
  }

  template <int kRows, int kTiles, int kChains>
  WOQ_INLINE void step(Accumulators<I32, kRows, kTiles, kChains>& acc,
                       const uint8_t* const (&codes)[kTiles],
                       const uint8_t* const (&a)[kRows]) const {
    const ByteTable image(table);
    using Pair = decltype(operands(nullptr, image));
    Pair w[kTiles];
    WOQ_UNROLL for (int t = 0; t < kTiles; ++t) w[t] = operands(codes[t], image);
    WOQ_UNROLL for (int m = 0; m < kRows; ++m) {
      const I32 a_lo = broadcast_bytes(a[m]), a_hi = broadcast_bytes(a[m] + 4);
      WOQ_UNROLL for (int t = 0; t < kTiles; ++t)
          dot_step(acc.v[m][t], w[t].lo, w[t].hi, a_lo, a_hi);
    }
  }
};

#if WOQ_HAS_BF16
// bfloat16 activations in the pair order of ActFormat::kBf16.
template <WeightKind kWeights>
struct Bf16Policy {
  using Acc = F32;
  static constexpr bool kInteger = false;
  static constexpr int64_t kActBytes = 2 * kStep;
  static constexpr int chains(int outputs) { return chains_for(outputs, 4); }

  alignas(32) uint16_t table[16] = {};

  explicit Bf16Policy(const DtypeTraits& dtype) {
    for (int code = 0; code < 16 && kWeights != WeightKind::kU8; ++code) {
      table[code] = float_to_bf16(code_value(dtype, code));
    }
  }

  template <int kPair>
  static WOQ_INLINE I32 weights(const Bf16Table& values, I32 first, I32 second) {
    if constexpr (kWeights == WeightKind::kU8) {
      return decode8_pair<kPair / 2>(kPair % 2 == 0 ? first : second);
    } else {
      return decode4_pair<kPair>(values, first);
    }
  }

  template <int kPair, int kRows, int kTiles, int kChains>
  static WOQ_INLINE void pair(const Bf16Table& values, const I32 (&first)[kTiles],
                              const I32 (&second)[kTiles],
                              Accumulators<F32, kRows, kTiles, kChains>& acc,
                              const uint8_t* const (&a)[kRows]) {
    I32 w[kTiles];
    WOQ_UNROLL for (int t = 0; t < kTiles; ++t) w[t] = weights<kPair>(values, first[t], second[t]);
    WOQ_UNROLL for (int m = 0; m < kRows; ++m) {
      const I32 broadcast = broadcast_bytes(a[m] + 4 * kPair);
      WOQ_UNROLL for (int t = 0; t < kTiles; ++t) {
        F32& sum = acc.v[m][t][kPair % kChains];
        sum = dot_bf16(sum, w[t], broadcast);
      }
    }
  }

  template <int kRows, int kTiles, int kChains>
  WOQ_INLINE void step(Accumulators<F32, kRows, kTiles, kChains>& acc,
                       const uint8_t* const (&codes)[kTiles],
                       const uint8_t* const (&a)[kRows]) const {
    const Bf16Table values(table);
    I32 first[kTiles], second[kTiles];
    WOQ_UNROLL for (int t = 0; t < kTiles; ++t) {
      first[t] = load_codes(codes[t]);
      second[t] = first[t];
      if constexpr (kWeights == WeightKind::kU8) {
        first[t] = flip_sign_bits(first[t]);
        second[t] = flip_sign_bits(load_codes(codes[t] + kStepBytes4));
      }
    }
    pair<0>(values, first, second, acc, a);
    pair<1>(values, first, second, acc, a);
    pair<2>(values, first, second, acc, a);
    pair<3>(values, first, second, acc, a);
  }
};
#endif

// The 16 scales of a tile and group.
WOQ_INLINE F32 load_scales(const PackedMatrix& w, const uint8_t* scales, int64_t tile,
                           int64_t group) {
  switch (w.scheme.scales) {
    case ScaleEncoding::kFp32: return load_f32(scales);
    case ScaleEncoding::kFp16: return load_fp16(scales);
    case ScaleEncoding::kBf16: return load_bf16(scales);
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

// The 16 zero points of a tile and group, minus the centre.
WOQ_INLINE F32 load_zeros(const PackedMatrix& w, const uint8_t* zeros) {
  const F32 center = set_f32(static_cast<float>(w.dtype().center()));
  return subtract(w.scheme.zeros == ZeroKind::kInt ? load_u8(zeros) : load_f32(zeros), center);
}

// Adds the bias and stores 16 columns of a row, fewer at the right edge.
WOQ_INLINE void store_row(const GemmTask& task, int64_t m, int64_t tile, F32 c) {
  const int64_t n = tile * kTileRows;
  if (task.bias != nullptr) c = add(c, load_f32(task.bias + n));
  const FloatType type = task.c.type;
  char* const p = static_cast<char*>(task.c.row(m)) + n * size_of(type);
  const int64_t lanes = task.weights->rows - n;
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

template <class Policy, int kRows, int kTiles>
void multiply_tile(const GemmTask& task, const Policy& policy, const BlockGeometry& geometry,
                   float unit, int64_t m0, int64_t tile) {
  constexpr int kChains = Policy::chains(kRows * kTiles);
  const PackedMatrix& w = *task.weights;
  const bool has_zeros = w.scheme.zeros != ZeroKind::kNone;
  const uint8_t *codes[kTiles], *scales[kTiles], *zeros[kTiles], *a[kRows];
  F32 c[kRows][kTiles];
  WOQ_UNROLL for (int t = 0; t < kTiles; ++t) {
    codes[t] = w.tile(tile + t);
    scales[t] = codes[t] + w.scales_offset();
    zeros[t] = codes[t] + w.zeros_offset();
    WOQ_UNROLL for (int m = 0; m < kRows; ++m) c[m][t] = zero_f32();
  }
  WOQ_UNROLL for (int m = 0; m < kRows; ++m) a[m] = task.a.data + (m0 + m) * task.a.row_bytes;

  int64_t k = 0, statistics = m0 * task.a.blocks;
  for (int64_t g = 0; g < geometry.groups; ++g) {
    F32 scale[kTiles], zero[kTiles];
    WOQ_UNROLL for (int t = 0; t < kTiles; ++t) {
      scale[t] = load_scales(w, scales[t], tile + t, g);
      scales[t] += w.scale_bytes();
      zero[t] = zero_f32();
      if (has_zeros) {
        zero[t] = load_zeros(w, zeros[t]);
        zeros[t] += w.zero_bytes();
      }
    }
    for (const int64_t group_end = geometry.group_end(g); k < group_end; ++statistics) {
      const int64_t block_end = std::min(group_end, k + kBlock);
      Accumulators<typename Policy::Acc, kRows, kTiles, kChains> acc;
      WOQ_UNROLL for (int m = 0; m < kRows; ++m) {
        WOQ_UNROLL for (int t = 0; t < kTiles; ++t) {
          WOQ_UNROLL for (int i = 0; i < kChains; ++i) {
            if constexpr (Policy::kInteger) {
              const float sum = i == 0 ? task.a.sums[statistics + m * task.a.blocks] : 0.0f;
              acc.v[m][t][i] = set_i32(-Policy::kExcess * static_cast<int32_t>(sum));
            } else {
              acc.v[m][t][i] = zero_f32();
            }
          }
        }
      }
      for (; k < block_end; k += kStep) {
        // About 1 KiB ahead, in the one stream that a thread reads.
        if constexpr (kRows <= 2) {
          WOQ_UNROLL for (int t = 0; t < kTiles; ++t) {
            __builtin_prefetch(codes[t] + 1024);
            if (w.step_bytes() > kStepBytes4) __builtin_prefetch(codes[t] + 1024 + kStepBytes4);
          }
        }
        policy.template step<kRows, kTiles, kChains>(acc, codes, a);
        WOQ_UNROLL for (int t = 0; t < kTiles; ++t) codes[t] += w.step_bytes();
        WOQ_UNROLL for (int m = 0; m < kRows; ++m) a[m] += Policy::kActBytes;
      }
      WOQ_UNROLL for (int m = 0; m < kRows; ++m) {
        const int64_t i = statistics + m * task.a.blocks;
        WOQ_UNROLL for (int t = 0; t < kTiles; ++t) {
          F32 p, s = scale[t];
          if constexpr (Policy::kInteger) {
            I32 sum = acc.v[m][t][0];
            WOQ_UNROLL for (int j = 1; j < kChains; ++j) sum = add_i32(sum, acc.v[m][t][j]);
            p = to_f32(sum);
            s = multiply(s, set_f32(task.a.scales[i] * unit));
          } else {
            p = acc.v[m][t][0];
            WOQ_UNROLL for (int j = 1; j < kChains; ++j) p = add(p, acc.v[m][t][j]);
          }
          if (has_zeros) p = fused_subtract(zero[t], set_f32(task.a.sums[i]), p);
          c[m][t] = fused_add(p, s, c[m][t]);
        }
      }
    }
  }
  WOQ_UNROLL for (int m = 0; m < kRows; ++m) {
    WOQ_UNROLL for (int t = 0; t < kTiles; ++t) store_row(task, m0 + m, tile + t, c[m][t]);
  }
}

// All rows of one column of register tiles: as many full ones as fit, then halves.
template <class Policy, int kRows, int kTiles>
void multiply_rows(const GemmTask& task, const Policy& policy, const BlockGeometry& geometry,
                   float unit, int64_t m, int64_t tile) {
  for (; m + kRows <= task.m1; m += kRows)
    multiply_tile<Policy, kRows, kTiles>(task, policy, geometry, unit, m, tile);
  if constexpr (kRows > 1)
    multiply_rows<Policy, kRows / 2, kTiles>(task, policy, geometry, unit, m, tile);
}

template <class Policy>
void gemm(const GemmTask& task) {
  const DtypeTraits& dtype = task.weights->dtype();
  const Policy policy(dtype);
  const BlockGeometry geometry(*task.weights);
  const float unit = dtype.is_integer() ? 1.0f : dtype.codebook->image_unit;
  int64_t tile = task.t0;
  // Pairs of tiles halve the loads of activations; with one or two rows a single stream of weights
  // reads faster.
  if constexpr (WOQ_TILE_PAIRS > 1) {
    if (task.m1 - task.m0 >= 4) {
      for (; tile + 2 <= task.t1; tile += 2) {
        multiply_rows<Policy, WOQ_TILE_ROWS, 2>(task, policy, geometry, unit, task.m0, tile);
      }
    }
  }
  for (; tile < task.t1; ++tile)
    multiply_rows<Policy, WOQ_TILE_ROWS, 1>(task, policy, geometry, unit, task.m0, tile);
}

#define WOQ_KERNEL_NAME(act, weights) \
  "gemm_" act "_" weights "_" WOQ_TILE_NAME "_" WOQ_STRING(WOQ_TARGET)
inline constexpr Target kThisTarget = static_cast<Target>(WOQ_TARGET_ID);

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
  return {name,           kThisTarget, ComputeType::kInt8,         kWeights,
          ActFormat::kS8, &prepare_s8, &gemm<Int8Policy<kWeights>>};
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
