// SPDX-License-Identifier: Apache-2.0
// What the fuzzers share: a check that libFuzzer sees, and an input that is read byte by byte.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <vector>

namespace woq::fuzz {

inline void require(bool condition) {
  if (!condition) std::abort();  // what libFuzzer reports, with the input
}

// What the input is too short for is 0.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), end_(data + size) {}

  uint8_t byte() { return data_ < end_ ? *data_++ : uint8_t{0}; }

  // An array of its own, so that the sanitizer sees what is read beyond it.
  std::vector<uint8_t> bytes(int64_t count) {
    std::vector<uint8_t> bytes(static_cast<size_t>(count));
    const auto have = static_cast<ptrdiff_t>(std::min<int64_t>(count, end_ - data_));
    std::copy(data_, data_ + have, bytes.begin());
    data_ += have;
    return bytes;
  }

 private:
  const uint8_t* data_;
  const uint8_t* end_;
};

}  // namespace woq::fuzz
