// SPDX-License-Identifier: Apache-2.0
#include "woq/io/safetensors.h"

#include <algorithm>
#include <set>
#include <tuple>
#include <utility>

#include "woq/core/check.h"
#include "woq/core/problems.h"
#include "woq/io/bytes.h"
#include "woq/io/json.h"

namespace woq::io {
namespace {

constexpr uint64_t kMaxHeader = 100'000'000;  // bytes; the reference reader's limit
constexpr const char* kKind = "safetensors file";
constexpr const char* kMend = "the file is damaged or of another kind; save or download it again";
constexpr const char* kMetadata = "__metadata__";

const SafetensorsType* type_of(std::string_view name) {
  const auto* const found =
      std::find_if(std::begin(kSafetensorsTypes), std::end(kSafetensorsTypes),
                   [&](const SafetensorsType& type) { return name == type.name; });
  return found == std::end(kSafetensorsTypes) ? nullptr : found;
}

// A tensor's place within the bytes behind the header.
struct Place {
  int64_t begin, end;
};

class Header {
 public:
  Header(const ByteReader& source, int64_t data_size) : source_(source), data_size_(data_size) {}

  Place read(const std::string& name, const Json& info, SafetensorsTensor* tensor) const {
    const std::string what = "tensor " + io::quoted(name);
    const auto* const members = info.as<JsonMembers>();
    if (members == nullptr) source_.fail(what, " is not described by an object");
    for (const auto& [key, value] : *members) {
      if (key != "dtype" && key != "shape" && key != "data_offsets")
        source_.fail(what, " has the unknown member ", io::quoted(key));
    }
    const Json* const dtype = info.find("dtype");
    const auto* const type_name = dtype == nullptr ? nullptr : dtype->as<std::string>();
    if (type_name == nullptr) source_.fail(what, " has no dtype");
    tensor->type = type_of(*type_name);
    if (tensor->type == nullptr)
      source_.fail(what, " has the unknown dtype ", io::quoted(*type_name));
    tensor->shape = numbers(info, "shape", what);
    const std::vector<int64_t> offsets = numbers(info, "data_offsets", what);
    if (offsets.size() != 2 || offsets[0] > offsets[1] || offsets[1] > data_size_)
      source_.fail(what, " has data_offsets that do not lie in the file's ", data_size_, " bytes");
    const int64_t bytes = offsets[1] - offsets[0];
    if (bits(*tensor, what) != static_cast<uint64_t>(bytes) * 8)
      source_.fail(what, " has ", bytes, " bytes, which its dtype ", *type_name,
                   " and its shape do not give");
    return {offsets[0], offsets[1]};
  }

 private:
  // A list of whole numbers that are not negative.
  std::vector<int64_t> numbers(const Json& info, const char* key, const std::string& what) const {
    const Json* const found = info.find(key);
    const auto* const items = found == nullptr ? nullptr : found->as<JsonList>();
    if (items == nullptr) source_.fail(what, " has no list ", key);
    std::vector<int64_t> result;
    for (const Json& item : *items) {
      const auto* const number = item.as<int64_t>();
      if (number == nullptr || *number < 0)
        source_.fail(what, " has a ", key, " that is not of whole numbers from 0 on");
      result.push_back(*number);
    }
    return result;
  }

  // Bits that the elements take; more than the file has are refused, so that no product overflows.
  uint64_t bits(const SafetensorsTensor& tensor, const std::string& what) const {
    const auto most = (static_cast<uint64_t>(data_size_) + 1) * 8;
    if (std::find(tensor.shape.begin(), tensor.shape.end(), 0) != tensor.shape.end()) return 0;
    auto bits = static_cast<uint64_t>(tensor.type->bits);
    for (const int64_t extent : tensor.shape) {
      if (static_cast<uint64_t>(extent) > most / bits)
        source_.fail(what, " has more elements than the file has room for");
      bits *= static_cast<uint64_t>(extent);
    }
    return bits;
  }

