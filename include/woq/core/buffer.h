// SPDX-License-Identifier: Apache-2.0
// Owning, 64-byte aligned bytes. Deliberately left uninitialised: the thread that first writes a
// page decides on which memory node it lies.
//
// On Linux, large ones are mappings of their own, in huge pages where the system grants them: a
// stream of weights crosses a page of 4 KiB every 200 ns, and in a virtual machine each crossing
// costs up to 24 look-ups. The heap would reuse small pages; and a mapping goes back to the system
// when it is freed.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

namespace woq {

class Buffer {
 public:
  static constexpr int64_t kAlignment = 64;
  static constexpr int64_t kHugePage = 2 << 20;

  Buffer() = default;
  explicit Buffer(int64_t bytes) : bytes_(bytes) {
    if (bytes <= 0) return;
    if (is_mapped()) {
      data_ = map(static_cast<size_t>(bytes));
    } else {
      const auto rounded = (static_cast<size_t>(bytes) + kAlignment - 1) / kAlignment * kAlignment;
      data_ = static_cast<uint8_t*>(std::aligned_alloc(kAlignment, rounded));
    }
    if (data_ == nullptr) throw std::bad_alloc();
  }
  ~Buffer() {
#if defined(__linux__)
    if (is_mapped()) {
      munmap(data_, static_cast<size_t>(bytes_));
      return;
    }
#endif
    std::free(data_);
  }
  Buffer(const Buffer& other) : Buffer(other.bytes_) {
    if (bytes_ > 0) std::memcpy(data_, other.data_, static_cast<size_t>(bytes_));
  }
  Buffer& operator=(const Buffer& other) {
    if (this != &other) *this = Buffer(other);
    return *this;
  }
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    Buffer taken(std::move(other));
    std::swap(data_, taken.data_);
    std::swap(bytes_, taken.bytes_);
    return *this;
  }

  uint8_t* data() { return data_; }
  const uint8_t* data() const { return data_; }
  int64_t size() const { return bytes_; }

  template <class T>
  T* as() {
    return reinterpret_cast<T*>(data_);
  }
  template <class T>
  const T* as() const {
    return reinterpret_cast<const T*>(data_);
  }

  friend bool operator==(const Buffer& a, const Buffer& b) {
    return a.bytes_ == b.bytes_ &&
           (a.bytes_ == 0 || std::memcmp(a.data_, b.data_, static_cast<size_t>(a.bytes_)) == 0);
  }

  void fill_zero() {
    if (bytes_ > 0) std::memset(data_, 0, static_cast<size_t>(bytes_));
  }

 private:
  bool is_mapped() const {
#if defined(__linux__)
    return bytes_ >= 2 * kHugePage;
#else
    return false;
#endif
  }

  // nullptr when there is no memory.
  static uint8_t* map(size_t bytes) {
#if defined(__linux__)
    const auto page = static_cast<size_t>(kHugePage);
    void* const p =
        mmap(nullptr, bytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return nullptr;
    auto* const begin = static_cast<uint8_t*>(p);
    const size_t before = (page - reinterpret_cast<uintptr_t>(p) % page) % page;
    if (before > 0) munmap(begin, before);
    const auto small = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t used = (bytes + small - 1) / small * small,
                 all = (bytes + page + small - 1) / small * small;
    munmap(begin + before + used, all - before - used);
    // Only pages that are used whole, so that no memory is lost. A refusal is no error: the small
    // pages stay.
    static_cast<void>(madvise(begin + before, bytes / page * page, MADV_HUGEPAGE));
    return begin + before;
#else
    static_cast<void>(bytes);
    return nullptr;
#endif
  }

  uint8_t* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace woq
