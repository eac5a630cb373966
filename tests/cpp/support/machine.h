// SPDX-License-Identifier: Apache-2.0
// What tests may ask of the machine that they run on.
#pragma once

#include <thread>

namespace woq::testing {

// An emulated machine has one processor, and no threads.
inline bool one_processor() {
  return std::thread::hardware_concurrency() < 2;
}

}  // namespace woq::testing