  const ByteReader& source_;
  int64_t data_size_;
};

void read_metadata(const ByteReader& source, const Json& value, SafetensorsFile* file) {
  const auto* const members = value.as<JsonMembers>();
  if (members == nullptr) source.fail(kMetadata, " is not an object");
  for (const auto& [key, item] : *members) {
    const auto* const text = item.as<std::string>();
    if (text == nullptr) source.fail(kMetadata, " has ", io::quoted(key), ", which is not a text");
    file->metadata.emplace(key, *text);
  }
}

// Each byte behind the header belongs to one tensor.
void check_cover(const ByteReader& source, std::vector<std::pair<Place, std::string>> places,
                 int64_t data_size) {
  std::sort(places.begin(), places.end(), [](const auto& a, const auto& b) {
    return std::tie(a.first.begin, a.first.end) < std::tie(b.first.begin, b.first.end);
  });
  int64_t end = 0;
  for (const auto& [place, name] : places) {
    if (place.begin != end)
      source.fail("tensor ", io::quoted(name),
                  place.begin < end ? " overlaps" : " leaves a gap behind",
                  " the one before it: it begins at ", place.begin, ", expected ", end);
    end = place.end;
  }
  if (end != data_size) source.fail("the last ", data_size - end, " bytes belong to no tensor");
}

bool is_plain_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
         name.find('\\') == std::string::npos && name.find('\0') == std::string::npos;
}

// Maps a file and adds its tensors; where each came from is kept for the message about a second.
class ModelReader {
 public:
  void add(const std::string& path) {
    model.files.emplace_back(path);
    SafetensorsFile file = parse_safetensors(model.files.back().bytes(), path);
    if (model.files.size() == 1) model.metadata = std::move(file.metadata);
    for (auto& [name, tensor] : file.tensors) {
      const auto [at, is_new] = model.tensors.emplace(name, std::move(tensor));
      if (!is_new)
        fail(path, ": tensor ", io::quoted(name), " is also in ", sources_[name],
             "; remove the file that does not belong to this model");
      sources_[name] = path;
    }
  }

  const std::string& source_of(const std::string& name) { return sources_[name]; }

  SafetensorsModel model;

 private:
  std::map<std::string, std::string> sources_;
};

std::string joined(const std::string& folder, const std::string& name) {
  return folder.empty() || folder.back() == '/' ? folder + name : folder + "/" + name;
}

SafetensorsModel open_index(const std::string& path) {
  constexpr const char* kIndex = "safetensors index";
  const MappedFile text(path);
  const std::string folder = path.substr(0, path.find_last_of('/') + 1);
  const Json json = parse_json(text.bytes(), kIndex, path, kMend);
  const Json* const found = json.find("weight_map");
  const auto* const map = found == nullptr ? nullptr : found->as<JsonMembers>();
  if (map == nullptr || map->empty()) fail(kIndex, " ", path, ": it has no weight_map: ", kMend);
  std::set<std::string> names;
  for (const auto& [tensor, value] : *map) {
    const auto* const name = value.as<std::string>();
    if (name == nullptr || !is_plain_name(*name))
      fail(kIndex, " ", path, ": tensor ", io::quoted(tensor), " is said to be in ",
           name == nullptr ? "something that is no text" : io::quoted(*name),
           ", expected the name of a file in the same folder");
    names.insert(*name);
  }
  ModelReader reader;
  for (const std::string& name : names) reader.add(joined(folder, name));
  Problems problems;
  for (const auto& [tensor, value] : *map) {
    const std::string expected = joined(folder, *value.as<std::string>());
    if (reader.model.tensors.count(tensor) == 0) {
      problems.add("tensor ", io::quoted(tensor), " is not in ", expected);
    } else if (reader.source_of(tensor) != expected) {
      problems.add("tensor ", io::quoted(tensor), " is in ", reader.source_of(tensor), ", not in ",
                   expected);
    }
  }
  if (!problems.empty()) fail(kIndex, " ", path, ": ", problems.text());
  return std::move(reader.model);
}

}  // namespace

SafetensorsFile parse_safetensors(std::string_view data, const std::string& path) {
  ByteReader source(data, kKind, path, kMend);
  const auto length = source.number<uint64_t>("the length of the header");
  if (length > kMaxHeader)
    source.fail("a header of ", length, " bytes, at most ", kMaxHeader, " are allowed");
  const std::string_view header = source.take(length, "the header");
  if (header.empty() || header.front() != '{') source.fail("the header does not begin with '{'");
  const Json json = parse_json(header, "header of safetensors file", path, kMend);
  const std::string_view rest = data.substr(source.at());
  const auto size = static_cast<int64_t>(rest.size());
  const Header reader(source, size);
  SafetensorsFile file;
  std::vector<std::pair<Place, std::string>> places;
  for (const auto& [name, info] : *json.as<JsonMembers>()) {
    if (name == kMetadata) {
      read_metadata(source, info, &file);
      continue;
    }
    SafetensorsTensor tensor;
    const Place place = reader.read(name, info, &tensor);
    tensor.data =
        rest.substr(static_cast<size_t>(place.begin), static_cast<size_t>(place.end - place.begin));
    file.tensors.emplace(name, std::move(tensor));
    places.emplace_back(place, name);
  }
  check_cover(source, std::move(places), size);
  return file;
}

SafetensorsModel open_safetensors(const std::string& path) {
  if (is_folder(path)) {
    const std::string index = joined(path, "model.safetensors.index.json");
    const std::string single = joined(path, "model.safetensors");
    if (exists(index)) return open_index(index);
    if (exists(single)) return open_safetensors(single);
    fail(path, ": it has neither model.safetensors nor model.safetensors.index.json");
  }
  constexpr std::string_view kJson = ".json";
  if (path.size() > kJson.size() && path.substr(path.size() - kJson.size()) == kJson)
    return open_index(path);
  ModelReader reader;
  reader.add(path);
  return std::move(reader.model);
}

}  // namespace woq::io
