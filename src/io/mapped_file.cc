// SPDX-License-Identifier: Apache-2.0
#include "woq/io/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <system_error>
#include <utility>

#include "woq/core/check.h"

namespace woq::io {
namespace {

// A file descriptor that is closed at the end of its scope.
struct Descriptor {
  int number;
  ~Descriptor() {
    if (number >= 0) close(number);
  }
};

[[noreturn]] void fail_with(int error, const std::string& path, const char* what) {
  fail(path, ": ", what, ": ", std::generic_category().message(error));
}

}  // namespace

bool is_folder(const std::string& path) {
  return Descriptor{open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)}.number >= 0;
}

bool exists(const std::string& path) {
  return access(path.c_str(), F_OK) == 0;
}

MappedFile::MappedFile(const std::string& path) : path_(path) {
  const Descriptor file{open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (file.number < 0) fail_with(errno, path, "cannot be opened");
  struct stat status{};
  if (fstat(file.number, &status) != 0) fail_with(errno, path, "cannot be looked at");
  // A device or a pipe has no size; /dev/zero would never end.
  if (!S_ISREG(status.st_mode)) fail(path, ": is not a regular file");
  size_ = static_cast<size_t>(status.st_size);
  if (size_ == 0) return;  // an empty mapping is an error of the system
  void* const data = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.number, 0);
  if (data == MAP_FAILED) fail_with(errno, path, "cannot be mapped");
  data_ = static_cast<const char*>(data);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<char*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  MappedFile taken(std::move(other));
  std::swap(path_, taken.path_);
  std::swap(data_, taken.data_);
  std::swap(size_, taken.size_);
  return *this;
}

void MappedFile::release(std::string_view part) const {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = (reinterpret_cast<uintptr_t>(part.data()) + page - 1) / page * page;
  const auto end = reinterpret_cast<uintptr_t>(part.data() + part.size()) / page * page;
  // A refusal is no error: the pages stay until the system wants them.
  if (begin < end)
    static_cast<void>(madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED));
}

}  // namespace woq::io
