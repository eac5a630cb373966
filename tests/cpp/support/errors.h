// SPDX-License-Identifier: Apache-2.0
// What a call complains about.
#pragma once

#include <gtest/gtest.h>

#include <exception>
#include <string>

#include "woq/core/check.h"

namespace woq::testing {

// The message of the exception E that `call` throws; a test failure if it throws none or another.
template <class E, class Call>
std::string error_of(const Call& call) {
  try {
    call();
  } catch (const E& error) {
    return error.what();
  } catch (const std::exception& error) {
    ADD_FAILURE() << "an exception of another type: " << error.what();
    return {};
  }
  ADD_FAILURE() << "no exception";
  return {};
}

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace woq::testing

#define EXPECT_MENTIONS(text, part) EXPECT_PRED2(::woq::testing::contains, text, part)
