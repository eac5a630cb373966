// SPDX-License-Identifier: Apache-2.0
#include "woq/kernels/targets/ref.h"

#include "woq/kernels/select.h"

namespace woq::kernels {

KernelTable kernels_ref() {
  return ref::kTable;
}

}  // namespace woq::kernels
