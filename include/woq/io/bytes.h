// SPDX-License-Identifier: Apache-2.0
// Reading the bytes of a file that nobody vouches for. Every length is compared with the bytes that
// are left before it is used: a damaged or hostile file ends in an error, not in a crash, and not
// in an allocation that the file's size does not justify.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>

#include "woq/core/check.h"

namespace woq::io {

// Whether `text` is UTF-8: no overlong form, no surrogate, nothing above U+10FFFF.
inline bool is_utf8(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  for (size_t i = 0; i < text.size();) {
    const uint8_t first = byte(i);
    if (first < 0x80) {
      ++i;
      continue;
    }
    // The bytes that follow, and what the second one may be: that excludes all that is forbidden.
    int more = 0;
    uint8_t low = 0x80, high = 0xbf;
    if (first >= 0xc2 && first <= 0xdf) {
      more = 1;
    } else if (first >= 0xe0 && first <= 0xef) {
      more = 2;
      if (first == 0xe0) low = 0xa0;
      if (first == 0xed) high = 0x9f;
    } else if (first >= 0xf0 && first <= 0xf4) {
      more = 3;
      if (first == 0xf0) low = 0x90;
      if (first == 0xf4) high = 0x8f;
    } else {
      return false;
    }
    if (text.size() - i <= static_cast<size_t>(more)) return false;
    if (byte(i + 1) < low || byte(i + 1) > high) return false;
    for (int k = 2; k <= more; ++k) {
      if ((byte(i + static_cast<size_t>(k)) & 0xc0) != 0x80) return false;
    }
    i += static_cast<size_t>(more) + 1;
  }
  return true;
}

// A name from a file for a message: in quotes, control characters as \xNN, and not longer than a
// line can be.
inline std::string quoted(std::string_view text) {
  constexpr size_t kLongest = 200;
  std::string result = "'";
  for (const char c : text.substr(0, kLongest)) {
    if (static_cast<uint8_t>(c) >= 0x20 && c != 0x7f) {
      result += c;
    } else {
      constexpr char kDigits[] = "0123456789abcdef";
      result += {'\\', 'x', kDigits[static_cast<uint8_t>(c) >> 4], kDigits[c & 15]};
    }
  }
  return result + (text.size() > kLongest ? "...'" : "'");
}

// Reads from the front of a file's bytes, little-endian. Errors are InvalidArgument; they name the
// file, the byte, and what to do. The bytes must outlive the reader and the views that it returns.
class ByteReader {
 public:
  // `kind` is what the file is meant to be ("importance matrix"), `path` where it lies, `mend` what
  // the user can do about a bad one: all three are for messages.
  ByteReader(std::string_view data, std::string kind, std::string path, std::string mend)
      : data_(data), kind_(std::move(kind)), path_(std::move(path)), mend_(std::move(mend)) {}

  size_t at() const { return at_; }
  size_t size() const { return data_.size(); }
  size_t left() const { return data_.size() - at_; }

  // To a byte; one behind the end is the end, where nothing can be read.
  void seek(uint64_t at) { at_ = at < data_.size() ? static_cast<size_t>(at) : data_.size(); }

  template <class... What>
  [[noreturn]] void fail(const What&... what) const {
    woq::fail(kind_, " ", path_, ": ", concat(what...), " (at byte ", at_, " of ", data_.size(),
              "): ", mend_);
  }

  // The next `count` bytes; `what` they are is for the message.
  std::string_view take(uint64_t count, std::string_view what) {
    if (count > left()) fail(what, " would take ", count, " bytes, ", left(), " are left");
    const std::string_view taken = data_.substr(at_, static_cast<size_t>(count));
    at_ += taken.size();
    return taken;
  }

  // `count` elements of `size` bytes each; the product cannot overflow.
  std::string_view take_elements(uint64_t count, uint64_t size, std::string_view what) {
    if (count > left() / size) {
      fail(what, " would take ", count, " elements of ", size, " bytes, ", left(), " are left");
    }
    return take(count * size, what);
  }

  // An integer or a floating-point number.
  template <class T>
  T number(std::string_view what) {
    T value;
    std::memcpy(&value, take(sizeof(T), what).data(), sizeof(T));
    return value;
  }

  // A text of `length` bytes, which must be UTF-8.
  std::string_view text(uint64_t length, std::string_view what) {
    const std::string_view raw = take(length, what);
    if (!is_utf8(raw)) fail(what, " is not UTF-8");
    return raw;
  }

 private:
  std::string_view data_;
  size_t at_ = 0;
  std::string kind_, path_, mend_;
};

}  // namespace woq::io
