// SPDX-License-Identifier: Apache-2.0
#include "woq/quant/make.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "support/errors.h"
#include "support/schemes.h"
#include "woq/quant/dequantize.h"

namespace woq::testing {
namespace {

std::vector<uint8_t> codes_of(const QuantizedMatrix& hub) {
  std::vector<uint8_t> codes;
  for (int64_t n = 0; n < hub.rows; ++n) {
    for (int64_t k = 0; k < hub.cols; ++k) codes.push_back(static_cast<uint8_t>(hub.code(n, k)));
  }
  return codes;
}

std::vector<float> zeros_of(const QuantizedMatrix& hub) {
  std::vector<float> zeros;
  for (int64_t n = 0; n < hub.rows; ++n) {
    for (int64_t g = 0; g < hub.groups(); ++g) zeros.push_back(hub.zero_point(n, g));
  }
  return zeros;
}

TEST(FromCodes, GivesBackAnyMatrix) {
  Random random = random_of_test();
  for (const DtypeTraits& dtype : kDtypes) {
    for (const ZeroKind zeros : zero_kinds_of(dtype)) {
      if (zeros == ZeroKind::kMin) continue;
      for (const ScaleEncoding scales : made_encodings()) {
        const QuantizedMatrix hub = random_hub(random, {dtype.dtype, 16, zeros, scales}, 7, 37);
        std::vector<float> values;
        for (int64_t i = 0; i < hub.scales.size(); ++i) values.push_back(hub.scales.at(i));
        const std::vector<float> points = zeros_of(hub);
        const QuantizedMatrix again =
            from_codes(codes_of(hub).data(), values.data(),
                       zeros == ZeroKind::kNone ? nullptr : points.data(), hub.scheme, 7, 37);
        EXPECT_EQ(codes_of(again), codes_of(hub)) << describe(hub);
        EXPECT_EQ(zeros_of(again), points) << describe(hub);
        // Decoded values of double quantization have another mean, so another encoding.
        if (scales != ScaleEncoding::kDouble) {
          EXPECT_EQ(difference(again, hub), "");
        }
      }
    }
  }
}

TEST(FromCodes, NamesEverythingThatIsWrong) {
  const QuantScheme scheme{WeightDtype::kInt4Clip, 16, ZeroKind::kInt, ScaleEncoding::kFp32};
  std::vector<uint8_t> codes(2 * 32, 15);
  std::vector<float> scales(4, 1), zeros(4, 8);
  codes[40] = 16;
  zeros[3] = 7.5f;
  const std::string error = error_of<InvalidArgument>(
      [&] { from_codes(codes.data(), scales.data(), zeros.data(), scheme, 2, 32); });
  EXPECT_MENTIONS(error, "the code of row 1, column 8 is 16");
  EXPECT_MENTIONS(error, "the zero point of row 1, group 1 is 7.5");
  EXPECT_MENTIONS(error_of<InvalidArgument>(
                      [&] { from_codes(codes.data(), scales.data(), nullptr, scheme, 2, 32); }),
                  "needs zero points");
}

TEST(WithActScales, MultipliesTheWeight) {
  Random random = random_of_test();
  const QuantizedMatrix hub = random_hub(random, {WeightDtype::kInt8, 16, {}, {}}, 3, 24);
  std::vector<float> multipliers(24);
  for (float& value : multipliers) value = random.uniform(0.5f, 2.0f);
  const QuantizedMatrix scaled = with_act_scales(hub, multipliers.data());
  std::vector<float> plain(3 * 24), got(plain.size());
  dequantize(hub, plain.data(), 1);
  dequantize(scaled, got.data(), 1);
  for (size_t i = 0; i < got.size(); ++i) EXPECT_EQ(got[i], plain[i] * multipliers[i % 24]);
  multipliers[5] = 0;
  EXPECT_MENTIONS(error_of<InvalidArgument>([&] { with_act_scales(hub, multipliers.data()); }),
                  "'act_scales' holds 0 at column 5");
}

TEST(Dequantize, RowsAreThoseOfTheWhole) {
  Random random = random_of_test();
  const QuantizedMatrix hub =
      random_hub(random, {WeightDtype::kNf4, 16, {}, ScaleEncoding::kDouble}, 9, 40);
  std::vector<float> whole(9 * 40), part(3 * 40);
  dequantize(hub, whole.data(), 1);
  dequantize_rows(hub, 4, 7, part.data(), 1);
  EXPECT_EQ(part, std::vector<float>(whole.begin() + 4 * 40, whole.begin() + 7 * 40));
  EXPECT_MENTIONS(error_of<InvalidArgument>([&] { dequantize_rows(hub, 4, 10, part.data(), 1); }),
                  "[4, 10)");
}

}  // namespace
}  // namespace woq::testing
