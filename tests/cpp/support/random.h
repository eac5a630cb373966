// SPDX-License-Identifier: Apache-2.0
// Random numbers that are the same on every machine. The seed derives from the running test's name,
// so tests don't influence each other; WOQ_TEST_SEED shifts all of them.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

namespace woq::testing {

// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
class Random {
 public:
  explicit Random(uint64_t seed) : seed_(seed), state_(seed) {}

  uint64_t seed() const { return seed_; }

  uint64_t bits() {
    state_ += 0x9e3779b97f4a7c15u;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

  // In [0, n).
  int64_t below(int64_t n) { return static_cast<int64_t>(bits() % static_cast<uint64_t>(n)); }
  bool coin() { return below(2) == 1; }

  // In [low, high).
  float uniform(float low, float high) {
    return low + (high - low) * (static_cast<float>(bits() >> 40) * 0x1p-24f);
  }

  // Standard normal (Box and Muller).
  float normal() {
    const double u = (static_cast<double>(bits() >> 11) + 1) * 0x1p-53;
    const double v = static_cast<double>(bits() >> 11) * 0x1p-53;
    return static_cast<float>(std::sqrt(-2 * std::log(u)) * std::cos(6.283185307179586 * v));
  }

  template <class List>
  auto pick(const List& list) {
    return list[static_cast<size_t>(below(static_cast<int64_t>(std::size(list))))];
  }

 private:
  uint64_t seed_, state_;
};

inline uint64_t hash_of(std::string_view text) {
  uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a
  for (const char c : text) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3u;
  return hash;
}

inline uint64_t test_seed() {
  const ::testing::TestInfo& test = *::testing::UnitTest::GetInstance()->current_test_info();
  const char* shift = std::getenv("WOQ_TEST_SEED");
  return hash_of(std::string(test.test_suite_name()) + "." + test.name()) +
         (shift != nullptr ? std::strtoull(shift, nullptr, 0) : 0);
}

// How long a test that draws cases at random goes on: `usual` seconds, or twenty times as long with
// WOQ_LONG_TESTS=1 (`make test-all`).
inline double test_seconds(double usual) {
  return std::getenv("WOQ_LONG_TESTS") != nullptr ? 20 * usual : usual;
}

inline Random random_of_test() {
  return Random(test_seed());
}

}  // namespace woq::testing
