// SPDX-License-Identifier: Apache-2.0
#include "woq/kernels/targets/avx512_vnni.h"

#include "woq/kernels/select.h"

namespace woq::kernels {

KernelTable kernels_avx512_vnni() {
  return avx512_vnni::kTable;
}

}  // namespace woq::kernels
