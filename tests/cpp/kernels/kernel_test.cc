// SPDX-License-Identifier: Apache-2.0
// The kernel tables themselves: names are type signatures, targets are filled in, blocks tile K.
#include "woq/kernels/kernel.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <tuple>

#include "support/errors.h"
#include "support/gemm.h"

namespace woq::testing {
namespace {

// "8x32" and the like: two positive numbers.
bool is_tile(const std::string& text) {
  const size_t x = text.find('x');
  if (x == std::string::npos) return false;
  for (const std::string& number : {text.substr(0, x), text.substr(x + 1)}) {
    const bool digits = number.find_first_not_of("0123456789") == std::string::npos;
    if (number.empty() || number[0] == '0' || !digits) return false;
  }
  return true;
}

// gemm_<activations>_<weights>_<rows>x<columns>_<target>, see kernel.h.
TEST(Kernels, NamesAreTheirSignatures) {
  const char* const formats[] = {"f32", "f32b", "bf16", "s8"};
  std::set<std::string> names;
  for (const Kernel* kernel : all_kernels()) {
    const std::string name = kernel->name;
    const std::string before = std::string("gemm_") + formats[static_cast<int>(kernel->format)] +
                               "_" + kWeightKindNames[static_cast<int>(kernel->weights)] + "_";
    const std::string behind = std::string("_") + name_of(kernel->target);
    ASSERT_GT(name.size(), before.size() + behind.size()) << name;
    EXPECT_EQ(name.substr(0, before.size()), before);
    EXPECT_EQ(name.substr(name.size() - behind.size()), behind);
    EXPECT_PRED1(is_tile, name.substr(before.size(), name.size() - before.size() - behind.size()));
    EXPECT_TRUE(names.insert(name).second) << name << " occurs twice";
    EXPECT_NE(kernel->run, nullptr);
    EXPECT_NE(kernel->prepare, nullptr);
  }
}

TEST(Kernels, TilesAreRecognized) {
  EXPECT_TRUE(is_tile("1x1"));
  EXPECT_TRUE(is_tile("12x64"));
  for (const char* text : {"", "x", "1", "1x", "x1", "0x1", "1x2x3", "4X16", "4x16_"}) {
    EXPECT_FALSE(is_tile(text)) << text;
  }
}

TEST(Kernels, TablesHoldTheirOwnTargetAndNoPairTwice) {
  for (const TargetTraits& target : kTargets) {
    const KernelTable table = kernels_of(target.target);
    std::set<std::tuple<WeightKind, ComputeType>> pairs;
    for (int i = 0; i < table.size; ++i) {
      const Kernel& kernel = table.begin[i];
      EXPECT_EQ(kernel.target, target.target) << kernel.name;
      EXPECT_TRUE(pairs.emplace(kernel.weights, kernel.compute).second) << kernel.name;
      const bool int8 = kernel.compute == ComputeType::kInt8;
      EXPECT_EQ(int8, kernel.format == ActFormat::kS8) << kernel.name;
      EXPECT_EQ(kernel.compute == ComputeType::kFp32, kernel.format == ActFormat::kF32)
          << kernel.name;
    }
  }
}

TEST(Kernels, TheReferenceComputesEverything) {
  EXPECT_EQ(kernels_of(Target::kRef).size, 9);
}

#if WOQ_X86
TEST(Kernels, EveryTargetAddsSomething) {
  for (const TargetTraits& target : kTargets) {
    // Optional; whether it is here is onednn_test.cc's.
    if (target.target == Target::kOneDnn) continue;
    EXPECT_TRUE(is_built(target.target)) << target.name;
  }
}
#endif

TEST(Kernels, EveryDtypeHasAKind) {
  EXPECT_EQ(kind_of(traits_of(WeightDtype::kInt8)), WeightKind::kU8);
  EXPECT_EQ(kind_of(traits_of(WeightDtype::kInt4Clip)), WeightKind::kU4);
  EXPECT_EQ(kind_of(traits_of(WeightDtype::kInt4Fullrange)), WeightKind::kU4);
  EXPECT_EQ(kind_of(traits_of(WeightDtype::kNf4)), WeightKind::kT4);
  EXPECT_EQ(kind_of(traits_of(WeightDtype::kFp4E2m1)), WeightKind::kT4);
  EXPECT_EQ(kind_of(traits_of(WeightDtype::kFp4E2m1Bnb)), WeightKind::kT4);
}

TEST(ComputeTypes, ParseBackAndListTheKnownOnes) {
  for (const ComputeType type : {ComputeType::kFp32, ComputeType::kBf16, ComputeType::kInt8}) {
    const ComputeRequest request = parse_compute_request(name_of(type));
    EXPECT_EQ(request.compute(), type);
    EXPECT_FALSE(request.is_automatic());
    EXPECT_STREQ(request.name(), name_of(type));
  }
  EXPECT_TRUE(parse_compute_request("auto").is_automatic());
  EXPECT_STREQ(parse_compute_request("auto").name(), "auto");
  const std::string error = error_of<InvalidArgument>([] { parse_compute_request("fp16"); });
  EXPECT_MENTIONS(error, "'fp16'");
  EXPECT_MENTIONS(error, "fp32, bf16, int8");
}

TEST(BlockGeometry, BlocksTileEveryRow) {
  for (int64_t k = 1; k <= 420; ++k) {
    for (const int64_t group_size : kGroupSizes) {
      PackedMatrix weights;
      weights.scheme.group_size = group_size;
      weights.rows = 1;
      weights.cols = k;
      const BlockGeometry geometry(weights);
      int64_t blocks = 0, begin = 0;
      for (int64_t g = 0; g < geometry.groups; ++g) {
        const int64_t end = geometry.group_end(g);
        ASSERT_GT(end, begin);
        ASSERT_TRUE(end % kStep == 0) << "kernels read whole steps";
        blocks += (end - begin + kBlock - 1) / kBlock;
        begin = end;
      }
      ASSERT_EQ(begin, geometry.padded_cols);
      ASSERT_EQ(blocks, geometry.blocks()) << "K=" << k << " g" << group_size;
    }
  }
}

}  // namespace
}  // namespace woq::testing
