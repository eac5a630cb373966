// SPDX-License-Identifier: Apache-2.0
// JSON (RFC 8259), as headers of safetensors files, index files and config.json have it. Made for
// text that nobody vouches for: nesting is bounded, memory is bounded by a constant times the
// text, and whatever two readers could understand differently is an error (a key that comes twice,
// text that is not UTF-8, a number outside of what fits).
//
// The body is in src/io/json.cc: it needs the library woq::woq.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace woq::io {

class Json;
using JsonList = std::vector<Json>;
using JsonMembers = std::vector<std::pair<std::string, Json>>;  // in the order of the text

// A value. An integer that fits int64 is one; every other number is a double.
class Json {
 public:
  using Value =
      std::variant<std::nullptr_t, bool, int64_t, double, std::string, JsonList, JsonMembers>;

  Json() = default;
  explicit Json(Value value) : value_(std::move(value)) {}

  // The value as a T of the list above, or nullptr where it is of another kind.
  template <class T>
  const T* as() const {
    return std::get_if<T>(&value_);
  }
  bool is_null() const { return std::holds_alternative<std::nullptr_t>(value_); }

  // The member of that name, or nullptr where there is none or this is not an object.
  const Json* find(std::string_view key) const;

 private:
  Value value_ = nullptr;
};

// Levels of lists and objects within each other.
inline constexpr int kJsonDepth = 64;

// `kind` ("safetensors header"), `path` and `mend` are for messages, as with ByteReader. Throws
// InvalidArgument that names the byte.
Json parse_json(std::string_view text, const std::string& kind, const std::string& path,
                const std::string& mend);

}  // namespace woq::io
