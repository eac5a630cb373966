// SPDX-License-Identifier: Apache-2.0
// Many rows on AMX: gemm-inl.h's panels and formulas, with a block's products from tile registers.
// (A tile is still 16 rows of W; the registers are always called tile registers.)
//
// A panel already is what AMX asks of its second factor: operand i of a tile is a row of 16 columns
// x 4 bytes of K. The first factor is loaded straight from the prepared activations: 16 rows of 64
// bytes, which are 64 elements of int8 or 32 of bf16.
//
// The register tile is 32 rows x 32 columns: of the eight tile registers 4 hold sums, 2 activations
// and 2 weights, so that 4 loads feed 4 products (16 x 16 outputs would need 2 for each). At 16
// cycles a product and 8 a load (16 lines, two a cycle) the multiplier sets the pace. A block of
// 128 elements is
//   int8: 2 parts:  8 loads ( 64 cycles),  8 products (128 cycles)
//   bf16: 4 parts: 16 loads (128 cycles), 16 products (256 cycles)
// and 4 stores of its sums (64 cycles), of which 64 vectors of 16 outputs are finished by AVX-512:
//   int8: 4 instructions each, 5 with zero points: 128 or 160 cycles on two ports
//   bf16: 1 or 2, but 2 loads and a store: 64 cycles
// The multiplier leaves those ports alone, so a block is finished between the next one's products
// and their store: both run at a time. A group of 32 in int8 half fills a tile register: 4 products
// (64 cycles) for the same 64 vectors, which set the pace then.
// First-level cache: the panel, 16 KiB; 32 rows of activations under it, 16 KiB; products and sums,
// 4 KiB each: 40 of the 48 KiB that every CPU with AMX has.
// Unpacking a panel stores 256 registers, about 256 cycles; 256 rows keep the multiplier busy for
// 4096 (int8) or 8192 with it. Too little to interleave the two.
namespace woq::WOQ_TARGET_NS {

// ---- Tile registers, by their numbers. Not the compilers' intrinsics: those of GCC take literal
// numbers only, and do not tell the optimizer what memory they read. ----

template <int kRegister>
WOQ_INLINE void tile_zero() {
  __asm__ volatile("tilezero %%tmm%c0" : : "i"(kRegister));
}
template <int kRegister>
WOQ_INLINE void tile_load(const void* p, int64_t stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2"
                   :
                   : "r"(p), "r"(stride), "i"(kRegister)
                   : "memory");
}
template <int kRegister>
WOQ_INLINE void tile_store(void* p, int64_t stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)"
                   :
                   : "r"(p), "r"(stride), "i"(kRegister)
                   : "memory");
}
// sums += activations x weights: int8 signed x unsigned, or bf16.
template <bool kInteger, int kSums, int kActivations, int kWeights>
WOQ_INLINE void tile_multiply_add() {
  if constexpr (kInteger) {
    __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0"
                     :
                     : "i"(kSums), "i"(kActivations), "i"(kWeights));
  } else {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0"
                     :
                     : "i"(kSums), "i"(kActivations), "i"(kWeights));
  }
}

// A tile register has 16 rows of 64 bytes, or fewer of both.
inline constexpr int kTileRegisterRows = 16;
inline constexpr int64_t kTileRegisterBytes = 64;

// 0, 1: weights of two tiles; 2, 3: activations of two times 16 rows; 4 to 7: their sums.
class TileRegisters {
 public:
  TileRegisters() = default;
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
  ~TileRegisters() { __asm__ volatile("tilerelease"); }

  // For `rows` (1 to 32) rows of X and `bytes` (a multiple of 4, up to 64) of each. What the
  // registers held is lost where that changes, so it may not in the middle of a block.
  void configure(int rows, int bytes) {
    if (rows == rows_ && bytes == bytes_) return;
    rows_ = rows;
    bytes_ = bytes;
    Configuration configuration;
    for (int half = 0; half < 2; ++half) {
      const int half_rows = std::clamp(rows - half * kTileRegisterRows, 0, kTileRegisterRows);
      configuration.set(half, bytes / 4, kTileRegisterBytes);
      configuration.set(2 + half, half_rows, bytes);
      configuration.set(4 + 2 * half, half_rows, kTileRegisterBytes);
      configuration.set(5 + 2 * half, half_rows, kTileRegisterBytes);
    }
    __asm__ volatile("ldtilecfg %0" : : "m"(configuration));
  }

