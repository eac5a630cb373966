// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "woq/kernels/ref.h"

namespace woq::ref {

inline constexpr KernelTable kTable = {kKernels, 9};

}  // namespace woq::ref
