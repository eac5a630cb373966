// SPDX-License-Identifier: Apache-2.0
// The register widths of the linear algebra on this machine, and forcing one of them.
#pragma once

#include <cstdlib>
#include <vector>

#include "woq/core/cpu.h"
#include "woq/core/target.h"

namespace woq::testing {

// Names the widest target that the linear algebra may use, for the life of this object.
class ForcedTarget {
 public:
  explicit ForcedTarget(const char* name) { setenv("WOQ_FORCE_TARGET", name, 1); }
  ~ForcedTarget() { unsetenv("WOQ_FORCE_TARGET"); }
};

inline std::vector<const char*> widths() {
  std::vector<const char*> names = {"ref"};
  if (runs_on(Target::kAvx2, cpu_features())) names.push_back("avx2");
  if (runs_on(Target::kAvx512, cpu_features())) names.push_back("avx512");
  return names;
}

}  // namespace woq::testing
