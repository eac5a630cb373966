// SPDX-License-Identifier: Apache-2.0
// Compiled without WOQ_WITH_ONEDNN too: the target then has no kernels.
#include "woq/kernels/targets/onednn.h"

#include "woq/kernels/select.h"

namespace woq::kernels {

KernelTable kernels_onednn() {
  return onednn::kTable;
}

std::string onednn_version() {
  return version_of_onednn();
}

}  // namespace woq::kernels
