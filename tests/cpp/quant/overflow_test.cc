// SPDX-License-Identifier: Apache-2.0
// Weights at the end of fp32's range: no quantizer makes infinite ones of them, silently.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "support/errors.h"
#include "support/layers.h"
#include "support/schemes.h"
#include "woq/quant/gptq.h"
#include "woq/quant/hqq.h"
#include "woq/quant/make.h"

namespace woq::testing {
namespace {

constexpr float kMax = std::numeric_limits<float>::max();
constexpr int64_t kRows = 4, kCols = 64;

// Every quantizer on the same weight; its error where it refuses it, else the matrix's largest
// magnitude.
struct Outcome {
  std::string error;
  float largest = 0;
};

template <class Quantize>
Outcome outcome_of(const Quantize& quantize) {
  try {
    const QuantizedMatrix matrix = quantize();
    std::vector<float> values(static_cast<size_t>(matrix.rows * matrix.cols));
    dequantize(matrix, values.data(), 1);
    Outcome outcome;
    for (const float value : values) outcome.largest = std::max(outcome.largest, std::fabs(value));
    return outcome;
  } catch (const InvalidArgument& error) {
    return {error.what(), 0};
  }
}

std::vector<Outcome> outcomes(float weight, QuantScheme scheme) {
  const std::vector<float> w(static_cast<size_t>(kRows * kCols), weight);
  const ConstMatrixView view = view_of(w.data(), kRows, kCols);
  Random random = random_of_test();
  const std::vector<float> x = correlated_inputs(random, 100, kCols);
  Hessian hessian(kCols);
  hessian.add(view_of(x.data(), 100, kCols), 1);
  RtnOptions search, weighted;
  search.mse_range = true;
  weighted.importance.assign(static_cast<size_t>(kCols), 1.0f);
  std::vector<Outcome> result;
  if (scheme.zeros == ZeroKind::kFloat) {
    result.push_back(outcome_of([&] { return quantize_hqq(view, scheme, {}, 1); }));
    return result;
  }
  for (const RtnOptions& options : {RtnOptions{}, search, weighted})
    result.push_back(outcome_of([&] { return quantize_rtn(view, scheme, options, 1); }));
  for (const bool static_groups : {false, true}) {
    GptqOptions options;
    options.static_groups = static_groups;
    result.push_back(
        outcome_of([&] { return quantize_gptq(view, hessian, scheme, options, 1).matrix; }));
  }
  return result;
}

TEST(Overflow, IsRefusedOrDoesNotHappen) {
  for (const DtypeTraits& dtype : kDtypes) {
    for (const ZeroKind zeros : made_zero_kinds(dtype)) {
      for (const ScaleEncoding scales : made_encodings()) {
        for (const int64_t group_size : {-1, 16}) {
          for (const float share : {1.0f, 0.999f, 0.9f, 0.6f}) {
            const QuantScheme scheme{dtype.dtype, group_size, zeros, scales};
            for (const Outcome& outcome : outcomes(share * kMax, scheme)) {
              EXPECT_TRUE(std::isfinite(outcome.largest)) << describe(scheme) << ", " << share;
              if (!outcome.error.empty()) {
                EXPECT_TRUE(contains(outcome.error, "does not fit") ||
                            contains(outcome.error, "overflow"))
                    << outcome.error;
              }
            }
          }
        }
      }
    }
  }
}

// A quarter of the range is room enough for every scheme but those whose scales are fp16.
TEST(Overflow, LargeWeightsThatFitAreQuantized) {
  for (const DtypeTraits& dtype : kDtypes) {
    for (const ZeroKind zeros : made_zero_kinds(dtype)) {
      for (const ScaleEncoding scales : made_encodings()) {
        const QuantScheme scheme{dtype.dtype, 32, zeros, scales};
        const Outcome plain = outcomes(kMax / 4, scheme).front();
        if (scales == ScaleEncoding::kFp16) {
          EXPECT_MENTIONS(plain.error, "does not fit fp16");
        } else {
          EXPECT_EQ(plain.error, "") << describe(scheme);
          EXPECT_NEAR(plain.largest, kMax / 4, kMax / 16) << describe(scheme);
        }
      }
    }
  }
}

TEST(Overflow, ScalesAndMultipliersOfFiles) {
  const QuantScheme scheme{WeightDtype::kInt8, 32};
  const std::vector<uint8_t> codes(static_cast<size_t>(kRows * kCols), 128);  // zeros, all of them
  std::vector<float> scales(static_cast<size_t>(kRows * 2), 1.0f);
  const auto make = [&] {
    return from_codes(codes.data(), scales.data(), nullptr, scheme, kRows, kCols);
  };
  std::vector<float> factors(static_cast<size_t>(kCols), 1.0f);
  factors[40] = 1e37f;
  EXPECT_MENTIONS(error_of<InvalidArgument>([&] { with_act_scales(make(), factors.data()); }),
                  "'act_scales' holds 1e+37 at column 40, whose product with weights of up to 128");
  factors[40] = 1e36f;
  validate(with_act_scales(make(), factors.data()));
  scales[5] = 3e36f;
  EXPECT_MENTIONS(
      error_of<InvalidArgument>(make),
      "the scale of row 2, group 1 is 3e+36, whose product with the largest code (128)");
  QuantizedMatrix float_zeros =
      QuantizedMatrix::allocate({WeightDtype::kInt8, 32, ZeroKind::kFloat}, kRows, kCols);
  float_zeros.qweight.fill_zero();
  scales[5] = 1e10f;
  float_zeros.scales = ScaleTable::encode(scales.data(), kRows, 2, ScaleEncoding::kFp32, false);
  for (int64_t i = 0; i < kRows * 2; ++i) float_zeros.zero_points.as<float>()[i] = 1e20f;
  validate(float_zeros);
  float_zeros.zero_points.as<float>()[5] = -1e30f;
  EXPECT_MENTIONS(error_of<InvalidArgument>([&] { validate(float_zeros); }), "row 2, group 1");
}

// One scale a row: the corrections of later columns pass the end of fp32. Codes of them would mean
// nothing.
TEST(Overflow, CorrectionsOfGptqAreRefusedWithStaticScalesToo) {
  // R = [[1, 1000], [0, 1]]: the second column takes up a thousand times the first one's error.
  const double h[4] = {1e6 + 1, 1000, 1000, 1};
  const Hessian hessian = Hessian::from_matrix(h, 2, 10);
  const std::vector<float> w = {1.18e37f, 2.4e37f};
  GptqOptions options;
  options.damp = 0;
  options.name = "proj";
  for (const bool fp64 : {false, true}) {
    options.fp64 = fp64;
    EXPECT_MENTIONS(error_of<InvalidArgument>([&] {
                      quantize_gptq(view_of(w.data(), 1, 2), hessian, {WeightDtype::kInt4Clip, -1},
                                    options, 1);
                    }),
                    "GPTQ's corrections of 'proj' overflow in row 0");
  }
}

}  // namespace
}  // namespace woq::testing
