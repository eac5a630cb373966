// SPDX-License-Identifier: Apache-2.0
// What the kernels' code inside a target region uses. Included before the region opens, so that
// none of it is compiled for a target.
#pragma once

#include <algorithm>
#include <iterator>
#include <limits>
#include <type_traits>

#include "woq/core/float16.h"
#include "woq/core/view.h"
#include "woq/kernels/kernel.h"
#include "woq/kernels/silu.h"
#include "woq/quant/scales.h"
#include "woq/simd/region.h"
