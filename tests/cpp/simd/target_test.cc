// SPDX-License-Identifier: Apache-2.0
#include "woq/simd/target.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "support/errors.h"

namespace woq::testing {
namespace {

const CpuFeatureSet kAvx512Features = traits_of(Target::kAvx512).required;
constexpr CpuFeatureSet kEverything = (CpuFeatureSet{1} << kCpuFeatureCount) - 1;

TEST(Target, NamesParseBack) {
  for (const TargetTraits& traits : kTargets) {
    EXPECT_EQ(parse_target(traits.name), traits.target);
    EXPECT_EQ(&traits_of(traits.target), &traits);
  }
}

TEST(Target, AnUnknownNameListsTheKnownOnes) {
  const std::string error = error_of<InvalidArgument>([] { parse_target("avx1024"); });
  EXPECT_MENTIONS(error, "'avx1024'");
  for (const TargetTraits& traits : kTargets) EXPECT_MENTIONS(error, traits.name);
}

TEST(Target, RefRunsEverywhereAndAllRunWithEverything) {
  EXPECT_TRUE(runs_on(Target::kRef, 0));
  for (const TargetTraits& traits : kTargets) {
    EXPECT_TRUE(runs_on(traits.target, kEverything));
    EXPECT_TRUE(runs_on(traits.target, traits.required));
  }
}

TEST(Target, EveryRequiredFeatureCounts) {
  for (const TargetTraits& traits : kTargets) {
    for (int i = 0; i < kCpuFeatureCount; ++i) {
      const CpuFeatureSet feature = CpuFeatureSet{1} << i;
      EXPECT_EQ(runs_on(traits.target, kEverything & ~feature), (traits.required & feature) == 0)
          << traits.name << " without " << kCpuFeatureNames[i];
    }
  }
}

TEST(Target, NoCapMeansWhatTheCpuHas) {
  EXPECT_EQ(usable_features("", kEverything), kEverything);
  EXPECT_EQ(usable_features("", 0), 0u);
}

TEST(Target, ForcingCapsTheFeatures) {
  for (const TargetTraits& traits : kTargets) {
    EXPECT_EQ(usable_features(traits.name, kEverything),
              traits.only_when_forced == nullptr ? traits.required : kEverything)
        << traits.name;
  }
}

TEST(Target, OnlyAnEngineWaitsToBeForced) {
  for (const TargetTraits& traits : kTargets) {
    EXPECT_EQ(traits.only_when_forced != nullptr, traits.target == Target::kOneDnn) << traits.name;
  }
  EXPECT_THROW(usable_features("onednn", kAvx512Features), Unsupported);
}

TEST(Target, ForcingWhatTheCpuLacksNamesTheMissingFeatures) {
  const std::string error =
      error_of<Unsupported>([] { usable_features("avx512_vnni", kAvx512Features); });
  EXPECT_MENTIONS(error, "'avx512_vnni'");
  EXPECT_MENTIONS(error, "lacks: avx512_vnni;");
  EXPECT_MENTIONS(error, "WOQ_FORCE_TARGET");
  EXPECT_THROW(usable_features("avx2", 0), Unsupported);
  EXPECT_THROW(usable_features("no such target", kEverything), InvalidArgument);
}

TEST(Target, TheEnvironmentIsReadAtEachCall) {
  const char* const before = std::getenv("WOQ_FORCE_TARGET");
  const std::string saved = before != nullptr ? before : "";
  setenv("WOQ_FORCE_TARGET", "ref", 1);
  EXPECT_EQ(forced_target(), "ref");
  setenv("WOQ_FORCE_TARGET", "avx2", 1);
  EXPECT_EQ(forced_target(), "avx2");
  unsetenv("WOQ_FORCE_TARGET");
  EXPECT_EQ(forced_target(), "");
  if (before != nullptr) setenv("WOQ_FORCE_TARGET", saved.c_str(), 1);
}

TEST(Cpu, FeatureNamesFollowTheEnumeration) {
  EXPECT_EQ(names_of(0), "");
  EXPECT_EQ(names_of(features(CpuFeature::kAvx2)), "avx2");
  EXPECT_EQ(names_of(features(CpuFeature::kAvx512Bf16)), "avx512_bf16");
  EXPECT_EQ(names_of(features(CpuFeature::kAmxBf16)), "amx_bf16");
  EXPECT_EQ(names_of(features(CpuFeature::kAvx2, CpuFeature::kFma)), "avx2, fma");
  EXPECT_EQ(std::size(kCpuFeatureNames), static_cast<size_t>(kCpuFeatureCount));
}

TEST(Cpu, OptionsOfTheCompilerNameFeatures) {
  EXPECT_EQ(simd::features_of_options(""), 0u);
  EXPECT_EQ(simd::features_of_options("avxvnni,fma"),
            features(CpuFeature::kAvxVnni, CpuFeature::kFma));
  EXPECT_ANY_THROW(simd::features_of_options("avx2,,fma"));
  EXPECT_ANY_THROW(simd::features_of_options("avx1024"));
}

TEST(Target, SelectTakesTheLastThatRuns) {
  constexpr simd::Choice<int> kChoices[] = {
      {Target::kRef, 1}, {Target::kAvx2, 2}, {Target::kAvx512Bf16, 3}};
  EXPECT_EQ(simd::select(kChoices, 0).code, 1);
  EXPECT_EQ(simd::select(kChoices, kAvx512Features).code, 2);
  EXPECT_EQ(simd::select(kChoices, kEverything).code, 3);
}

#if WOQ_X86
// The compiler's own detection is another implementation of the same question.
TEST(Cpu, DetectionAgreesWithTheCompilers) {
  const CpuFeatureSet found = cpu_features();
  const auto has = [&](CpuFeature feature) { return (found & features(feature)) != 0; };
  __builtin_cpu_init();
  EXPECT_EQ(has(CpuFeature::kAvx2), __builtin_cpu_supports("avx2") != 0);
  EXPECT_EQ(has(CpuFeature::kFma), __builtin_cpu_supports("fma") != 0);
  EXPECT_EQ(has(CpuFeature::kAvx512f), __builtin_cpu_supports("avx512f") != 0);
  EXPECT_EQ(has(CpuFeature::kAvx512bw), __builtin_cpu_supports("avx512bw") != 0);
  EXPECT_EQ(has(CpuFeature::kAvx512vl), __builtin_cpu_supports("avx512vl") != 0);
  EXPECT_EQ(has(CpuFeature::kAvx512dq), __builtin_cpu_supports("avx512dq") != 0);
  EXPECT_EQ(has(CpuFeature::kAvx512Vnni), __builtin_cpu_supports("avx512vnni") != 0);
  EXPECT_EQ(has(CpuFeature::kAvx512Bf16), __builtin_cpu_supports("avx512bf16") != 0);
}
#endif

}  // namespace
}  // namespace woq::testing
