// SPDX-License-Identifier: Apache-2.0
// Any bytes as a safetensors file: an error, or tensors that cover the bytes, as many as their
// types and shapes say.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "fuzz_support.h"
#include "woq/core/check.h"
#include "woq/io/safetensors.h"

namespace {

using woq::fuzz::require;

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  woq::io::SafetensorsFile file;
  try {
    file = woq::io::parse_safetensors(bytes, "input");
  } catch (const woq::InvalidArgument&) {
    return 0;
  }
  size_t covered = 0;
  for (const auto& [name, tensor] : file.tensors) {
    require(tensor.data.data() >= bytes.data() &&
            tensor.data.data() + tensor.data.size() <= bytes.data() + bytes.size());
    uint64_t bits = static_cast<uint64_t>(tensor.type->bits);
    for (const int64_t extent : tensor.shape) bits *= static_cast<uint64_t>(extent);
    require(bits == tensor.data.size() * 8);
    covered += tensor.data.size();
  }
  uint64_t header = 0;
  for (size_t i = 8; i-- > 0;) header = header << 8 | data[i];
  require(covered == size - 8 - header);
  return 0;
}
