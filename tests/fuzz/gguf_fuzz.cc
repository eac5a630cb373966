// SPDX-License-Identifier: Apache-2.0
// Any bytes as a GGUF file: an error, or tensors that lie within the bytes, none on another, as
// large as their types and shapes say.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "fuzz_support.h"
#include "woq/core/check.h"
#include "woq/io/gguf.h"

namespace {

using woq::fuzz::require;

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  woq::io::GgufFile file;
  try {
    file = woq::io::parse_gguf(bytes, "input");
  } catch (const woq::InvalidArgument&) {
    return 0;
  }
  require(file.order.size() == file.tensors.size());
  std::vector<std::string_view> parts;
  for (const auto& [name, tensor] : file.tensors) {
    if (tensor.type == nullptr) {
      require(tensor.data.empty());
      continue;
    }
    uint64_t elements = 1;
    for (const int64_t extent : tensor.shape) elements *= static_cast<uint64_t>(extent);
    const auto block = static_cast<uint64_t>(tensor.type->block_elements);
    require(elements / block * static_cast<uint64_t>(tensor.type->block_bytes) ==
            tensor.data.size());
    if (!tensor.data.empty()) parts.push_back(tensor.data);
  }
  std::sort(parts.begin(), parts.end(),
            [](std::string_view a, std::string_view b) { return a.data() < b.data(); });
  for (size_t i = 0; i < parts.size(); ++i) {
    const char* const end = i + 1 < parts.size() ? parts[i + 1].data() : bytes.data() + size;
    require(parts[i].data() >= bytes.data() && parts[i].data() + parts[i].size() <= end);
  }
  return 0;
}
