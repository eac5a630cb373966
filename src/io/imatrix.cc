// SPDX-License-Identifier: Apache-2.0
#include "woq/io/imatrix.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <unordered_set>
#include <utility>

#include "woq/core/check.h"
#include "woq/core/tensor.h"
#include "woq/io/bytes.h"
#include "woq/io/gguf.h"

namespace woq::io {
namespace {

constexpr const char* kKind = "importance matrix";
constexpr const char* kMend =
    "the file is damaged or of another kind; download or collect it again";
constexpr std::string_view kMagic = "GGUF";
constexpr uint32_t kVersion = 3;
constexpr uint64_t kAlignment = 32;
constexpr uint32_t kF32 = 0;  // GGUF's number for a tensor of float32
constexpr std::string_view kSums = ".in_sum2", kCounts = ".counts";
constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();

bool ends_with(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

std::vector<float> floats_of(std::string_view raw) {
  std::vector<float> values(raw.size() / sizeof(float));
  if (!raw.empty()) std::memcpy(values.data(), raw.data(), values.size() * sizeof(float));
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

// A GGUF file as an importance matrix: for each NAME of a weight tensors NAME.in_sum2, [experts,
// cols] or of more dimensions, and NAME.counts, one number for each expert.
class GgufImatrix {
 public:
  GgufImatrix(std::string_view data, const std::string& path)
      : path_(path), file_(parse_gguf(data, path, kKind)) {}

  Imatrix read() const {
    check_kind();
    Imatrix result;
    for (const std::string_view name : file_.order) {  // which is that of the entries
      if (ends_with(name, kCounts) && find(stem(name, kCounts), kSums) == nullptr)
        fail(quoted(name), " has no ", kSums);
      if (ends_with(name, kSums)) result.entries.push_back(entry(name));
    }
    result.datasets = datasets();
    if (const GgufValue* const size = value("imatrix.chunk_size")) {
      const auto* const tokens = size->as<int64_t>();
      if (tokens == nullptr || *tokens < 0 || *tokens > kMaxInt32)
        fail("imatrix.chunk_size is not a whole number from 0 to 2^31 - 1");
      if (*tokens > 0) result.chunk_size = *tokens;
    }
    return result;
  }

 private:
  template <class... What>
  [[noreturn]] void fail(const What&... what) const {
    woq::fail(kKind, " ", path_, ": ", concat(what...), ": ", kMend);
  }

  const GgufValue* value(const char* key) const {
    const auto found = file_.metadata.find(key);
    return found == file_.metadata.end() ? nullptr : &found->second;
  }

  static std::string_view stem(std::string_view name, std::string_view suffix) {
    return name.substr(0, name.size() - suffix.size());
  }

  const GgufTensor* find(std::string_view stem, std::string_view suffix) const {
    const auto found = file_.tensors.find(concat(stem, suffix));
    return found == file_.tensors.end() ? nullptr : &found->second;
  }

  void check_kind() const {
    const GgufValue* const type = value("general.type");
    const auto* const text = type == nullptr ? nullptr : type->as<std::string_view>();
    if (text != nullptr && *text == "imatrix") return;
    fail("general.type is ",
         type == nullptr ? "missing" : (text != nullptr ? quoted(*text) : "not a text"),
         ", expected 'imatrix'");
  }

  std::vector<std::string> datasets() const {
    const GgufValue* const names = value("imatrix.datasets");
    if (names == nullptr) return {};
    const auto* const list = names->as<GgufArray>();
    if (list == nullptr || list->type != GgufValueType::kString)
      fail("imatrix.datasets is not a list of texts");
    return {list->texts.begin(), list->texts.end()};
  }

  std::vector<float> floats(std::string_view name, const GgufTensor& tensor) const {
    if (tensor.type_id != kF32)
      fail("tensor ", quoted(name), " is of GGUF type ", tensor.type_id, ", expected float32");
    return floats_of(tensor.data);
  }

  ImatrixEntry entry(std::string_view full_name) const {
    ImatrixEntry entry;
    entry.name = stem(full_name, kSums);
    const std::string name = quoted(entry.name);
    const GgufTensor* const counted = find(entry.name, kCounts);
    if (entry.name.empty() || counted == nullptr) fail(quoted(full_name), " has no ", kCounts);
    const GgufTensor& summed = *find(entry.name, kSums);
    entry.mean = floats(full_name, summed);
    const std::vector<float> counts = floats(entry.name + std::string(kCounts), *counted);
    if (counts.empty() || entry.mean.empty() || entry.mean.size() % counts.size() != 0) {
      fail(name, " has sums ", shape_text(summed.shape), " and counts ",
           shape_text(counted->shape));
    }
    const size_t cols = entry.mean.size() / counts.size();
    entry.experts = static_cast<int64_t>(counts.size());
    entry.cols = static_cast<int64_t>(cols);
    for (size_t e = 0; e < counts.size(); ++e) {
      if (!(counts[e] >= 0 && counts[e] < 0x1p63f))
        fail(name, " has counts that are negative or not finite");
      entry.counts.push_back(static_cast<int64_t>(std::nearbyint(counts[e])));
      const double tokens = std::max(static_cast<double>(counts[e]), 1.0);
      for (size_t k = 0; k < cols; ++k) {
        float& value = entry.mean[e * cols + k];
        value = static_cast<float>(static_cast<double>(value) / tokens);
      }
    }
    return entry;
  }

  std::string path_;
  GgufFile file_;
};

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
  ByteReader source(data, kKind, path, kMend);
  const bool is_gguf = data.substr(0, kMagic.size()) == kMagic;
  Imatrix result = is_gguf ? GgufImatrix(data, path).read() : read_dat(source);
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
  append(&head, kVersion);
  append(&head, static_cast<uint64_t>(2 * entries.size()));
  append(&head, uint64_t{4});
  append_text(&head, "general.type");
  append(&head, GgufValueType::kString);
  append_text(&head, "imatrix");
  append_text(&head, "imatrix.datasets");
  append(&head, GgufValueType::kArray);
  append(&head, GgufValueType::kString);
  append(&head, static_cast<uint64_t>(imatrix.datasets.size()));
  for (const std::string& dataset : imatrix.datasets) append_text(&head, dataset);
  const int64_t chunks = std::min<int64_t>(most / imatrix.chunk_size, kMaxInt32);
  append_text(&head, "imatrix.chunk_count");
  append(&head, GgufValueType::kU32);
  append(&head, static_cast<uint32_t>(chunks));
  append_text(&head, "imatrix.chunk_size");
  append(&head, GgufValueType::kU32);
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
