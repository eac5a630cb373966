// SPDX-License-Identifier: Apache-2.0
// Errors. Two kinds leave the library: a caller's mistake or bad input (InvalidArgument), and
// something that this build or machine cannot do (Unsupported). A broken invariant of our own is an
// assertion, not an exception.
#pragma once

#if __cplusplus < 201703L
#error "woq is C++17: compile with -std=c++17 or later (CMake: link woq::woq, which asks for it)"
#endif

#include <cassert>
#include <sstream>
#include <stdexcept>
#include <string>

#define WOQ_ASSERT(condition) assert(condition)

namespace woq {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Wrong shape, unknown name, NaN weight, corrupt tensor: the message names what, where and how to
// mend it.
class InvalidArgument : public Error {
 public:
  using Error::Error;
};

// No kernel or CPU feature for the request: the message lists what was tried.
class Unsupported : public Error {
 public:
  using Error::Error;
};

// Concatenates its arguments into one message.
template <class... Args>
std::string concat(const Args&... args) {
  std::ostringstream message;
  (message << ... << args);
  return message.str();
}

template <class E = InvalidArgument, class... Args>
[[noreturn]] void fail(const Args&... args) {
  throw E(concat(args...));
}

}  // namespace woq
