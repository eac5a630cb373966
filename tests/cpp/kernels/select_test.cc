// SPDX-License-Identifier: Apache-2.0
#include "woq/kernels/select.h"

#include <gtest/gtest.h>

#include <string>

#include "support/errors.h"

namespace woq::testing {
namespace {

using namespace kernels;

const CpuFeatureSet kAvx2Features = traits_of(Target::kAvx2).required;
const CpuFeatureSet kAvx512Features = traits_of(Target::kAvx512).required;
const CpuFeatureSet kAvx512VnniFeatures = traits_of(Target::kAvx512Vnni).required;
const CpuFeatureSet kAvx512Bf16Features = traits_of(Target::kAvx512Bf16).required;
constexpr CpuFeatureSet kEverything = (CpuFeatureSet{1} << kCpuFeatureCount) - 1;
constexpr WeightKind kKinds[] = {WeightKind::kU4, WeightKind::kT4, WeightKind::kU8};
constexpr ComputeType kComputes[] = {ComputeType::kFp32, ComputeType::kBf16, ComputeType::kInt8};

bool has_kernel(Target target, WeightKind kind, ComputeType compute) {
  const KernelTable table = kernels_of(target);
  for (int i = 0; i < table.size; ++i) {
    if (table.begin[i].weights == kind && table.begin[i].compute == compute) return true;
  }
  return false;
}

// The rule, said another way: no target of higher priority could have been taken.
void expect_best(const KernelChoice& choice, WeightKind kind, ComputeType compute,
                 CpuFeatureSet usable, const std::string& forced = "") {
  ASSERT_NE(choice.kernel, nullptr);
  EXPECT_EQ(choice.kernel->weights, kind);
  EXPECT_EQ(choice.kernel->compute, compute);
  EXPECT_TRUE(runs_on(choice.kernel->target, usable));
  for (const TargetTraits& other : kTargets) {
    if (other.only_when_forced != nullptr && forced != other.name) continue;
    if (other.target > choice.kernel->target && runs_on(other.target, usable)) {
      EXPECT_FALSE(has_kernel(other.target, kind, compute)) << other.name << " was passed over";
    }
  }
  EXPECT_EQ(choice.considered.back().target, choice.kernel->target);
}

TEST(Select, TakesTheBestThatTheFeaturesAllow) {
  // Every subset of the features.
  for (CpuFeatureSet available = 0; available <= kEverything; ++available) {
    for (const WeightKind kind : kKinds) {
      for (const ComputeType compute : kComputes) {
        expect_best(select_kernel(kind, compute, "", available), kind, compute, available);
      }
    }
    if (HasFailure()) FAIL() << "with features: " << names_of(available);
  }
}

#if WOQ_X86
TEST(Select, KnownMachines) {
  const auto best = [](ComputeType compute, CpuFeatureSet available) {
    return select_kernel(WeightKind::kU4, compute, "", available).kernel->target;
  };
  const auto int8 = [&](CpuFeatureSet available) { return best(ComputeType::kInt8, available); };
  const auto bf16 = [&](CpuFeatureSet available) { return best(ComputeType::kBf16, available); };
  const CpuFeatureSet vnni = features(CpuFeature::kAvxVnni);
  EXPECT_EQ(int8(0), Target::kRef);
  EXPECT_EQ(int8(features(CpuFeature::kAvx2)), Target::kRef) << "without FMA and F16C";
  EXPECT_EQ(int8(kAvx2Features), Target::kAvx2);              // Haswell
  EXPECT_EQ(int8(kAvx2Features | vnni), Target::kAvxVnni);    // Alder Lake
  EXPECT_EQ(int8(kAvx512Features), Target::kAvx512);          // Skylake-X
  EXPECT_EQ(int8(kAvx512VnniFeatures), Target::kAvx512Vnni);  // Cascade Lake
  EXPECT_EQ(int8(kAvx512Bf16Features), Target::kAvx512Vnni);  // Zen 4
  EXPECT_EQ(bf16(kAvx512Bf16Features), Target::kAvx512Bf16);
  EXPECT_EQ(int8(kEverything), Target::kAmx);  // Sapphire Rapids
  EXPECT_EQ(bf16(kEverything), Target::kAmx);
  EXPECT_EQ(best(ComputeType::kFp32, kEverything), Target::kAvx512);
}
#endif

TEST(ChooseCompute, TakesARequestAtItsWord) {
  for (const ComputeType compute : kComputes) {
    for (const DtypeTraits& dtype : kDtypes) {
      const ComputeChoice choice = choose_compute(compute, dtype, "", kEverything);
      EXPECT_EQ(choice.compute, compute);
      EXPECT_EQ(choice.why, "asked for");
    }
  }
}

#if WOQ_X86
TEST(ChooseCompute, AutomaticFollowsTheWeightAndTheMachine) {
  const auto choose = [](WeightDtype dtype, const char* forced, CpuFeatureSet available) {
    const ComputeChoice choice =
        choose_compute(ComputeRequest::automatic(), traits_of(dtype), forced, available);
    EXPECT_EQ(choice.why.rfind("auto: ", 0), 0u) << choice.why;
    return choice.compute;
  };
  for (const DtypeTraits& dtype : kDtypes) {
    const bool narrow = dtype.bits <= 6;
    EXPECT_EQ(choose(dtype.dtype, "", 0), ComputeType::kFp32);
    EXPECT_EQ(choose(dtype.dtype, "ref", kEverything), ComputeType::kFp32);
    for (const CpuFeatureSet available : {kAvx2Features, kAvx512Features, kAvx512VnniFeatures}) {
      EXPECT_EQ(choose(dtype.dtype, "", available),
                narrow ? ComputeType::kInt8 : ComputeType::kFp32);
    }
    EXPECT_EQ(choose(dtype.dtype, "", kEverything),
              narrow ? ComputeType::kInt8 : ComputeType::kBf16);
    EXPECT_EQ(choose(dtype.dtype, "avx2", kEverything),
              narrow ? ComputeType::kInt8 : ComputeType::kFp32);
  }
  const std::string error = error_of<Unsupported>(
      [] { choose_compute(ComputeRequest::automatic(), kDtypes[0], "avx2", CpuFeatureSet{0}); });
  EXPECT_MENTIONS(error, "'avx2' was forced");
}
#endif

TEST(Select, ForcingATargetRunsItsKernelOrOneItIncludes) {
  for (const TargetTraits& forced : kTargets) {
    if (!is_built(forced.target)) continue;
    for (const WeightKind kind : kKinds) {
      for (const ComputeType compute : kComputes) {
        const KernelChoice choice = select_kernel(kind, compute, forced.name, kEverything);
        EXPECT_EQ(choice.forced, forced.name);
        expect_best(choice, kind, compute, usable_features(forced.name, kEverything), forced.name);
        if (has_kernel(forced.target, kind, compute)) {
          EXPECT_EQ(choice.kernel->target, forced.target);
        }
      }
    }
  }
}

TEST(Select, ForcingWhatTheCpuLacksIsUnsupported) {
  const std::string error = error_of<Unsupported>(
      [] { select_kernel(WeightKind::kU4, ComputeType::kInt8, "avx512", kAvx2Features); });
  EXPECT_MENTIONS(error, "'avx512'");
  EXPECT_MENTIONS(error, "avx512f, avx512bw, avx512vl, avx512dq");
  EXPECT_THROW(select_kernel(WeightKind::kU4, ComputeType::kInt8, "sse9", kEverything),
               InvalidArgument);
}

TEST(Select, TheChoiceSaysWhatWasConsideredAndWhy) {
  const KernelChoice capped =
      select_kernel(WeightKind::kU8, ComputeType::kFp32, "avx2", kAvx512Features);
  ASSERT_EQ(capped.considered.size(), 7u) << "every target but ref, which comes behind the chosen";
  for (const ConsideredTarget& entry : capped.considered) {
    if (entry.target == Target::kAvx512) {
      EXPECT_MENTIONS(entry.why, "'avx2' is forced");
    }
    if (entry.target == Target::kAvx512Vnni) {
      EXPECT_MENTIONS(entry.why, "the CPU lacks avx512_vnni");
    }
    EXPECT_FALSE(entry.why.empty());
  }
#if WOQ_X86
  const KernelChoice passed = select_kernel(WeightKind::kU8, ComputeType::kFp32, "", kEverything);
  ASSERT_EQ(passed.considered[1].target, Target::kAmx);
  EXPECT_MENTIONS(passed.considered[1].why, "no kernel of its own for fp32 compute of u8");
#endif
}

}  // namespace
}  // namespace woq::testing
