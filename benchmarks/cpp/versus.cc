// SPDX-License-Identifier: Apache-2.0
// A target beside the one that would be chosen, for many rows: both measured in turn, the median of
// the ratios over the repeats. Prints a Markdown table.
//   versus TARGET [FILTER [REPEATS]]     FILTER: part of a case's name, such as "fp32 best M256"
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <vector>

#include "gemm_case.h"
#include "woq/core/parallel.h"

namespace {

using namespace woq;
using namespace woq::bench;

std::vector<Work> cases() {
  struct Weights {
    WeightDtype dtype;
    int group_size;
  };
  constexpr Weights kWeights[] = {{WeightDtype::kInt4Clip, 32},
                                  {WeightDtype::kInt4Clip, 128},
                                  {WeightDtype::kNf4, 32},
                                  {WeightDtype::kInt8, 32}};
  std::vector<Work> list;
  for (const ComputeType compute : {ComputeType::kFp32, ComputeType::kBf16}) {
    for (const Weights& weights : kWeights) {
      for (const int64_t m : {16, 64, 256, 1024}) {
        for (const int threads : {1, usable_threads()})
          list.push_back(
              {weights.dtype, weights.group_size, false, compute, "", m, 14336, 4096, threads});
      }
    }
  }
  return list;
}

void compare(const Work& work, const char* target, int repeats) {
  Work forced = work;
  forced.target = target;
  GemmCase chosen(work), other(forced);
  chosen.run(0);
  other.run(0);
  std::vector<double> times, ratios;
  for (int repeat = 0; repeat < repeats; ++repeat) {
    const double before = chosen.run(0.03), seconds = other.run(0.06), after = chosen.run(0.03);
    times.push_back((before + after) / 2);
    ratios.push_back(times.back() / seconds);
  }
  std::sort(ratios.begin(), ratios.end());
  const double ratio = median(ratios), seconds = median(times);
  std::printf("| %s | %s | %.2f | %.1f | %s | %.2fx (%.2f to %.2f) |\n", work.name().c_str(),
              chosen.kernel_name().c_str(), 1e3 * seconds, work.operations() / seconds / 1e9,
              other.kernel_name().c_str(), ratio, ratios.front(), ratios.back());
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: versus TARGET [FILTER [REPEATS]]\n");
    return 1;
  }
  const char* filter = argc > 2 ? argv[2] : "";
  const int repeats = argc > 3 ? std::atoi(argv[3]) : 5;
  std::printf("%s; median of %d interleaved ratios, least to most\n\n",
              machine_description().c_str(), repeats);
  std::printf("| work | chosen | ms | GFLOP/s | %s | its speed beside the chosen one's |\n",
              argv[1]);
  std::printf("|---|---|---|---|---|---|\n");
  try {
    for (const Work& work : cases()) {
      if (std::strstr(work.name().c_str(), filter) != nullptr) compare(work, argv[1], repeats);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "versus: %s\n", error.what());
    return 1;
  }
}