 private:
  // The operand of ldtilecfg.
  struct alignas(64) Configuration {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    // Both or neither are 0.
    void set(int index, int row_count, int64_t bytes) {
      rows[index] = static_cast<uint8_t>(row_count);
      row_bytes[index] = static_cast<uint16_t>(row_count == 0 ? 0 : bytes);
    }
  };
  static_assert(sizeof(Configuration) == 64);

  int rows_ = 0, bytes_ = 0;
};

// ---- The loop nest. ----

inline constexpr int64_t kAmxRows = 2 * kTileRegisterRows;

// The first `bytes` of the activations' rows, in `parts` equal parts, times a block's operands.
template <class Policy, int kTiles, bool kBothHalves>
WOQ_INLINE void multiply_block(const uint8_t* a, int64_t row_bytes, const uint8_t* operands,
                               int64_t bytes, int parts) {
  constexpr int64_t kStride = kTiles * kTileRegisterBytes;
  tile_zero<4>();
  if constexpr (kTiles == 2) tile_zero<5>();
  if constexpr (kBothHalves) tile_zero<6>();
  if constexpr (kBothHalves && kTiles == 2) tile_zero<7>();
  do {
    tile_load<0>(operands, kStride);
    tile_load<2>(a, row_bytes);
    tile_multiply_add<Policy::kInteger, 4, 2, 0>();
    if constexpr (kTiles == 2) {
      tile_load<1>(operands + kTileRegisterBytes, kStride);
      tile_multiply_add<Policy::kInteger, 5, 2, 1>();
    }
    if constexpr (kBothHalves) {
      tile_load<3>(a + kTileRegisterRows * row_bytes, row_bytes);
      tile_multiply_add<Policy::kInteger, 6, 3, 0>();
      if constexpr (kTiles == 2) tile_multiply_add<Policy::kInteger, 7, 3, 1>();
    }
    a += bytes;
    operands += bytes / 4 * kStride;
  } while (--parts > 0);
}

// products [rows][kTiles * 16]
template <int kTiles, bool kBothHalves>
WOQ_INLINE void store_products(uint8_t* products) {
  constexpr int64_t kStride = kTiles * kTileRegisterBytes;
  tile_store<4>(products, kStride);
  if constexpr (kTiles == 2) tile_store<5>(products + kTileRegisterBytes, kStride);
  if constexpr (kBothHalves) {
    uint8_t* const second = products + kTileRegisterRows * kStride;
    tile_store<6>(second, kStride);
    if constexpr (kTiles == 2) tile_store<7>(second + kTileRegisterBytes, kStride);
  }
}

// Float sums start from 0.
WOQ_INLINE void add_products(const uint8_t* p, I32* sum) {
  *sum = add_i32(*sum, load_codes(p));
}
WOQ_INLINE void add_products(const uint8_t* p, F32* sum) {
  *sum = load_f32(p);
}

template <int kTiles>
struct RowSums {
  float* p;
  WOQ_INLINE F32 load(int, int t) const { return load_f32(p + t * kTileRows); }
  WOQ_INLINE void store(int, int t, const F32& c) { store_f32(p + t * kTileRows, c); }
};

// sums [rows][kTiles * 16] += what a block's products are worth; `i` is the first row's statistic.
template <class Policy, ZeroKind kZeros, int kTiles>
void finish_rows(PreparedActivations prepared, int64_t i, int64_t rows,
                 const typename Panel<Policy, kTiles>::Block& block, const uint8_t* products,
                 float* sums) {
  // A copy, like `prepared`: the compiler cannot know that sums are elsewhere.
  const GroupNumbers<kTiles> group = block;
  for (int64_t m = 0; m < rows; ++m, i += prepared.blocks) {
    Accumulators<typename Policy::Acc, 1, kTiles, 1> acc;
    start_block<Policy>(prepared, i, acc);
    WOQ_UNROLL for (int t = 0; t < kTiles; ++t)
        add_products(products + (m * kTiles + t) * kTileRegisterBytes, &acc.v[0][t][0]);
    RowSums<kTiles> row{sums + m * kTiles * kTileRows};
    finish_outputs<Policy, kZeros>(prepared, i, acc, group, row);
  }
}

