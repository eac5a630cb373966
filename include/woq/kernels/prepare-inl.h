// SPDX-License-Identifier: Apache-2.0
// Preparation of activations: kernel.h's definitions, 16 elements at a time. Two passes over a
// block of at most 128 elements, which stay in the first-level cache.
namespace woq::WOQ_TARGET_NS {

// Row m of x, elements [k0, k1), as fp32 into buffer [kBlock], zeros up to a multiple of 16. k1 may
// lie in the padding.
inline void load_changed_block(const PrepareTask& task, int64_t m, int64_t k0, int64_t k1,
                               float* buffer) {
  const int64_t valid = std::max<int64_t>(0, std::min(k1, task.geometry.cols) - k0);
  const FloatType type = task.x.type;
  const char* const row = static_cast<const char*>(task.x.row(m));
  for (int64_t i = 0; i < valid; ++i) {
    const int64_t k = task.order == nullptr ? k0 + i : task.order[k0 + i];
    load_floats(row + k * size_of(type), type, 1, buffer + i);
    if (task.scales != nullptr) buffer[i] *= task.scales[k0 + i];
  }
  std::fill(buffer + valid, buffer + round_up(k1 - k0, kTileRows), 0.0f);
}

WOQ_INLINE void load_block(const PrepareTask& task, int64_t m, int64_t k0, int64_t k1,
                           float* buffer) {
  if (task.order != nullptr || task.scales != nullptr) {
    load_changed_block(task, m, k0, k1, buffer);
    return;
  }
  const int64_t valid = std::max<int64_t>(0, std::min(k1, task.geometry.cols) - k0);
  const FloatType type = task.x.type;
  const char* row = static_cast<const char*>(task.x.row(m)) + k0 * size_of(type);
  int64_t i = 0;
  for (; i + 16 <= valid; i += 16) {
    const char* p = row + i * size_of(type);
    store_f32(buffer + i, type == FloatType::kFp32   ? load_f32(p)
                          : type == FloatType::kBf16 ? load_bf16(p)
                                                     : load_fp16(p));
  }
  if (i < k1 - k0) {
    store_f32(buffer + i, zero_f32());
    if (i < valid) load_floats(row + i * size_of(type), type, valid - i, buffer + i);
  }
}

template <ActFormat kFormat>
void prepare_float(const PrepareTask& task) {
  for (int64_t m = task.m0; m < task.m1; ++m) {
    uint8_t* const row = task.out.data + m * task.out.row_bytes;
    for_each_block(task.geometry, [&](int64_t k0, int64_t k1, int64_t block) {
      alignas(64) float x[kBlock];
      load_block(task, m, k0, k1, x);
      F32 sum = zero_f32();
      for (int64_t k = k0; k < k1; k += 16) {
        F32 value = load_f32(x + (k - k0));
        if (kFormat != ActFormat::kF32) value = round_to_bf16(value);
        sum = add(sum, value);
#if WOQ_HAS_BF16
        if (kFormat == ActFormat::kBf16) {
          store_bf16_pairs(row + k * 2, value);
          continue;
        }
#endif
        store_f32(row + k * 4, value);
      }
      task.out.sums[m * task.out.blocks + block] = reduce_add(sum);
    });
  }
}

// kExcess: what a kernel adds to the integers of its weights.
template <int kExcess>
void prepare_s8(const PrepareTask& task) {
  for (int64_t m = task.m0; m < task.m1; ++m) {
    uint8_t* const row = task.out.data + m * task.out.row_bytes;
    for_each_block(task.geometry, [&](int64_t k0, int64_t k1, int64_t block) {
      alignas(64) float x[kBlock];
      load_block(task, m, k0, k1, x);
      I32 bits = zero_i32();
      for (int64_t k = 0; k < k1 - k0; k += 16)
        bits = max_i32(bits, magnitude_bits(load_f32(x + k)));
      const auto largest = static_cast<uint32_t>(reduce_max(bits));
      const bool finite = largest < 0x7f800000u;
      const float absmax = bits_float(largest);
      const bool zero = !finite || absmax < kTinyActivation;
      const F32 inverse = set_f32(zero ? 0.0f : kActivationMax / absmax);
      I32 sum = zero_i32();
      for (int64_t k = k0; k < k1; k += 16) {
        const I32 q = zero ? zero_i32() : round_i32(multiply(load_f32(x + (k - k0)), inverse));
        store_s8(row + k, q);
        sum = add_i32(sum, q);
      }
      const int64_t i = m * task.out.blocks + block;
      task.out.scales[i] = !finite ? std::numeric_limits<float>::quiet_NaN()
                           : zero  ? 0.0f
                                   : absmax / kActivationMax * task.geometry.unit;
      const int32_t total = reduce_add(sum);
      const bool has_minima = task.geometry.has_minima;
      task.out.starts[i] = ((has_minima ? task.geometry.center : 0) - kExcess) * total;
      task.out.sums[i] = static_cast<float>(total);
      if (has_minima) task.out.sums[i] *= task.out.scales[i];
    });
  }
}

}  // namespace woq::WOQ_TARGET_NS
