// SPDX-License-Identifier: Apache-2.0
#include "woq/kernels/targets/avx512_bf16.h"

#include "woq/kernels/select.h"

namespace woq {

KernelTable kernels_avx512_bf16() {
  return kernels::avx512_bf16::kTable;
}

}  // namespace woq
