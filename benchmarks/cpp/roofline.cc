// SPDX-License-Identifier: Apache-2.0
// Prints this machine's read bandwidth and multiply-add peaks: medians over interleaved repeats.
//   roofline [REPEATS [SECONDS]]
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "machine_limits.h"
#include "woq/core/parallel.h"

int main(int argc, char** argv) {
  using namespace woq::bench;
  const int repeats = argc > 1 ? std::atoi(argv[1]) : 7;
  const double seconds = argc > 2 ? std::atof(argv[2]) : 0.1;
  struct Row {
    Limit limit;
    Isa isa;
    int threads;
    std::vector<double> rates;
  };
  std::vector<Row> rows;
  std::vector<int> teams = {1};
  if (woq::usable_threads() > 1) teams.push_back(woq::usable_threads());
  for (const int threads : teams) {
    rows.push_back({Limit::kRead, Isa::kAvx2, threads, {}});
    for (const Isa isa : {Isa::kAvx2, Isa::kAvx512, Isa::kAmx}) {
      for (const Limit limit : {Limit::kFp32, Limit::kBf16, Limit::kInt8}) {
        if (has_limit(limit, isa)) rows.push_back({limit, isa, threads, {}});
      }
    }
  }
  for (int repeat = 0; repeat < repeats; ++repeat) {
    for (Row& row : rows) row.rates.push_back(measure(row.limit, row.isa, row.threads, seconds));
  }
  std::printf("# %s\n", machine_description().c_str());
  std::printf("# median (lowest, highest) of %d interleaved repeats; GB/s, GFLOP/s or GOP/s\n",
              repeats);
  std::printf("%-6s %-8s %7s %10s %10s %10s\n", "limit", "isa", "threads", "median", "lowest",
              "highest");
  for (const Row& row : rows) {
    double low = row.rates[0], high = low;
    for (const double rate : row.rates) {
      low = rate < low ? rate : low;
      high = rate > high ? rate : high;
    }
    std::printf("%-6s %-8s %7d %10.1f %10.1f %10.1f\n", kLimitNames[static_cast<int>(row.limit)],
                row.limit == Limit::kRead ? "-" : kIsaNames[static_cast<int>(row.isa)], row.threads,
                median(row.rates) / 1e9, low / 1e9, high / 1e9);
  }
}
