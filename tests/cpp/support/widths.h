// SPDX-License-Identifier: Apache-2.0
// The targets for which linear algebra and ops have code of their own, and forcing one of them.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

#include "woq/linalg/tile.h"
#include "woq/simd/cpu.h"
#include "woq/simd/target.h"

namespace woq::testing {

// Names the widest target that the linear algebra may use, for the life of this object.
class ForcedTarget {
 public:
  explicit ForcedTarget(const char* name) { setenv("WOQ_FORCE_TARGET", name, 1); }
  ForcedTarget(const ForcedTarget&) = delete;
  ForcedTarget& operator=(const ForcedTarget&) = delete;
  ~ForcedTarget() { unsetenv("WOQ_FORCE_TARGET"); }
};

// Of every build, whatever the CPU.
inline std::vector<Target> code_targets() {
#define WOQ_ROW(name, enumerator) Target::enumerator
  return {WOQ_CODE_TARGETS(WOQ_ROW)};
#undef WOQ_ROW
}

// Names of those that run here.
inline std::vector<const char*> widths() {
  std::vector<const char*> names;
  for (const Target target : code_targets()) {
    if (runs_on(target, cpu_features())) names.push_back(name_of(target));
  }
  return names;
}

// Tests of a target's code, forced; skipped where the CPU lacks the target's instructions.
class OnTarget : public ::testing::TestWithParam<Target> {
 protected:
  void SetUp() override {
    const CpuFeatureSet missing = traits_of(GetParam()).required & ~cpu_features();
    if (missing != 0) GTEST_SKIP() << "this CPU lacks " << names_of(missing);
    forced_.emplace(name_of(GetParam()));
#define WOQ_ROW(name, enumerator)          \
  {                                        \
    Target::enumerator, Target::enumerator \
  }
    constexpr simd::Choice<Target> kChoices[] = {WOQ_CODE_TARGETS(WOQ_ROW)};
#undef WOQ_ROW
    ASSERT_EQ(simd::select(kChoices).code, GetParam()) << "not the forced target's code runs";
  }

 private:
  std::optional<ForcedTarget> forced_;
};

inline std::string target_test_name(const ::testing::TestParamInfo<Target>& info) {
  return name_of(info.param);
}

}  // namespace woq::testing
