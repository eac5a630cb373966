// SPDX-License-Identifier: Apache-2.0
#include "woq/kernels/targets/avx512_bf16.h"

#include "woq/kernels/select.h"

namespace woq::kernels {

KernelTable kernels_avx512_bf16() {
  return avx512_bf16::kTable;
}

}  // namespace woq::kernels
