// SPDX-License-Identifier: Apache-2.0
// Owning, 64-byte aligned bytes. Deliberately left uninitialised: the thread that first writes a
// page decides on which memory node it lies. Large ones ask Linux for huge pages: a stream of
// weights crosses a page of 4 KiB every 200 ns, and in a virtual machine each of these costs up to
// 24 look-ups.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
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
    const bool large = bytes >= 2 * kHugePage;
    const auto alignment = static_cast<size_t>(large ? kHugePage : kAlignment);
    const size_t rounded = (static_cast<size_t>(bytes) + alignment - 1) / alignment * alignment;
    data_.reset(static_cast<uint8_t*>(std::aligned_alloc(alignment, rounded)));
    if (!data_) throw std::bad_alloc();
#if defined(__linux__)
    // Only pages that are used whole, so that no memory is lost. A refusal is no error: where huge
    // pages are off, the small ones stay.
    if (large) {
      const auto whole = static_cast<size_t>(bytes / kHugePage * kHugePage);
      static_cast<void>(madvise(data_.get(), whole, MADV_HUGEPAGE));
    }
#endif
  }
  Buffer(const Buffer& other) : Buffer(other.bytes_) {
    if (bytes_ > 0) std::memcpy(data_.get(), other.data_.get(), static_cast<size_t>(bytes_));
  }
  Buffer& operator=(const Buffer& other) {
    if (this != &other) *this = Buffer(other);
    return *this;
  }
  Buffer(Buffer&& other) noexcept
      : data_(std::move(other.data_)), bytes_(std::exchange(other.bytes_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    data_ = std::move(other.data_);
    bytes_ = std::exchange(other.bytes_, 0);
    return *this;
  }

  uint8_t* data() { return data_.get(); }
  const uint8_t* data() const { return data_.get(); }
  int64_t size() const { return bytes_; }

  template <class T>
  T* as() {
    return reinterpret_cast<T*>(data_.get());
  }
  template <class T>
  const T* as() const {
    return reinterpret_cast<const T*>(data_.get());
  }

  void fill_zero() {
    if (bytes_ > 0) std::memset(data_.get(), 0, static_cast<size_t>(bytes_));
  }

 private:
  struct Free {
    void operator()(uint8_t* p) const { std::free(p); }
  };
  std::unique_ptr<uint8_t[], Free> data_;
  int64_t bytes_ = 0;
};

}  // namespace woq
