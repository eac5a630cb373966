// SPDX-License-Identifier: Apache-2.0
// A file as read-only memory. Pages are read when they are touched and belong to the system's file
// cache, so that a model of many gigabytes costs no memory of its own while it is packed. A file
// that another process cuts meanwhile ends this one with SIGBUS, as it does with every mapping.
//
// The body is in src/io/mapped_file.cc: it needs the library woq::woq.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace woq::io {

// Whether there is a folder, or anything at all, at `path`, as far as this process can see.
bool is_folder(const std::string& path);
bool exists(const std::string& path);

class MappedFile {
 public:
  // Throws InvalidArgument that names the path and what the system says.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::string_view bytes() const { return {data_, size_}; }
  const std::string& path() const { return path_; }

  // Gives the memory of `part`'s whole pages back to the system: they are read again when they are
  // touched. `part` must lie in bytes().
  void release(std::string_view part) const;

 private:
  std::string path_;
  const char* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace woq::io
