// SPDX-License-Identifier: Apache-2.0
#include "woq/io/stored_matrix.h"

#include <gtest/gtest.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "support/errors.h"
#include "support/schemes.h"
#include "woq/pack/pack.h"

namespace woq::testing {
namespace {

using io::assemble;
using io::stored_tensors;
using io::StoredTensor;
using io::TensorSpec;

// The tensors of a matrix as a reader has them. The views point into the matrix.
std::map<std::string, TensorView> views_of(QuantizedMatrix& hub) {
  std::map<std::string, TensorView> views;
  for (const StoredTensor& tensor : stored_tensors(hub)) {
    const int64_t bytes = element_count(tensor.spec.shape) * size_of(tensor.spec.type);
    views[tensor.spec.name] = {tensor.spec.type, tensor.spec.shape, tensor.data, bytes};
  }
  return views;
}

QuantizedMatrix example(Random& random) {
  QuantizedMatrix hub =
      random_hub(random, {WeightDtype::kInt4Fullrange, 16, {}, ScaleEncoding::kDouble}, 5, 40);
  scatter_groups(random, &hub);
  return hub;
}

TEST(StoredMatrix, IsAssembledAgainBitForBit) {
  Random random = random_of_test();
  for (const DtypeTraits& dtype : kDtypes) {
    for (const QuantScheme& scheme : schemes_of(dtype)) {
      QuantizedMatrix hub = random_hub(random, scheme, 5, 43);
      const bool scattered = random.coin(), scaled = random.coin();
      if (scattered) scatter_groups(random, &hub);
      if (scaled) scale_inputs(random, &hub);
      const QuantizedMatrix again = assemble(views_of(hub), hub.scheme, 5, 43, scattered, scaled);
      EXPECT_EQ(difference(again, hub), "") << describe(hub);
    }
  }
}

TEST(StoredMatrix, TheListIsTheTensors) {
  Random random = random_of_test();
  QuantizedMatrix hub = example(random);
  const std::vector<TensorSpec> specs = stored_tensors(hub.scheme, 5, 40, true, false);
  const std::vector<StoredTensor> tensors = stored_tensors(hub);
  ASSERT_EQ(specs.size(), tensors.size());
  std::string names;
  for (size_t i = 0; i < specs.size(); ++i) {
    EXPECT_STREQ(specs[i].name, tensors[i].spec.name);
    EXPECT_EQ(specs[i].shape, tensors[i].spec.shape);
    names += concat(specs[i].name, " ", name_of(specs[i].type), shape_text(specs[i].shape), "; ");
  }
  EXPECT_EQ(names,
            "qweight uint8[5, 20]; scales uint8[5, 3]; g_idx int32[40]; scales_absmax float32[1]; "
            "scales_offset float32[1]; scales_sign uint8[2]; ");
}

TEST(StoredMatrix, AnErrorNamesEveryTensorThatIsWrong) {
  Random random = random_of_test();
  QuantizedMatrix hub = example(random);
  std::map<std::string, TensorView> views = views_of(hub);
  views.erase("qweight");
  views["scales"].shape = {5, 4};
  views["g_idx"].type = TensorType::kFp32;
  views["scales_absmax"].bytes = 3;
  views["other"] = {};
  const std::string error =
      error_of<InvalidArgument>([&] { assemble(views, hub.scheme, 5, 40, true, true); });
  EXPECT_MENTIONS(error, "5 things are wrong");
  EXPECT_MENTIONS(error, "'qweight' is missing");
  EXPECT_MENTIONS(error, "'act_scales' is missing");
  EXPECT_MENTIONS(error, "'scales' has shape [5, 4], expected [5, 3]");
  EXPECT_MENTIONS(error, "'g_idx' is float32, expected int32");
  EXPECT_MENTIONS(error, "'scales_absmax' has 3 bytes, expected 4");
}

TEST(StoredMatrix, WhatTensorsHoldIsChecked) {
  Random random = random_of_test();
  QuantizedMatrix hub = example(random);
  hub.g_idx.as<int32_t>()[0] = -1;
  hub.scales.offset = std::numeric_limits<float>::infinity();
  const std::string error =
      error_of<InvalidArgument>([&] { assemble(views_of(hub), hub.scheme, 5, 40, true, false); });
  EXPECT_MENTIONS(error, "g_idx[0] is -1");
  EXPECT_MENTIONS(error, "'scales' decodes to");
}

// Else a matrix would not come back from pack() as it was, and padding would not be packed as 0.
TEST(StoredMatrix, BitsThatFillUpBytesAreCleared) {
  Random random = random_of_test();
  for (const DtypeTraits& dtype : kDtypes) {
    for (const bool scattered : {false, true}) {
      // 3 groups a row, 9 scales: neither rows of codes nor signs end with a byte.
      QuantizedMatrix hub =
          random_hub(random, {dtype.dtype, 16, {}, ScaleEncoding::kDouble}, 3, 43);
      if (scattered) scatter_groups(random, &hub);
      QuantizedMatrix dirty = hub;
      const int filling = static_cast<int>(8 * hub.row_bytes() - 43 * dtype.bits);
      for (int64_t n = 0; n < 3 && filling > 0; ++n)
        dirty.row(n)[hub.row_bytes() - 1] |= static_cast<uint8_t>(1 << (8 - filling));
      if (hub.scales.signs.size() > 0) dirty.scales.signs.data()[1] |= 0x80;  // 9 signs
      const QuantizedMatrix read = assemble(views_of(dirty), hub.scheme, 3, 43, scattered, false);
      EXPECT_EQ(difference(read, hub), "") << describe(hub);
      EXPECT_EQ(difference(unpack(pack(read)), hub), "") << describe(hub);
    }
  }
}

TEST(StoredMatrix, SizesThatOverflowAreRefused) {
  const QuantScheme scheme{WeightDtype::kInt8, 16, {}, ScaleEncoding::kDouble};
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{int64_t{1} << 62, 64},
                                   {64, int64_t{1} << 62},
                                   {int64_t{1} << 31, 64}}) {
    EXPECT_MENTIONS(error_of<InvalidArgument>(
                        [&, n = rows, k = cols] { stored_tensors(scheme, n, k, true, true); }),
                    "at most 2147483647 rows and columns");
  }
  // The largest sizes have numbers of bytes that can be compared with what is there.
  EXPECT_MENTIONS(
      error_of<InvalidArgument>([&] { assemble({}, scheme, kMaxExtent, kMaxExtent, true, true); }),
      "'qweight' is missing");
}

TEST(StoredMatrix, Bfloat16MayComeAsBits) {
  Random random = random_of_test();
  QuantizedMatrix hub =
      random_hub(random, {WeightDtype::kNf4, 16, {}, ScaleEncoding::kBf16}, 2, 32);
  std::map<std::string, TensorView> views = views_of(hub);
  views["scales"].type = TensorType::kUint16;
  EXPECT_EQ(difference(assemble(views, hub.scheme, 2, 32, false, false), hub), "");
  views["scales"].type = TensorType::kFp16;
  EXPECT_MENTIONS(
      error_of<InvalidArgument>([&] { assemble(views, hub.scheme, 2, 32, false, false); }),
      "'scales' is float16, expected bfloat16");
}

}  // namespace
}  // namespace woq::testing
