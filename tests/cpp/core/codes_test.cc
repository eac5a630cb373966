// SPDX-License-Identifier: Apache-2.0
#include "woq/core/codes.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "support/random.h"

namespace woq::testing {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// What the tables were published as, apart from ours: bitsandbytes' code order and OCP's encoding.
struct KnownTable {
  const char* name;
  const Codebook* book;
  float values[16];
  std::vector<int> aliases;  // codes that repeat the value 0 and are not code_of(0)
  bool ties_to_even;         // else to the lower value
  double image_error;        // largest |image * unit - value|, as stated beside the table
};

const KnownTable kTables[] = {
    {"nf4",
     &kNf4Codebook,
     {-1.0f, -0.6961928f, -0.52507305f, -0.3949175f, -0.28444138f, -0.18477343f, -0.091050036f,
      0.0f, 0.0795803f, 0.1609302f, 0.2461123f, 0.33791524f, 0.44070983f, 0.562617f, 0.72295684f,
      1.0f},
     {},
     false,
     0.0037},
    {"fp4_e2m1",
     &kFp4E2m1Codebook,
     {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, 0, -0.5f, -1, -1.5f, -2, -3, -4, -6},
     {8},
     true,
     0.0},
    {"fp4_e2m1_bnb",
     &kFp4BnbCodebook,
     {0, 0.0625f / 12, 8.0f / 12, 1, 4.0f / 12, 0.5f, 2.0f / 12, 0.25f, 0, -0.0625f / 12,
      -8.0f / 12, -1, -4.0f / 12, -0.5f, -2.0f / 12, -0.25f},
     {8},
     false,
     0.0053},
    {"iq4_nl",
     &kIq4NlCodebook,
     {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113},
     {},
     false,
     0.0},
};

class Codes : public ::testing::TestWithParam<KnownTable> {
 protected:
  const Codebook& book() const { return *GetParam().book; }
  bool is_alias(int code) const {
    const auto& aliases = GetParam().aliases;
    return std::find(aliases.begin(), aliases.end(), code) != aliases.end();
  }

