// SPDX-License-Identifier: Apache-2.0
#include "woq/kernels/targets/avx512.h"

#include "woq/kernels/select.h"

namespace woq::kernels {

KernelTable kernels_avx512() {
  return avx512::kTable;
}

}  // namespace woq::kernels
