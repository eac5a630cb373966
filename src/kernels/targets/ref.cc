// SPDX-License-Identifier: Apache-2.0
#include "woq/kernels/targets/ref.h"

#include "woq/kernels/select.h"

namespace woq {

KernelTable kernels_ref() {
  return kernels::ref::kTable;
}

}  // namespace woq