  // Codes but the aliases, by ascending value.
  std::vector<int> sorted_codes() const {
    std::vector<int> codes;
    for (int c = 0; c < 16; ++c) {
      if (!is_alias(c)) codes.push_back(c);
    }
    std::sort(codes.begin(), codes.end(),
              [&](int a, int b) { return book().values[a] < book().values[b]; });
    return codes;
  }
};

TEST_P(Codes, ValuesAreThePublishedOnes) {
  for (int c = 0; c < 16; ++c) EXPECT_EQ(book().values[c], GetParam().values[c]) << "code " << c;
}

TEST_P(Codes, EveryCodeRoundTrips) {
  for (int c = 0; c < 16; ++c) {
    const int encoded = encode(book(), book().values[c]);
    if (is_alias(c)) {
      EXPECT_EQ(book().values[encoded], 0.0f);
    } else {
      EXPECT_EQ(encoded, c);
    }
  }
}

TEST_P(Codes, MidpointsGoToTheStatedSide) {
  const std::vector<int> codes = sorted_codes();
  for (size_t i = 0; i + 1 < codes.size(); ++i) {
    const float low = book().values[codes[i]], high = book().values[codes[i + 1]];
    const float middle = (low + high) / 2;
    // The even one of two e2m1 codes is the one with the even mantissa, whatever the sign.
    const bool to_high = GetParam().ties_to_even && codes[i + 1] % 2 == 0;
    const auto value = [&](float x) { return book().values[encode(book(), x)]; };
    EXPECT_EQ(value(std::nextafter(middle, -kInfinity)), low) << middle;
    EXPECT_EQ(value(middle), to_high ? high : low) << middle;
    EXPECT_EQ(value(std::nextafter(middle, kInfinity)), high) << middle;
  }
}

TEST_P(Codes, OutsideTheTableItsEndsAreTaken) {
  const std::vector<int> codes = sorted_codes();
  for (const float x : {200.0f, 1e30f, kInfinity}) {
    EXPECT_EQ(encode(book(), x), codes.back());
    EXPECT_EQ(encode(book(), -x), codes.front());
  }
}

TEST_P(Codes, EncodingIsNearestAndMonotonic) {
  Random random = random_of_test();
  const float end = *std::max_element(book().values, book().values + 16);
  std::vector<float> xs;
  for (int i = 0; i < 20000; ++i) xs.push_back(random.uniform(-1.2f * end, 1.2f * end));
  std::sort(xs.begin(), xs.end());
  float previous = -kInfinity;
  for (const float x : xs) {
    const float value = book().values[encode(book(), x)];
    float best = kInfinity;
    for (const float candidate : book().values) best = std::min(best, std::fabs(x - candidate));
    ASSERT_EQ(std::fabs(x - value), best) << "x = " << x << ", seed " << random.seed();
    ASSERT_GE(value, previous);
    previous = value;
  }
}

TEST_P(Codes, ImageHasTheStatedError) {
  double worst = 0;
  for (int c = 0; c < 16; ++c) {
    const double image =
        static_cast<double>(book().image[c]) * static_cast<double>(book().image_unit);
    worst = std::max(worst, std::fabs(image - static_cast<double>(book().values[c])));
    EXPECT_NE(book().image[c], -128) << "would break kernels that negate";
  }
  // The float unit's own rounding is below 1e-6.
  EXPECT_LE(worst, GetParam().image_error + 1e-6);
  EXPECT_GE(worst, GetParam().image_error * 0.9);
}

TEST_P(Codes, NegativeZeroEncodesAsZero) {
  EXPECT_EQ(encode(book(), -0.0f), encode(book(), 0.0f));
}

INSTANTIATE_TEST_SUITE_P(All, Codes, ::testing::ValuesIn(kTables),
                         [](const auto& test) { return test.param.name; });

TEST(CodesFp4Bnb, TheTwoZerosSplitAtZero) {
  EXPECT_EQ(encode(kFp4BnbCodebook, 0.0f), 0);
  EXPECT_EQ(encode(kFp4BnbCodebook, -0.001f), 0);
  EXPECT_EQ(encode(kFp4BnbCodebook, std::numeric_limits<float>::denorm_min()), 8);
  EXPECT_EQ(encode(kFp4BnbCodebook, 0.001f), 8);
  EXPECT_FALSE(std::signbit(kFp4BnbCodebook.values[8]));
}

TEST(CodesFp4E2m1, MinusZeroIsReadButNeverWritten) {
  EXPECT_TRUE(std::signbit(kFp4E2m1Codebook.values[8]));
  Random random = random_of_test();
  for (int i = 0; i < 20000; ++i) {
    ASSERT_NE(encode(kFp4E2m1Codebook, random.uniform(-0.5f, 0.5f)), 8);
  }
}

// e2m1's value follows from its bits; the table must not be the only witness.
TEST(CodesFp4E2m1, ValuesFollowFromTheBits) {
  for (int c = 0; c < 16; ++c) {
    const int exponent = c >> 1 & 3, mantissa = c & 1;
    const double magnitude =
        exponent == 0 ? 0.5 * mantissa : std::ldexp(1.0 + 0.5 * mantissa, exponent - 1);
    EXPECT_EQ(kFp4E2m1Codebook.values[c], (c & 8) != 0 ? -magnitude : magnitude) << c;
  }
}

// nf4's image is 127 * value, rounded.
TEST(CodesNf4, ImageRoundsTheValues) {
  for (int c = 0; c < 16; ++c) {
    EXPECT_EQ(kNf4Codebook.image[c], std::lround(127.0 * static_cast<double>(kNf4Values[c]))) << c;
  }
}

}  // namespace
}  // namespace woq::testing
