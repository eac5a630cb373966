// SPDX-License-Identifier: Apache-2.0
#include "woq/kernels/targets/avx2.h"

#include "woq/kernels/select.h"

namespace woq::kernels {

KernelTable kernels_avx2() {
  return avx2::kTable;
}

}  // namespace woq::kernels
