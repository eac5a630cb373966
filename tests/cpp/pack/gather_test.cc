// SPDX-License-Identifier: Apache-2.0
#include "woq/pack/gather.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "support/matrices.h"
#include "support/schemes.h"
#include "woq/quant/dequantize.h"

namespace woq::testing {
namespace {

std::vector<float> dequantized(const QuantizedMatrix& hub, int64_t row) {
  std::vector<float> values(static_cast<size_t>(hub.cols));
  dequantize_row(hub, row, values.data());
  return values;
}

// Some rows, one of them twice, from the last to the first: `out` is not W.
std::vector<int64_t> some_rows(const QuantizedMatrix& hub) {
  std::vector<int64_t> ids = {hub.rows - 1, hub.rows / 2, 0, hub.rows / 2};
  for (int64_t n = hub.rows; n-- > 0;) ids.push_back(n);
  return ids;
}

// "" if the rows are those of the hub, rounded to the type of the output.
std::string wrong_row(const QuantizedMatrix& hub, FloatType type) {
  const PackedMatrix packed = pack(hub, 1);
  const std::vector<int64_t> ids = some_rows(hub);
  const auto count = static_cast<int64_t>(ids.size());
  FloatMatrix out(type, count, hub.cols, 3, 1);
  gather_rows(packed, ids.data(), out.view(), 1);
  for (int64_t i = 0; i < count; ++i) {
    FloatMatrix expected(type, 1, hub.cols);
    const std::vector<float> values = dequantized(hub, ids[static_cast<size_t>(i)]);
    for (int64_t k = 0; k < hub.cols; ++k) {
      expected.set(0, k, values[static_cast<size_t>(k)]);
      if (out.bits(i, k) != expected.bits(0, k))
        return describe(hub) + ", id " + std::to_string(ids[static_cast<size_t>(i)]) + ", column " +
               std::to_string(k);
    }
  }
  return out.changed_outside(0, count, 0, hub.cols);
}

TEST(Gather, RowsAreThoseOfDequantizationBitForBit) {
  constexpr int64_t kShapes[][2] = {{1, 1}, {3, 9}, {17, 64}, {40, 75}, {33, 264}};
  Random random = random_of_test();
  for (const DtypeTraits& dtype : kDtypes) {
    for (const QuantScheme& scheme : schemes_of(dtype)) {
      for (const auto& [n, k] : kShapes) {
        const QuantizedMatrix hub = random_hub(random, scheme, n, k);
        ASSERT_EQ(wrong_row(hub, random.pick(kFloatTypes)), "") << "seed " << random.seed();
      }
    }
  }
}

TEST(Gather, ScatteredGroupsAndActivationScales) {
  Random random = random_of_test();
  for (const DtypeTraits& dtype : kDtypes) {
    for (const bool scattered : {false, true}) {
      for (const bool scaled : {false, true}) {
        QuantizedMatrix hub = random_hub(random, {dtype.dtype, 16, {}, {}}, 21, 75);
        if (scattered) scatter_groups(random, &hub);
        if (scaled) scale_inputs(random, &hub);
        ASSERT_EQ(wrong_row(hub, FloatType::kFp32), "") << "seed " << random.seed();
      }
    }
  }
}

TEST(Gather, ThreadsGiveTheSameRows) {
  Random random = random_of_test();
  const QuantizedMatrix hub = random_hub(random, {WeightDtype::kNf4, 32, {}, {}}, 300, 512);
  const PackedMatrix packed = pack(hub, 1);
  std::vector<int64_t> ids(700);
  for (int64_t& id : ids) id = random.below(hub.rows);
  FloatMatrix one(FloatType::kFp32, 700, 512), four(FloatType::kFp32, 700, 512);
  gather_rows(packed, ids.data(), one.view(), 1);
  gather_rows(packed, ids.data(), four.view(), 4);
  EXPECT_EQ(one.bytes(), four.bytes());
}

TEST(Gather, NothingIsWrittenForAnIdWithoutARow) {
  Random random = random_of_test();
  const PackedMatrix packed = pack(random_hub(random, {WeightDtype::kInt8, 32, {}, {}}, 21, 64), 1);
  FloatMatrix out(FloatType::kFp32, 2, 64);
  // 31 lies in the last tile, whose rows from 21 on are filling.
  for (const int64_t wrong : {int64_t{-1}, int64_t{21}, int64_t{31}, int64_t{1} << 40}) {
    const int64_t ids[] = {3, wrong};
    EXPECT_THROW(gather_rows(packed, ids, out.view(), 1), InvalidArgument) << wrong;
    EXPECT_EQ(out.changed_outside(0, 0, 0, 0), "");
  }
  FloatMatrix narrow(FloatType::kFp32, 1, 63);
  const int64_t id = 0;
  EXPECT_THROW(gather_rows(packed, &id, narrow.view(), 1), InvalidArgument);
  FloatMatrix none(FloatType::kFp32, 0, 64);
  gather_rows(packed, nullptr, none.view(), 1);
}

}  // namespace
}  // namespace woq::testing
