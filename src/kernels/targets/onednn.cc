// SPDX-License-Identifier: Apache-2.0
// Compiled without WOQ_WITH_ONEDNN too: the target then has no kernels.
#if defined(WOQ_WITH_ONEDNN)
#include "woq/kernels/targets/onednn.h"
#endif

#include "woq/kernels/select.h"

namespace woq {

#if defined(WOQ_WITH_ONEDNN)
KernelTable kernels_onednn() {
  return onednn::kTable;
}
std::string onednn_version() {
  return dense::version();
}
#else
KernelTable kernels_onednn() {
  return {};
}
std::string onednn_version() {
  return {};
}
#endif

}  // namespace woq
