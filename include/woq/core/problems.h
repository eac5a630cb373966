// SPDX-License-Identifier: Apache-2.0
// Everything that is wrong with an input, in one error: a user who mends a checkpoint should not
// meet its faults one load at a time.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "woq/core/check.h"

namespace woq {

class Problems {
 public:
  // Messages in one error; those beyond are counted. Sixteen lines still fit a terminal.
  static constexpr size_t kListed = 16;

  template <class... Args>
  void add(const Args&... args) {
    ++count_;
    if (messages_.size() < kListed) messages_.push_back(concat(args...));
  }

  bool empty() const { return count_ == 0; }
  int64_t count() const { return count_; }

  // A single problem is a message of its own; several are a list.
  std::string text() const {
    if (count_ == 1) return messages_.front();
    std::string text = concat(count_, " things are wrong:");
    for (const std::string& message : messages_) text += concat("\n  ", message);
    const int64_t rest = count_ - static_cast<int64_t>(messages_.size());
    if (rest > 0) text += concat("\n  and ", rest, " more");
    return text;
  }

  // Throws InvalidArgument unless there are none.
  void check() const {
    if (!empty()) fail(text());
  }

 private:
  std::vector<std::string> messages_;
  int64_t count_ = 0;
};

}  // namespace woq
