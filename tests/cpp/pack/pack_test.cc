// SPDX-License-Identifier: Apache-2.0
#include "woq/pack/pack.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <utility>

#include "support/errors.h"
#include "support/schemes.h"

namespace woq::testing {
namespace {

constexpr int64_t kShapes[][2] = {{1, 1},    {1, 7},    {2, 8},   {3, 9},   {15, 16},
                                  {16, 1},   {16, 24},  {17, 31}, {31, 33}, {32, 64},
                                  {33, 129}, {48, 200}, {50, 203}};

TEST(Pack, UnpackingGivesTheSameBits) {
  Random random = random_of_test();
  for (const DtypeTraits& dtype : kDtypes) {
    for (const QuantScheme& scheme : schemes_of(dtype)) {
      for (const auto& [n, k] : kShapes) {
        const QuantizedMatrix hub = random_hub(random, scheme, n, k);
        ASSERT_EQ(difference(unpack(pack(hub, 1), 1), hub), "")
            << describe(hub) << ", seed " << random.seed();
      }
    }
  }
}

TEST(Pack, OrdersAndScalesOfTheInputSurvive) {
  Random random = random_of_test();
  for (const DtypeTraits& dtype : kDtypes) {
    for (const int64_t group_size : kGroupSizes) {
      for (const auto& [n, k] : kShapes) {
        QuantizedMatrix hub = random_hub(random, {dtype.dtype, group_size, {}, {}}, n, k);
        if (random.coin()) scatter_groups(random, &hub);
        if (random.coin()) scale_inputs(random, &hub);
        ASSERT_EQ(difference(unpack(pack(hub, 1), 1), hub), "")
            << describe(hub) << ", seed " << random.seed();
      }
    }
  }
}

TEST(Pack, GroupsOfTheWrongSizeAreNamed) {
  Random random = random_of_test();
  QuantizedMatrix hub = random_hub(random, {WeightDtype::kNf4, 16, {}, {}}, 5, 40);
  scatter_groups(random, &hub);
  hub.g_idx.as<int32_t>()[7] = 3;
  EXPECT_MENTIONS(error_of<InvalidArgument>([&] { pack(hub, 1); }),
                  "g_idx[7] is 3, but there are 3 groups");
  for (int64_t k = 0; k < 40; ++k) hub.g_idx.as<int32_t>()[k] = k < 17 ? 0 : 1;
  EXPECT_MENTIONS(error_of<InvalidArgument>([&] { pack(hub, 1); }),
                  "more than 16 columns into group 0");
}

TEST(Pack, ThreadsMakeNoDifference) {
  Random random = random_of_test();
  const QuantizedMatrix hub = random_hub(
      random, {WeightDtype::kInt4Fullrange, 16, ZeroKind::kInt, ScaleEncoding::kDouble}, 251, 523);
  ASSERT_GE(hub.rows * hub.cols, 4 * kElementGrain);
  const PackedMatrix one = pack(hub, 1);
  for (int threads = 2; threads <= 4; ++threads) {
    const PackedMatrix many = pack(hub, threads);
    EXPECT_TRUE(same_bytes(many.data, one.data));
    EXPECT_EQ(difference(unpack(many, threads), hub), "");
  }
}

// The layout as packed_matrix.h states it, byte by byte.
TEST(Pack, CodesLieWhereTheLayoutSays) {
  Random random = random_of_test();
  for (const WeightDtype dtype : {WeightDtype::kNf4, WeightDtype::kInt8}) {
    const QuantizedMatrix hub = random_hub(random, {dtype, 16, {}, {}}, 21, 43);
    const PackedMatrix packed = pack(hub, 1);
    ASSERT_EQ(packed.tiles(), 2);
    const auto code = [&](int64_t n, int64_t k) { return n < 21 && k < 43 ? hub.code(n, k) : 0; };
    for (int64_t t = 0; t < 2; ++t) {
      const int64_t step_bytes = hub.dtype().bits * 16;
      for (int64_t step = 0; step < 6; ++step) {
        // Groups of two steps, each behind 16 scales of four bytes.
        const uint8_t* const codes = packed.tile(t) + (step / 2 + 1) * 64 + step * step_bytes;
        for (int64_t lane = 0; lane < 16; ++lane) {
          for (int64_t j = 0; j < 4; ++j) {
            const int64_t n = 16 * t + lane, k = 8 * step + j;
            if (hub.dtype().bits == 4) {
              const int byte = codes[4 * lane + j];
              ASSERT_EQ(byte, code(n, k) | code(n, k + 4) << 4) << n << ", " << k;
            } else {
              ASSERT_EQ(codes[4 * lane + j], code(n, k));
              ASSERT_EQ(codes[64 + 4 * lane + j], code(n, k + 4));
            }
          }
        }
      }
    }
  }
}

// The widths with planes: bit `bit` of the code of lane, k + j in a step at `step`.
int bit_in_step(const uint8_t* step, int bits, int bit, int64_t lane, int64_t j) {
  const int64_t half = j / 4, place = 4 * lane + j % 4;
  if (bits >= 4 && bit < 4) return step[place] >> (4 * half + bit) & 1;
  const uint8_t* const plane = bits >= 4 ? step + 64 + 16 * (bit - 4) : step + 16 * bit;
  return plane[8 * half + place / 8] >> (place % 8) & 1;
}

TEST(Pack, BitsLieInThePlanesOfTheLayout) {
  Random random = random_of_test();
  for (const WeightDtype dtype : {WeightDtype::kInt2, WeightDtype::kInt3, WeightDtype::kInt5,
                                  WeightDtype::kInt6, WeightDtype::kInt7}) {
    const QuantizedMatrix hub = random_hub(random, {dtype, 16, {}, {}}, 21, 43);
    const PackedMatrix packed = pack(hub, 1);
    const int bits = hub.dtype().bits;
    for (int64_t n = 0; n < 32; ++n) {
      for (int64_t k = 0; k < 48; ++k) {
        const uint8_t* const step = packed.tile(n / 16) + (k / 16 + 1) * 64 + k / 8 * bits * 16;
        const int expected = n < 21 && k < 43 ? hub.code(n, k) : 0;
        for (int bit = 0; bit < bits; ++bit) {
          ASSERT_EQ(bit_in_step(step, bits, bit, n % 16, k % 8), expected >> bit & 1)
              << hub.dtype().name << " " << n << ", " << k << ", bit " << bit;
        }
      }
    }
  }
}

TEST(Pack, ScalesAndZerosPrecedeTheirCodes) {
  Random random = random_of_test();
  const QuantizedMatrix hub =
      random_hub(random, {WeightDtype::kInt4Clip, 16, ZeroKind::kInt, {}}, 21, 43);
  const PackedMatrix packed = pack(hub, 1);
  for (int64_t n = 0; n < 32; ++n) {
    for (int64_t g = 0; g < 3; ++g) {
      const uint8_t* const group = packed.tile(n / 16) + g * (64 + 16 + 2 * 64);
      float scale = 0;
      std::memcpy(&scale, group + n % 16 * 4, 4);
      const int zero = group[64 + n % 16];
      EXPECT_EQ(scale, n < 21 ? hub.scales.at(n, g) : 0.0f);
      EXPECT_EQ(zero, n < 21 ? static_cast<int>(hub.zero_point(n, g)) : 0);
    }
  }
}

TEST(Pack, TilesAreAligned) {
  Random random = random_of_test();
  for (const auto& [n, k] : kShapes) {
    const PackedMatrix packed = pack(
        random_hub(random, {WeightDtype::kInt4Fullrange, 16, {}, ScaleEncoding::kDouble}, n, k), 1);
    for (int64_t t = 0; t < packed.tiles(); ++t) {
      EXPECT_EQ(reinterpret_cast<uintptr_t>(packed.tile(t)) % 64, 0u);
    }
    EXPECT_EQ(packed.data.size(), packed.tiles() * packed.tile_bytes());
  }
}

// Layers of SmolLM2-135M, Llama 3 8B and Qwen2.5 0.5B. Sizes follow from shapes, so nothing large
// is filled.
TEST(Pack, RealLayersGrowByAtMostFivePercent) {
  constexpr int64_t kLayers[][2] = {{576, 576},    {192, 576},   {1536, 576},  {576, 1536},
                                    {49152, 576},  {4096, 4096}, {1024, 4096}, {14336, 4096},
                                    {4096, 14336}, {896, 896},   {128, 896},   {4864, 896},
                                    {896, 4864},   {151936, 896}};
  for (const DtypeTraits& dtype : kDtypes) {
    for (const ZeroKind zeros : zero_kinds_of(dtype)) {
      for (const ScaleEncoding scales : scale_encodings()) {
        for (const int64_t group_size : {-1, 32, 64, 128}) {
          for (const auto& [n, k] : kLayers) {
            PackedMatrix packed;
            packed.scheme = {dtype.dtype, group_size, zeros, scales};
            if (!is_scheme(packed.scheme)) continue;
            packed.rows = n;
            packed.cols = k;
            const int64_t count = n * packed.groups();
            const bool nested = scales == ScaleEncoding::kDouble;
            const int64_t blocks = nested ? (count + 255) / 256 * 4 : 0;
            const int64_t signs = packed.signed_double_scales() ? count / 8 : 0;
            const int64_t zero_bytes = zeros == ZeroKind::kInt     ? 1
                                       : zeros == ZeroKind::kFloat ? 4
                                       : zeros == ZeroKind::kMin   ? stored_scale_bytes(scales)
                                                                   : 0;
            const int64_t hub = n * k * dtype.bits / 8 + count * stored_scale_bytes(scales) +
                                blocks + signs + count * zero_bytes;
            const int64_t bytes = packed.tiles() * packed.tile_bytes() + blocks;
            EXPECT_LE(static_cast<double>(bytes), 1.05 * static_cast<double>(hub))
                << describe(packed.scheme) << ", N=" << n << " K=" << k;
          }
        }
      }
    }
  }
}

// The sizes above, on real matrices.
TEST(Pack, BytesAreWhatIsAllocated) {
  Random random = random_of_test();
  for (const ScaleEncoding scales : scale_encodings()) {
    const QuantizedMatrix hub =
        random_hub(random, {WeightDtype::kInt4Fullrange, 32, ZeroKind::kNone, scales}, 192, 576);
    const PackedMatrix packed = pack(hub, 1);
    EXPECT_EQ(packed.bytes(),
              packed.data.size() + packed.block_absmax.size() + packed.scale_supers.size());
    EXPECT_LE(static_cast<double>(packed.bytes()), 1.05 * static_cast<double>(hub.bytes()));
  }
}

}  // namespace
}  // namespace woq::testing
