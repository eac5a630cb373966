// SPDX-License-Identifier: Apache-2.0
#include <woq/woq.h>

int count_runnable_targets() {
  int count = 0;
  for (const woq::TargetTraits& target : woq::kTargets) {
    count += woq::runs_on(target.target, woq::cpu_features()) ? 1 : 0;
  }
  return count;
}
