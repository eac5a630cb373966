// SPDX-License-Identifier: Apache-2.0
// The scalar reference: kernel.h's formulas, one element at a time. Runs on every machine, and is
// what all other targets are compared with.
namespace woq::WOQ_TARGET_NS {

inline float element(const ConstMatrixView& matrix, int64_t m, int64_t n) {
  float value;
  load_floats(static_cast<const char*>(matrix.row(m)) + n * size_of(matrix.type), matrix.type, 1,
              &value);
  return value;
}

// Row m of x, block [k0, k1) (k1 may lie in the padding), as fp32.
inline void load_block(const PrepareTask& task, int64_t m, int64_t k0, int64_t k1, float* out) {
  const int64_t valid = std::max<int64_t>(0, std::min(k1, task.geometry.cols) - k0);
  for (int64_t i = 0; i < valid; ++i) {
    out[i] = element(task.x, m, task.order == nullptr ? k0 + i : task.order[k0 + i]);
    if (task.scales != nullptr) out[i] *= task.scales[k0 + i];
  }
  std::fill(out + valid, out + (k1 - k0), 0.0f);
}

template <ActFormat kFormat>
void prepare_float(const PrepareTask& task) {
  for (int64_t m = task.m0; m < task.m1; ++m) {
    float* const row = reinterpret_cast<float*>(task.out.data + m * task.out.row_bytes);
    for_each_block(task.geometry, [&](int64_t k0, int64_t k1, int64_t block) {
      load_block(task, m, k0, k1, row + k0);
      float sum = 0;
      for (int64_t k = k0; k < k1; ++k) {
        if (kFormat == ActFormat::kF32B) row[k] = round_to_bf16(row[k]);
        sum += row[k];
      }
      task.out.sums[m * task.out.blocks + block] = sum;
    });
  }
}

inline void prepare_s8(const PrepareTask& task) {
  for (int64_t m = task.m0; m < task.m1; ++m) {
    auto* const row = reinterpret_cast<int8_t*>(task.out.data + m * task.out.row_bytes);
    for_each_block(task.geometry, [&](int64_t k0, int64_t k1, int64_t block) {
      float x[kBlock];
      load_block(task, m, k0, k1, x);
      uint32_t largest = 0;
      for (int64_t k = 0; k < k1 - k0; ++k)
        largest = std::max(largest, float_bits(x[k]) & 0x7fffffffu);
      const bool finite = largest < 0x7f800000u;
      const float absmax = bits_float(largest);
      const bool zero = !finite || absmax < kTinyActivation;
      const float inverse = zero ? 0.0f : kActivationMax / absmax;
      int sum = 0;
      for (int64_t k = k0; k < k1; ++k) {
        const int q = zero ? 0 : static_cast<int>(std::nearbyint(x[k - k0] * inverse));
        row[k] = static_cast<int8_t>(q);
        sum += q;
      }
      const int64_t i = m * task.out.blocks + block;
      task.out.scales[i] = !finite ? std::numeric_limits<float>::quiet_NaN()
                           : zero  ? 0.0f
                                   : absmax / kActivationMax * task.geometry.unit;
      task.out.starts[i] = 0;
      task.out.sums[i] = static_cast<float>(sum);
      if (task.geometry.has_minima) task.out.sums[i] *= task.out.scales[i];
    });
  }
}

// Scale of row n of W in group g, from the packed form.
inline float packed_scale(const PackedMatrix& w, int64_t n, int64_t g) {
  return w.scale(w.scales(n / kTileRows, g), n, g);
}

// Zero point minus centre; a matrix with minima has zero points of 0.
inline float packed_zero(const PackedMatrix& w, int64_t n, int64_t g) {
  const uint8_t* const zeros = w.zeros(n / kTileRows, g);
  const auto center = static_cast<float>(w.dtype().center());
  if (w.scheme.zeros == ZeroKind::kMin) return -center;
  if (w.scheme.zeros == ZeroKind::kInt) return static_cast<float>(zeros[n % kTileRows]) - center;
  return woq::detail::load_element<float>(zeros, n % kTileRows) - center;
}

inline int packed_code(const PackedMatrix& w, int64_t n, int64_t k) {
  // K's padding belongs to the last group.
  const int64_t g = std::min(k / w.group_length(), w.groups() - 1);
  const int64_t steps = (k - g * w.group_length()) / kStep, lane = n % kTileRows;
  const int64_t j = k % kStep, half = j / 4, byte = 4 * lane + j % 4;
  const uint8_t* step = w.codes(n / kTileRows, g) + steps * w.step_bytes();
  const int bits = w.code_bits();
  if (bits == 8) return step[half * kStepBytes4 + byte];
  int code = 0, bit = 0;
  if (has_nibbles(bits)) {
    code = step[byte] >> (4 * half) & 15;
    step += kStepBytes4;
    bit = 4;
  }
  for (; bit < bits; ++bit, step += kPlaneBytes)
    code |= (step[half * kPlaneBytes / 2 + byte / 8] >> (byte % 8) & 1) << bit;
  return code;
}

// Does what follows the product, and stores element (m, n) of C.
inline void store_output(const GemmTask& task, int64_t m, int64_t n, float c) {
  if (task.bias != nullptr) c += task.bias[n];
  if (task.up.data != nullptr) c = silu(c) * element(task.up, m, n);
  if (task.residual.data != nullptr) c += element(task.residual, m, n);
  store_floats(&c, task.c.type, 1, static_cast<char*>(task.c.row(m)) + n * size_of(task.c.type));
}

template <ComputeType kCompute>
void gemm(const GemmTask& task) {
  const PackedMatrix& w = *task.weights;
  const DtypeTraits& dtype = w.dtype();
  const BlockGeometry geometry(w);
  const bool has_minima = geometry.has_minima;
  // Of weights with minima the int8 sums are of the codes themselves.
  const bool has_zeros =
      w.scheme.zeros != ZeroKind::kNone && !(has_minima && kCompute == ComputeType::kInt8);
  const int center = has_minima ? 0 : dtype.center();
  const int64_t n_end = std::min(w.rows, task.t1 * kTileRows);
  for (int64_t m = task.m0; m < task.m1; ++m) {
    const uint8_t* const row = task.a.data + m * task.a.row_bytes;
    for (int64_t n = task.t0 * kTileRows; n < n_end; ++n) {
      float c = 0;
      for_each_block(geometry, [&](int64_t k0, int64_t k1, int64_t block) {
        const int64_t g = k0 / geometry.group_length, i = m * task.a.blocks + block;
        float p = 0, scale = packed_scale(w, n, g);
        if constexpr (kCompute == ComputeType::kInt8) {
          int32_t sum = 0;
          for (int64_t k = k0; k < k1; ++k) {
            const int code = packed_code(w, n, k);
            const int t = dtype.is_integer() ? code - center : dtype.codebook->image[code];
            sum += t * reinterpret_cast<const int8_t*>(row)[k];
          }
          p = static_cast<float>(sum);
          scale *= task.a.scales[i];
        } else {
          for (int64_t k = k0; k < k1; ++k) {
            float t = code_value(dtype, packed_code(w, n, k));
            if constexpr (kCompute == ComputeType::kBf16) t = round_to_bf16(t);
            p = std::fma(t, reinterpret_cast<const float*>(row)[k], p);
          }
        }
        if (has_zeros) p = std::fma(-packed_zero(w, n, g), task.a.sums[i], p);
        c = std::fma(p, scale, c);
        if (has_minima) c = std::fma(w.minimum(w.zeros(n / kTileRows, g), n, g), task.a.sums[i], c);
      });
      store_output(task, m, n, c);
    }
  }
}

}  // namespace woq::WOQ_TARGET_NS
