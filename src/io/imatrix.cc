// SPDX-License-Identifier: Apache-2.0
#include "woq/io/imatrix.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <optional>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "woq/core/check.h"
#include "woq/io/bytes.h"

namespace woq::io {
namespace {

constexpr std::string_view kMagic = "GGUF";
constexpr uint32_t kVersions[] = {2, 3};  // of one layout; version 1 had 32-bit lengths
constexpr uint64_t kAlignment = 32;
constexpr uint32_t kF32 = 0;  // GGUF's number for a tensor of float32
constexpr uint32_t kU32 = 4, kBool = 7, kString = 8, kArray = 9;  // and for types of metadata
// Bytes of a value of each type of metadata; 0 for those that have no fixed size.
constexpr int kSizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
constexpr uint32_t kMaxDims = 4;
constexpr std::string_view kSums = ".in_sum2", kCounts = ".counts";
constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();

bool ends_with(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

std::vector<float> floats_of(std::string_view raw) {
  std::vector<float> values(raw.size() / sizeof(float));
  std::memcpy(values.data(), raw.data(), values.size() * sizeof(float));
  return values;
}

// -- .dat --------------------------------------------------------------------

// A length, which the file keeps as a signed number.
uint64_t length(ByteReader& source, const std::string& what) {
  const auto value = source.number<int32_t>("the length of " + what);
  if (value < 0) source.fail(what, " would take ", value, " bytes, ", source.left(), " are left");
  return static_cast<uint64_t>(value);
}

Imatrix read_dat(ByteReader& source) {
  Imatrix result;
  const auto count = source.number<int32_t>("the number of entries");
  if (count < 1) source.fail(count, " entries");
  std::unordered_set<std::string> names;
  // Nothing is allocated by this count: an entry that isn't there ends the loop with an error.
  for (int32_t number = 0; number < count; ++number) {
    const std::string what = concat("the name of entry ", number);
    ImatrixEntry entry;
    entry.name = source.text(length(source, what), what);
    const std::string name = quoted(entry.name);
    if (entry.name.empty() || !names.insert(entry.name).second)
      source.fail(what, ", ", name, ", is empty or was there before");
    const auto calls = source.number<int32_t>("the calls of " + name);
    const auto size = source.number<int32_t>("the number of values of " + name);
    if (calls < 1 || size < 1) source.fail(name, " has ", calls, " calls and ", size, " values");
    entry.experts = 1;
    entry.cols = size;
    entry.mean = floats_of(
        source.take(sizeof(float) * static_cast<uint64_t>(size), "the values of " + name));
    for (float& value : entry.mean) value = static_cast<float>(static_cast<double>(value) / calls);
    entry.counts = {calls * kImatrixChunkSize};
    result.entries.push_back(std::move(entry));
  }
  if (source.left() > 0) {
    source.number<int32_t>("the calls of the run");
    const std::string what = "the name of the data set";
    const std::string_view dataset = source.text(length(source, what), what);
    if (!dataset.empty()) result.datasets.emplace_back(dataset);
  }
  if (source.left() > 0) source.fail(source.left(), " bytes after the end");
  return result;
}

// -- GGUF --------------------------------------------------------------------

// A value of metadata, of which four matter: whole numbers, texts and lists of texts. Others are
// checked and passed over.
struct Metadata {
  std::optional<uint64_t> number;
  std::optional<std::string> text;
  std::optional<std::vector<std::string>> texts;
};

std::string_view gguf_text(ByteReader& source, const std::string& what) {
  return source.text(source.number<uint64_t>("the length of " + what), what);
}

// The bytes of a whole number that is not negative, of any width.
std::optional<uint64_t> whole_number(uint32_t type, std::string_view raw) {
  const bool is_float = type == 6 || type == 12, is_signed = type % 2 == 1;
  if (is_float || type == kBool) return std::nullopt;
  uint64_t value = 0;
  for (size_t i = raw.size(); i-- > 0;) value = value << 8 | static_cast<uint8_t>(raw[i]);
  if (is_signed && (static_cast<uint8_t>(raw.back()) & 0x80) != 0) return std::nullopt;
  return value;
}

Metadata read_metadata(ByteReader& source, const std::string& key) {
  Metadata value;
  auto type = source.number<uint32_t>("the type of " + key);
  if (type == kString) {
    value.text = gguf_text(source, key);
    return value;
  }
  if (type >= std::size(kSizes)) source.fail("metadata ", key, " is of the unknown type ", type);
  if (type != kArray) {
    value.number = whole_number(type, source.take(static_cast<uint64_t>(kSizes[type]), key));
    return value;
  }
  type = source.number<uint32_t>("the type of " + key);
  const auto count = source.number<uint64_t>("the length of " + key);
  if (type == kString) {
    std::vector<std::string> texts;
    // Each takes 8 bytes at least, so this many can't run away with the memory.
    for (uint64_t i = 0; i < count; ++i) texts.emplace_back(gguf_text(source, key));
    value.texts = std::move(texts);
    return value;
  }
  if (type >= std::size(kSizes) || kSizes[type] == 0)
    source.fail("metadata ", key, " is an array of the unknown type ", type);
  source.take_elements(count, static_cast<uint64_t>(kSizes[type]), key);
  return value;
}

struct TensorInfo {
  std::vector<uint64_t> shape;  // as GGUF has it: the contiguous dimension first
  uint64_t size = 1;            // elements
  uint32_t type = 0;
  uint64_t offset = 0;
};

std::string shape_text(const TensorInfo& info) {
  std::string text = "[";
  for (const uint64_t extent : info.shape)
    text += (text.size() > 1 ? ", " : "") + std::to_string(extent);
  return text + "]";
}

TensorInfo read_info(ByteReader& source, const std::string& name, uint32_t dims) {
  TensorInfo info;
  for (uint32_t i = 0; i < dims; ++i) {
    const auto extent = source.number<uint64_t>("the shape of " + name);
    info.shape.push_back(extent);
    // More elements than the file has bytes are refused here, so that the product cannot overflow.
    if (extent > 0 && info.size > source.size() / extent)
      source.fail("tensor ", name, " has more elements than the file has bytes");
    info.size *= extent;
  }
  info.type = source.number<uint32_t>("the type of " + name);
  info.offset = source.number<uint64_t>("the offset of " + name);
  return info;
}

// The tensors behind the header.
class TensorData {
 public:
  TensorData(ByteReader& source, uint64_t start) : source_(source), start_(start) {}

  std::vector<float> floats(std::string_view name, const TensorInfo& info) {
    if (info.type != kF32) {
      source_.fail("tensor ", quoted(name), " is of GGUF type ", info.type, ", expected float32");
    }
    const bool overflows = info.offset > std::numeric_limits<uint64_t>::max() - start_;
    source_.seek(overflows ? source_.size() : start_ + info.offset);
    const std::string_view raw =
        source_.take_elements(info.size, sizeof(float), "tensor " + quoted(name));
    // Tensors that lie on each other would make a small file fill the memory.
    total_ += raw.size();
    if (total_ > source_.size()) source_.fail("tensor ", quoted(name), " overlaps others");
    return floats_of(raw);
  }

 private:
  ByteReader& source_;
  uint64_t start_, total_ = 0;
};

using Infos = std::unordered_map<std::string, TensorInfo>;

ImatrixEntry read_entry(ByteReader& source, TensorData& data, const Infos& infos,
                        const std::string& full_name, const TensorInfo& info) {
  ImatrixEntry entry;
  entry.name = full_name.substr(0, full_name.size() - kSums.size());
  const std::string name = quoted(entry.name), counts_name = entry.name + std::string(kCounts);
  const auto counted = infos.find(counts_name);
  if (entry.name.empty() || counted == infos.end())
    source.fail(quoted(full_name), " has no ", kCounts);
  const uint64_t experts = counted->second.size;
  if (experts < 1 || info.size < 1 || info.size % experts != 0) {
    source.fail(name, " has sums ", shape_text(info), " and counts ", shape_text(counted->second));
  }
  entry.experts = static_cast<int64_t>(experts);
  entry.cols = static_cast<int64_t>(info.size / experts);
  entry.mean = data.floats(full_name, info);
  const std::vector<float> counts = data.floats(counts_name, counted->second);
  for (size_t e = 0; e < counts.size(); ++e) {
    if (!(counts[e] >= 0 && counts[e] < 0x1p63f))
      source.fail(name, " has counts that are negative or not finite");
    entry.counts.push_back(static_cast<int64_t>(std::nearbyint(counts[e])));
    const double tokens = std::max(static_cast<double>(counts[e]), 1.0);
    for (size_t k = 0; k < info.size / experts; ++k) {
      float& value = entry.mean[e * (info.size / experts) + k];
      value = static_cast<float>(static_cast<double>(value) / tokens);
    }
  }
  return entry;
}

Imatrix read_gguf(ByteReader& source) {
  source.take(kMagic.size(), "the magic number");
  const auto version = source.number<uint32_t>("the version");
  if (std::find(std::begin(kVersions), std::end(kVersions), version) == std::end(kVersions))
    source.fail("GGUF version ", version, "; known: 2 and 3, little-endian");
  const auto tensor_count = source.number<uint64_t>("the number of tensors");
  const auto metadata_count = source.number<uint64_t>("the number of metadata");
  std::unordered_map<std::string, Metadata> metadata;
  for (uint64_t number = 0; number < metadata_count; ++number) {
    const std::string key(gguf_text(source, concat("the name of metadata ", number)));
    metadata[key] = read_metadata(source, quoted(key));
  }
  const auto found = [&](const char* key) {
    const auto at = metadata.find(key);
    return at == metadata.end() ? nullptr : &at->second;
  };
  const Metadata* const type = found("general.type");
  if (type == nullptr || type->text != "imatrix") {
    source.fail("general.type is ",
                type == nullptr ? "missing" : (type->text ? quoted(*type->text) : "not a text"),
                ", expected 'imatrix'");
  }

  // Infos by name, and their order in the file, which is that of the entries.
  Infos infos;
  std::vector<const Infos::value_type*> order;
  for (uint64_t number = 0; number < tensor_count; ++number) {
    const std::string name(gguf_text(source, concat("the name of tensor ", number)));
    const auto dims = source.number<uint32_t>("the number of dimensions of " + quoted(name));
    if (infos.count(name) > 0 || dims < 1 || dims > kMaxDims)
      source.fail("tensor ", quoted(name), " has ", dims, " dimensions, or was there before");
    order.push_back(&*infos.emplace(name, read_info(source, quoted(name), dims)).first);
  }

  uint64_t alignment = kAlignment;
  if (const Metadata* const value = found("general.alignment")) {
    alignment = value->number.value_or(0);
    if (alignment == 0 || (alignment & (alignment - 1)) != 0) {
      source.fail("general.alignment is ",
                  value->number ? std::to_string(alignment) : "not a whole number",
                  ", expected a power of two");
    }
  }
  const uint64_t padding = (alignment - source.at() % alignment) % alignment;
  TensorData data(source, padding > source.left() ? source.size() : source.at() + padding);
  Imatrix result;
  for (const Infos::value_type* const item : order) {
    const std::string& name = item->first;
    if (ends_with(name, kCounts)) {
      const std::string sums = name.substr(0, name.size() - kCounts.size()) + std::string(kSums);
      if (infos.count(sums) == 0) source.fail(quoted(name), " has no ", kSums);
    }
    if (ends_with(name, kSums))
      result.entries.push_back(read_entry(source, data, infos, name, item->second));
  }
  if (const Metadata* const value = found("imatrix.datasets")) {
    // An empty list says nothing about its elements.
    if (!value->texts) source.fail("imatrix.datasets is not a list of texts");
    result.datasets = *value->texts;
  }
  if (const Metadata* const value = found("imatrix.chunk_size")) {
    if (!value->number || *value->number > static_cast<uint64_t>(kMaxInt32))
      source.fail("imatrix.chunk_size is not a whole number from 0 to 2^31 - 1");
    if (*value->number > 0) result.chunk_size = static_cast<int64_t>(*value->number);
  }
  return result;
}

// -- writing -----------------------------------------------------------------

template <class T>
void append(std::string* out, T value) {
  out->append(reinterpret_cast<const char*>(&value), sizeof value);
}

void append_text(std::string* out, std::string_view text) {
  append(out, static_cast<uint64_t>(text.size()));
  out->append(text);
}

void pad(std::string* out) {
  out->append((kAlignment - out->size() % kAlignment) % kAlignment, '\0');
}

int64_t most_tokens(const ImatrixEntry& entry) {
  return *std::max_element(entry.counts.begin(), entry.counts.end());
}

// The entries in the order of their names.
std::map<std::string_view, const ImatrixEntry*> sorted_entries(const Imatrix& imatrix) {
  if (imatrix.chunk_size < 1 || imatrix.chunk_size > kMaxInt32) {
    fail("importance matrix: the chunk size is ", imatrix.chunk_size,
         ", expected a number from 1 to 2^31 - 1");
  }
  std::map<std::string_view, const ImatrixEntry*> sorted;
  for (const ImatrixEntry& entry : imatrix.entries) {
    const auto means = static_cast<int64_t>(entry.mean.size());
    if (entry.experts < 1 || static_cast<int64_t>(entry.counts.size()) != entry.experts ||
        means % entry.experts != 0 || means / entry.experts != entry.cols) {
      fail("importance matrix: entry ", quoted(entry.name), " has ", means, " means and ",
           entry.counts.size(), " counts, expected [", entry.experts, ", ", entry.cols, "] and [",
           entry.experts, "]");
    }
    if (!sorted.emplace(entry.name, &entry).second)
      fail("importance matrix: two entries are called ", quoted(entry.name));
  }
  return sorted;
}

int32_t fitting(int64_t value, const char* what, std::string_view name) {
  if (value < 0 || value > kMaxInt32) {
    fail("importance matrix: ", what, " of ", quoted(name), " is ", value,
         ", a .dat file holds at most 2^31 - 1; save it as .gguf");
  }
  return static_cast<int32_t>(value);
}

}  // namespace

Imatrix read_imatrix(std::string_view data, const std::string& path) {
  ByteReader source(data, "importance matrix", path,
                    "the file is damaged or of another kind; download or collect it again");
  Imatrix result = data.substr(0, kMagic.size()) == kMagic ? read_gguf(source) : read_dat(source);
  if (result.entries.empty()) source.fail("it has no entries");
  for (const ImatrixEntry& entry : result.entries) {
    const bool good = std::all_of(entry.mean.begin(), entry.mean.end(),
                                  [](float value) { return value >= 0 && std::isfinite(value); });
    if (!good) {
      source.fail("entry ", quoted(entry.name), " has statistics that are negative or not finite");
    }
  }
  return result;
}

std::string write_imatrix_dat(const Imatrix& imatrix) {
  std::string body;
  int32_t count = 0, most = 0;
  for (const auto& [name, entry] : sorted_entries(imatrix)) {
    const int64_t tokens = most_tokens(*entry);
    if (tokens < 1) continue;
    const int64_t chunks = tokens / imatrix.chunk_size + (tokens % imatrix.chunk_size > 0 ? 1 : 0);
    const int32_t calls = fitting(chunks, "the number of calls", name);
    ++count;
    most = std::max(most, calls);
    append(&body, fitting(static_cast<int64_t>(name.size()), "the length of the name", name));
    body.append(name);
    append(&body, calls);
    append(&body, fitting(static_cast<int64_t>(entry->mean.size()), "the number of values", name));
    for (size_t i = 0; i < entry->mean.size(); ++i) {
      const bool seen = entry->counts[i / static_cast<size_t>(entry->cols)] > 0;
      const double mean = seen ? static_cast<double>(entry->mean[i]) : 1.0;
      append(&body, static_cast<float>(mean * calls));
    }
  }
  const std::string last = imatrix.datasets.empty() ? "" : imatrix.datasets.back();
  std::string out;
  append(&out, count);
  out += body;
  append(&out, most);
  append(&out,
         fitting(static_cast<int64_t>(last.size()), "the length of the data set's name", last));
  return out + last;
}

std::string write_imatrix_gguf(const Imatrix& imatrix) {
  const auto entries = sorted_entries(imatrix);
  int64_t most = 0;
  for (const auto& [name, entry] : entries) most = std::max(most, most_tokens(*entry));
  std::string head(kMagic), data;
  append(&head, std::end(kVersions)[-1]);
  append(&head, static_cast<uint64_t>(2 * entries.size()));
  append(&head, uint64_t{4});
  append_text(&head, "general.type");
  append(&head, kString);
  append_text(&head, "imatrix");
  append_text(&head, "imatrix.datasets");
  append(&head, kArray);
  append(&head, kString);
  append(&head, static_cast<uint64_t>(imatrix.datasets.size()));
  for (const std::string& dataset : imatrix.datasets) append_text(&head, dataset);
  const int64_t chunks = std::min<int64_t>(most / imatrix.chunk_size, kMaxInt32);
  append_text(&head, "imatrix.chunk_count");
  append(&head, kU32);
  append(&head, static_cast<uint32_t>(chunks));
  append_text(&head, "imatrix.chunk_size");
  append(&head, kU32);
  append(&head, static_cast<uint32_t>(imatrix.chunk_size));
  const auto add_info = [&](const std::string& name, int64_t cols, int64_t rows) {
    append_text(&head, name);
    append(&head, uint32_t{2});
    append(&head, static_cast<uint64_t>(cols));
    append(&head, static_cast<uint64_t>(rows));
    append(&head, kF32);
    append(&head, static_cast<uint64_t>(data.size()));
  };
  for (const auto& [name, entry] : entries) {
    add_info(std::string(name) + std::string(kSums), entry->cols, entry->experts);
    for (size_t i = 0; i < entry->mean.size(); ++i) {
      const int64_t count = entry->counts[i / static_cast<size_t>(entry->cols)];
      const auto tokens = static_cast<double>(std::max<int64_t>(count, 1));
      append(&data, static_cast<float>(static_cast<double>(entry->mean[i]) * tokens));
    }
    pad(&data);
    add_info(std::string(name) + std::string(kCounts), 1, entry->experts);
    for (const int64_t count : entry->counts) append(&data, static_cast<float>(count));
    pad(&data);
  }
  pad(&head);
  return head + data;
}

}  // namespace woq::io
