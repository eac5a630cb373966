// SPDX-License-Identifier: Apache-2.0
// The kernels' bars: for each, work and limit measured in turn, the median of the ratios over the
// repeats. Prints a Markdown table.
//   bars [FILTER [REPEATS]]     FILTER: part of a case's name
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "gemm_case.h"
#include "woq/core/parallel.h"

namespace {

using namespace woq;
using namespace woq::bench;

struct Bar {
  Work work;
  double one_thread, all_threads;  // least shares of the limit; 0: none is set
};

std::vector<Bar> bars() {
  std::vector<Bar> list;
  const auto add = [&](WeightDtype dtype, int group, bool asym, ComputeType compute,
                       const char* target, int64_t m, double one, double all) {
    list.push_back({{dtype, group, asym ? ZeroKind::kInt : ZeroKind::kNone, ScaleEncoding::kFp16,
                     compute, target, m, 14336, 4096, 1},
                    one,
                    all});
  };
  const auto int4 = WeightDtype::kInt4Clip, int8 = WeightDtype::kInt8, nf4 = WeightDtype::kNf4,
             fp4 = WeightDtype::kFp4E2m1;
  const auto s8 = ComputeType::kInt8, bf16 = ComputeType::kBf16, fp32 = ComputeType::kFp32;
  for (const int group : {32, 128}) {
    for (const bool asym : {false, true}) {
      add(int4, group, asym, s8, "", 1, .88, .93);
      add(int4, group, asym, s8, "", 4, .65, .80);
      if (!asym)
        add(int4, group, asym, s8, "", 16, group == 32 ? .45 : .55, group == 32 ? .45 : .55);
      for (const int64_t m : {256, 1024})
        add(int4, group, asym, s8, "", m, group == 32 ? .65 : .80, group == 32 ? .65 : .80);
    }
    add(int8, group, false, s8, "", 1, .88, .93);
    for (const WeightDtype dtype : {nf4, fp4}) {
      for (const ComputeType compute : {s8, bf16})
        add(dtype, group, false, compute, "", 1, .85, .93);
      add(dtype, group, false, s8, "", 16, group == 32 ? .45 : .55, group == 32 ? .45 : .55);
      add(dtype, group, false, s8, "", 256, group == 32 ? .65 : .80, group == 32 ? .65 : .80);
    }
    add(int8, group, false, s8, "", 256, group == 32 ? .65 : .80, group == 32 ? .65 : .80);
    for (const ComputeType compute : {bf16, fp32}) {
      add(int4, group, false, compute, "", 1, .75, .85);
      for (const WeightDtype dtype : {int4, int8, nf4, fp4}) {
        for (const int64_t m : {256, 1024}) {
          if (dtype == int4 || m == 256)
            add(dtype, group, false, compute, "", m, compute == bf16 ? .88 : .90,
                compute == bf16 ? .88 : .90);
        }
      }
    }
    add(int4, group, false, s8, "avx2", 1, .80, .80);
    add(int8, group, false, s8, "avx2", 1, .80, .80);
    add(int4, group, false, fp32, "avx2", 1, .50, .50);
    add(nf4, group, false, fp32, "avx2", 1, .40, .40);
    add(fp4, group, false, fp32, "avx2", 1, .40, .40);
    for (const ComputeType compute : {s8, fp32}) {
      add(int4, group, false, compute, "avx2", 256, .65, .65);
      add(nf4, group, false, compute, "avx2", 256, .65, .65);
      add(int8, group, false, compute, "avx2", 256, .65, .65);
    }
  }
  // GGUF's types, by the numbers that they become (woq/io/gguf_matrix.h). One thread has less
  // arithmetic a byte to spare; 2 and 3 bits have too much of it for any number of threads.
  const auto fp16 = ScaleEncoding::kFp16, two_level = ScaleEncoding::kTwoLevel;
  const auto none = ZeroKind::kNone, minimum = ZeroKind::kMin;
  const auto add_file = [&](WeightDtype dtype, int group, ZeroKind zeros, ScaleEncoding scales) {
    const bool few_bits = traits_of(dtype).bits < 4;
    list.push_back({{dtype, group, zeros, scales, s8, "", 1, 14336, 4096, 1},
                    few_bits ? .40 : .70,
                    few_bits ? .50 : .80});
  };
  add_file(int4, 32, none, fp16);                        // Q4_0
  add_file(int4, 32, minimum, fp16);                     // Q4_1
  add_file(WeightDtype::kInt5, 32, none, fp16);          // Q5_0
  add_file(WeightDtype::kInt5, 32, minimum, fp16);       // Q5_1
  add_file(int8, 32, none, fp16);                        // Q8_0
  add_file(WeightDtype::kInt2, 16, minimum, two_level);  // Q2_K
  add_file(WeightDtype::kInt3, 16, none, two_level);     // Q3_K
  add_file(int4, 32, minimum, two_level);                // Q4_K
  add_file(WeightDtype::kInt5, 32, minimum, two_level);  // Q5_K
  add_file(WeightDtype::kInt6, 16, none, two_level);     // Q6_K
  add_file(WeightDtype::kIq4Nl, 32, none, fp16);         // IQ4_NL
  add_file(WeightDtype::kIq4Nl, 32, none, two_level);    // IQ4_XS
  return list;
}

}  // namespace

int main(int argc, char** argv) {
  const char* filter = argc > 1 ? argv[1] : "";
  const int repeats = argc > 2 ? std::atoi(argv[2]) : 5;
  std::printf("%s; median of %d interleaved ratios\n\n", machine_description().c_str(), repeats);
  std::printf("| work | kernel | limit | share, 1 thread | bar | share, %d threads | bar |\n",
              usable_threads());
  std::printf("|---|---|---|---|---|---|---|\n");
  int missed = 0, total = 0;
  for (const Bar& bar : bars()) {
    if (std::strstr(bar.work.name().c_str(), filter) == nullptr) continue;
    double shares[2] = {0, 0};
    std::string kernel;
    for (int i = 0; i < 2; ++i) {
      Work work = bar.work;
      work.threads = i == 0 ? 1 : usable_threads();
      GemmCase gemm(work);
      gemm.run(0);
      std::vector<double> ratios;
      for (int repeat = 0; repeat < repeats; ++repeat) {
        const double before = measure(limit_of(work), isa_of(work), work.threads, 0.03);
        const double seconds = gemm.run(0.06);
        const double after = measure(limit_of(work), isa_of(work), work.threads, 0.03);
        ratios.push_back(share(work, seconds, (before + after) / 2));
      }
      shares[i] = median(ratios);
      kernel = gemm.kernel_name();
    }
    std::string name = bar.work.name();
    name.resize(name.rfind(' '));
    std::printf("| %s | %s | %s | %.0f %%%s | %.0f %% | %.0f %%%s | %.0f %% |\n", name.c_str(),
                kernel.c_str(), kLimitNames[static_cast<int>(limit_of(bar.work))], 100 * shares[0],
                shares[0] < bar.one_thread ? " **below**" : "", 100 * bar.one_thread,
                100 * shares[1], shares[1] < bar.all_threads ? " **below**" : "",
                100 * bar.all_threads);
    std::fflush(stdout);
    missed += (shares[0] < bar.one_thread) + (shares[1] < bar.all_threads);
    total += 2;
  }
  std::printf("\n%d of %d bars reached\n", total - missed, total);
}
