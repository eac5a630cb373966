// SPDX-License-Identifier: Apache-2.0
#include "woq/kernels/targets/amx.h"

#include "woq/kernels/select.h"

namespace woq::kernels {

KernelTable kernels_amx() {
  return amx::kTable;
}

}  // namespace woq::kernels
