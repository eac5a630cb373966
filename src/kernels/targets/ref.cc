// SPDX-License-Identifier: Apache-2.0
#include "woq/kernels/targets/ref.h"

namespace woq {

KernelTable kernels_ref() {
  return ref::kTable;
}

}  // namespace woq
