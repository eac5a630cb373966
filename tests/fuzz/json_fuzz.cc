// SPDX-License-Identifier: Apache-2.0
// Any text as JSON: an error, or a value.
#include <cstddef>
#include <cstdint>

#include "woq/core/check.h"
#include "woq/io/json.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    woq::io::parse_json({reinterpret_cast<const char*>(data), size}, "settings", "input",
                        "mend it");
  } catch (const woq::InvalidArgument&) {
    return 0;
  }
  return 0;
}