// sums [rows][kTiles * 16] += up to 32 rows of the activations from m on, times the panel.
template <class Policy, int kTiles, bool kBothHalves>
void multiply_panel_amx(const Gemm<Policy>& gemm, const Panel<Policy, kTiles>& panel, int64_t m,
                        int64_t rows, float* sums, TileRegisters* registers) {
  const PreparedActivations& prepared = gemm.task.a;
  const uint8_t* a = gemm.activations(m, panel.k);
  const auto* operands = reinterpret_cast<const uint8_t*>(panel.operands);
  alignas(64) uint8_t products[kAmxRows * kTiles * kTileRegisterBytes];
  const int64_t statistics = m * prepared.blocks + panel.first_block;
  const auto finish = [&](int64_t b) {
    const auto run = gemm.zeros == ZeroKind::kNone  ? &finish_rows<Policy, ZeroKind::kNone, kTiles>
                     : gemm.zeros == ZeroKind::kMin ? &finish_rows<Policy, ZeroKind::kMin, kTiles>
                                                    : &finish_rows<Policy, ZeroKind::kInt, kTiles>;
    run(prepared, statistics + b, rows, panel.blocks[b], products, sums);
  };
  for (int64_t b = 0; b < panel.block_count; ++b) {
    // Halves and quarters of a multiple of 8 elements are whole operands: no part is shorter.
    const int64_t bytes = panel.blocks[b].steps * Policy::kActBytes;
    const int parts = bytes <= kTileRegisterBytes ? 1 : bytes <= 2 * kTileRegisterBytes ? 2 : 4;
    const int64_t part = bytes / parts;
    registers->configure(static_cast<int>(rows), static_cast<int>(part));
    multiply_block<Policy, kTiles, kBothHalves>(a, prepared.row_bytes, operands, part, parts);
    if (b > 0) finish(b - 1);
    store_products<kTiles, kBothHalves>(products);
    a += bytes;
    operands += bytes / 4 * kTiles * kTileRegisterBytes;
  }
  finish(panel.block_count - 1);
}

template <class Policy, int kTiles>
void multiply_panel_rows_amx(const Gemm<Policy>& gemm, const Panel<Policy, kTiles>& panel,
                             int64_t m, int64_t m1, float* sums, TileRegisters* registers) {
  for (; m < m1; m += kAmxRows, sums += kAmxRows * kTiles * kTileRows) {
    const int64_t rows = std::min(kAmxRows, m1 - m);
    const auto run = rows > kTileRegisterRows ? &multiply_panel_amx<Policy, kTiles, true>
                                              : &multiply_panel_amx<Policy, kTiles, false>;
    run(gemm, panel, m, rows, sums, registers);
  }
}

// Where a panel does not pay, tile registers do not either: few rows are avx512_bf16's code.
template <class Policy>
void gemm_amx(const GemmTask& task) {
  const Gemm<Policy> gemm(task);
  if (!has_many_rows(gemm)) return multiply_few_rows(gemm);
  TileRegisters registers;
  const auto multiply = [&](const auto& panel, int64_t m0, int64_t m1, float* sums) {
    multiply_panel_rows_amx(gemm, panel, m0, m1, sums, &registers);
  };
  int64_t tile = task.t0;
  for (; tile + 2 <= task.t1; tile += 2) multiply_panels<Policy, 2>(gemm, tile, multiply);
  if (tile < task.t1) multiply_panels<Policy, 1>(gemm, tile, multiply);
}

template <class Policy>
constexpr Kernel with_amx(Kernel kernel) {
  kernel.run = &gemm_amx<Policy>;
  return kernel;
}
#define WOQ_AMX_NAME(act, weights) WOQ_KERNEL_NAME(act, weights, "32x32")

}  // namespace woq::WOQ_TARGET_NS
