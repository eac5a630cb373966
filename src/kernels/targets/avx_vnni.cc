// SPDX-License-Identifier: Apache-2.0
#include "woq/kernels/targets/avx_vnni.h"

#include "woq/kernels/select.h"

namespace woq::kernels {

KernelTable kernels_avx_vnni() {
  return avx_vnni::kTable;
}

}  // namespace woq::kernels
