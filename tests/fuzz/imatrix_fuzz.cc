// SPDX-License-Identifier: Apache-2.0
// Any bytes as an importance matrix: an error, or contents that keep what the reader promises and
// that come back when they are written and read again.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "fuzz_support.h"
#include "woq/core/check.h"
#include "woq/io/imatrix.h"

namespace {

using woq::fuzz::require;

void check(const woq::io::Imatrix& imatrix) {
  require(!imatrix.entries.empty() && imatrix.chunk_size > 0);
  for (const woq::io::ImatrixEntry& entry : imatrix.entries) {
    require(!entry.name.empty() && entry.experts > 0 && entry.cols > 0);
    require(entry.mean.size() == static_cast<size_t>(entry.experts * entry.cols));
    require(entry.counts.size() == static_cast<size_t>(entry.experts));
    for (const float value : entry.mean) require(std::isfinite(value) && value >= 0);
    for (const int64_t count : entry.counts) require(count >= 0);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  woq::io::Imatrix imatrix;
  try {
    imatrix = woq::io::read_imatrix({reinterpret_cast<const char*>(data), size}, "input");
  } catch (const woq::InvalidArgument&) {
    return 0;
  }
  check(imatrix);
  try {
    const std::string written = woq::io::write_imatrix_gguf(imatrix);
    const woq::io::Imatrix again = woq::io::read_imatrix(written, "written");
    check(again);
    require(again.entries.size() == imatrix.entries.size());
    require(again.datasets == imatrix.datasets && again.chunk_size == imatrix.chunk_size);
  } catch (const woq::InvalidArgument& error) {
    // Means times tokens may leave float32's range.
    require(std::string_view(error.what()).find("not finite") != std::string_view::npos);
  }
  return 0;
}
