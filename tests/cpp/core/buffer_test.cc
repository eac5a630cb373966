// SPDX-License-Identifier: Apache-2.0
#include "woq/core/buffer.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <utility>

namespace woq::testing {
namespace {

Buffer counting(int64_t bytes) {
  Buffer buffer(bytes);
  for (int64_t i = 0; i < bytes; ++i) buffer.data()[i] = static_cast<uint8_t>(i);
  return buffer;
}

bool counts(const Buffer& buffer, int64_t bytes) {
  if (buffer.size() != bytes) return false;
  for (int64_t i = 0; i < bytes; ++i) {
    if (buffer.data()[i] != static_cast<uint8_t>(i)) return false;
  }
  return true;
}

TEST(Buffer, IsAlignedAndWholeAtEverySize) {
  for (const int64_t bytes : {1, 3, 63, 64, 65, 1000, 4096}) {
    const Buffer buffer = counting(bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % Buffer::kAlignment, 0u);
    EXPECT_TRUE(counts(buffer, bytes));
  }
}

TEST(Buffer, EmptyHasNoMemory) {
  const Buffer none, zero(0);
  EXPECT_EQ(none.size(), 0);
  EXPECT_EQ(zero.size(), 0);
  EXPECT_EQ(none.data(), nullptr);
  EXPECT_EQ(zero.data(), nullptr);
  const Buffer copy = zero;
  EXPECT_EQ(copy.size(), 0);
}

TEST(Buffer, CopiesAreIndependent) {
  Buffer original = counting(100);
  Buffer copy = original, assigned(3);
  assigned = original;
  original.fill_zero();
  EXPECT_TRUE(counts(copy, 100));
  EXPECT_TRUE(counts(assigned, 100));
  EXPECT_EQ(original.data()[99], 0);
}

TEST(Buffer, AssigningToItselfKeepsTheBytes) {
  Buffer buffer = counting(100);
  Buffer& same = buffer;
  buffer = same;
  EXPECT_TRUE(counts(buffer, 100));
}

TEST(Buffer, MovesTakeTheMemory) {
  Buffer source = counting(100);
  const uint8_t* const address = source.data();
  Buffer moved = std::move(source);
  EXPECT_EQ(moved.data(), address);
  EXPECT_TRUE(counts(moved, 100));
  Buffer target(7);
  target = std::move(moved);
  EXPECT_EQ(target.data(), address);
  EXPECT_TRUE(counts(target, 100));
}

TEST(Buffer, TypedAccessSeesTheSameBytes) {
  Buffer buffer(8);
  buffer.as<uint32_t>()[1] = 0x04030201u;
  EXPECT_EQ(buffer.data()[4], 1);
  EXPECT_EQ(buffer.data()[7], 4);
}

}  // namespace
}  // namespace woq::testing
