// SPDX-License-Identifier: Apache-2.0
// The two kinds of file that llama.cpp keeps an importance matrix in. Both are little-endian.
//
// The older one, `.dat`, is a sequence of records: the number of entries (int32); for each of them
// the length of its name (int32), the name, the number of calls (int32), the number of values
// (int32), and the values (float32), which are means of squares times the calls; then the calls of
// the whole run (int32), the length (int32) and the name of the data set. The oldest files end
// after the entries. A call is a chunk of tokens, whose length the file does not say.
//
// The newer one is GGUF (docs/gguf.md of ggml) with `general.type` "imatrix". An entry has two
// tensors: `<name>.in_sum2` [experts, K] holds sums of squares, `<name>.counts` [experts, 1] the
// tokens that went into them. Sums of the inputs themselves (`<name>.in_sum`) are skipped.
//
// The bodies are in src/io/imatrix.cc: these functions need the library woq::woq, header-only users
// have the declarations only.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace woq::io {

// llama.cpp's default context, which it takes for the length of a chunk where a file has none.
inline constexpr int64_t kImatrixChunkSize = 512;

// The statistics of one weight, or of a stack of experts.
struct ImatrixEntry {
  std::string name;             // llama.cpp's, with ".weight"
  int64_t experts = 0;          // 1 for a plain weight
  int64_t cols = 0;             // K
  std::vector<float> mean;      // [experts, K]: mean of the squares of each input channel
  std::vector<int64_t> counts;  // [experts]: tokens seen
};

struct Imatrix {
  std::vector<ImatrixEntry> entries;
  std::vector<std::string> datasets;
  int64_t chunk_size = kImatrixChunkSize;
};

// The contents of a file of either kind. Nothing about `data` is trusted; memory is bounded by a
// constant times its size. `path` is for messages. Throws InvalidArgument for a file that is
// damaged, empty or of another kind, or whose statistics are negative or not finite.
Imatrix read_imatrix(std::string_view data, const std::string& path);

// The bytes of a `.dat` file. Experts without a token are stored as ones, as llama.cpp does: the
// file has one count for a whole stack of experts. Throws InvalidArgument for numbers that do not
// fit the file's 32 bits, or arrays that do not have their entry's shape.
std::string write_imatrix_dat(const Imatrix& imatrix);

// The bytes of a GGUF file. Counts are float32 there, as llama.cpp has it: exact up to 2^24 tokens.
std::string write_imatrix_gguf(const Imatrix& imatrix);

}  // namespace woq::io
