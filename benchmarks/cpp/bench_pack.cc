// SPDX-License-Identifier: Apache-2.0
// Hub to kernel layout (pack) and back (unpack) on one thread, as multiples of a memcpy of 64 MiB,
// which is what either would be if it only moved bytes. Page faults of the new matrix are included:
// a model that is loaded has them, too. Both are measured in turn; medians of the ratios.
//   bench_pack [ROWS COLS [REPEATS]]     of W [N, K]; 4096 4096 9 unless given
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <random>
#include <vector>

#include "machine_limits.h"
#include "woq/woq.h"

namespace {

using namespace woq;
using namespace woq::bench;

constexpr size_t kCopied = size_t{64} << 20;

// Seconds that a memcpy of as many bytes as `bytes` takes, by one of 64 MiB.
double seconds_of_copy(const std::vector<uint8_t>& from, std::vector<uint8_t>* to, int64_t bytes) {
  const double begin = now();
  std::memcpy(to->data(), from.data(), kCopied);
  return (now() - begin) * static_cast<double>(bytes) / static_cast<double>(kCopied);
}

void print(WeightDtype dtype, int group_size, int64_t rows, int64_t cols, int repeats) {
  std::mt19937 generator(1);
  std::normal_distribution<float> normal;
  std::vector<float> weight(static_cast<size_t>(rows * cols));
  for (float& value : weight) value = normal(generator);
  QuantScheme scheme;
  scheme.dtype = dtype;
  scheme.group_size = group_size;
  const QuantizedMatrix hub = quantize_rtn(view_of(weight.data(), rows, cols), scheme);
  const std::vector<uint8_t> from(kCopied, 1);
  std::vector<uint8_t> to(kCopied, 2);
  std::vector<double> there, back, milliseconds;
  for (int repeat = 0; repeat < repeats + 1; ++repeat) {
    const double copy = seconds_of_copy(from, &to, hub.bytes());
    double begin = now();
    const PackedMatrix packed = pack(hub, 1);
    const double packing = now() - begin;
    begin = now();
    const QuantizedMatrix unpacked = unpack(packed, 1);
    const double unpacking = now() - begin;
    if (std::memcmp(unpacked.row(0), hub.row(0), static_cast<size_t>(hub.row_bytes())) != 0)
      fail("unpack(pack(W)) is not W");
    if (repeat == 0) continue;  // warms up
    there.push_back(packing / copy);
    back.push_back(unpacking / copy);
    milliseconds.push_back(1e3 * packing);
  }
  std::printf("| %s g%d | %.1f | %.1f | %.1f |\n", name_of(dtype), group_size, median(milliseconds),
              median(there), median(back));
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t rows = argc > 2 ? std::atoll(argv[1]) : 4096;
  const int64_t cols = argc > 2 ? std::atoll(argv[2]) : 4096;
  const int repeats = argc > 3 ? std::atoi(argv[3]) : 9;
  if (argc == 2 || rows < 1 || cols < 1 || repeats < 1) {
    std::fprintf(stderr, "usage: bench_pack [ROWS COLS [REPEATS]]\n");
    return 1;
  }
  std::printf("%s; W [%lld, %lld], one thread; median of %d interleaved ratios\n\n",
              machine_description().c_str(), static_cast<long long>(rows),
              static_cast<long long>(cols), repeats);
  std::printf("| weights | pack, ms | pack / memcpy | unpack / memcpy |\n|---|---|---|---|\n");
  try {
    for (const WeightDtype dtype :
         {WeightDtype::kInt4Clip, WeightDtype::kNf4, WeightDtype::kInt8}) {
      for (const int group_size : {32, 128}) print(dtype, group_size, rows, cols, repeats);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench_pack: %s\n", error.what());
    return 1;
  }
}
