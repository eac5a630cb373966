// SPDX-License-Identifier: Apache-2.0
#include "woq/kernels/targets/amx.h"

#include "woq/kernels/select.h"

namespace woq {

KernelTable kernels_amx() {
  return kernels::amx::kTable;
}

}  // namespace woq
