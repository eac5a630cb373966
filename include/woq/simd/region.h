// SPDX-License-Identifier: Apache-2.0
// What the code in a target region needs, whatever its layer. Included before the region opens, so
// that none of it is compiled for a target.
#pragma once

#include "woq/simd/target.h"

#if WOQ_X86
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>
