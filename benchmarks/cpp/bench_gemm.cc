// SPDX-License-Identifier: Apache-2.0
// Every kernel on the layer shapes of real models, beside the limit that bounds it. Names select:
//   bench_gemm --benchmark_list_tests
//   bench_gemm --benchmark_filter='int4_clip/g32/sym/int8/avx512_vnni/M1/llama3_8b'
//              --benchmark_repetitions=5 --benchmark_report_aggregates_only=true
// One iteration measures the limit, the work and the limit again; repetitions make medians of it.
#include <benchmark/benchmark.h>

#include <exception>
#include <memory>
#include <set>
#include <string>

#include "gemm_case.h"
#include "woq/core/parallel.h"

namespace {

using namespace woq;
using namespace woq::kernels;
using namespace woq::bench;

struct Layer {
  const char* model;
  int64_t n, k;  // W is [N, K]
};

// Attention's query and output, key and value; MLP's gate and up, down.
constexpr Layer kLayers[] = {
    {"llama3_8b", 4096, 4096},    {"llama3_8b", 1024, 4096},    {"llama3_8b", 14336, 4096},
    {"llama3_8b", 4096, 14336},   {"qwen2.5_1.5b", 1536, 1536}, {"qwen2.5_1.5b", 256, 1536},
    {"qwen2.5_1.5b", 8960, 1536}, {"qwen2.5_1.5b", 1536, 8960}, {"smollm2_135m", 576, 576},
    {"smollm2_135m", 192, 576},   {"smollm2_135m", 1536, 576},  {"smollm2_135m", 576, 1536},
};
constexpr int64_t kRows[] = {1, 2, 4, 8, 16, 64, 256, 1024};
constexpr ComputeType kComputeTypes[] = {ComputeType::kFp32, ComputeType::kBf16,
                                         ComputeType::kInt8};

// The case of the last benchmark: repetitions come one after another and share it, the next
// benchmark frees it before it builds its own.
GemmCase& case_of(const Work& work) {
  static std::unique_ptr<GemmCase> current;
  if (current == nullptr || current->work().name() != work.name()) {
    current.reset();
    current = std::make_unique<GemmCase>(work);
    current->run(0);
  }
  return *current;
}

void run(benchmark::State& state, const Work& work) {
  try {
    GemmCase& gemm = case_of(work);
    double seconds = 0, limit = 0;
    for (auto _ : state) {
      const double before = measure(limit_of(work), isa_of(work), work.threads, 0.03);
      seconds = gemm.run(0.06);
      const double after = measure(limit_of(work), isa_of(work), work.threads, 0.03);
      limit = (before + after) / 2;
      state.SetIterationTime(seconds);
    }
    state.counters["GB/s"] = work.weight_bytes() / seconds / 1e9;
    state.counters["GFLOP/s"] = work.operations() / seconds / 1e9;
    state.counters["%limit"] = 100 * share(work, seconds, limit);
    state.SetLabel(gemm.kernel_name() + ", limit " + kLimitNames[static_cast<int>(limit_of(work))]);
  } catch (const std::exception& error) {
    state.SkipWithError(error.what());
  }
}

std::string name_of(const Work& work, const char* model) {
  return concat(name_of(work.dtype), "/g", work.group_size,
                work.zeros == ZeroKind::kInt ? "/asym/" : "/sym/", name_of(work.compute), "/",
                work.target, "/M", work.m, "/", model, "/", work.n, "x", work.k, "/", work.threads,
                "T");
}

// All rows, layers and teams of one kernel.
void register_kernel(Work work) {
  for (const int64_t m : kRows) {
    for (const Layer& layer : kLayers) {
      for (const int threads : std::set<int>{1, usable_threads()}) {
        work.m = m;
        work.n = layer.n;
        work.k = layer.k;
        work.threads = threads;
        // One iteration: the repeats are repetitions, so that their medians are of whole ratios.
        benchmark::RegisterBenchmark(name_of(work, layer.model).c_str(),
                                     [work](benchmark::State& state) { run(state, work); })
            ->UseManualTime()
            ->Iterations(1)
            ->Unit(benchmark::kMicrosecond);
      }
    }
  }
}

// Every target that runs here and has a kernel of its own for the pair; the reference kernels are
// the tests' oracle and take minutes for one call of many rows.
void register_all() {
  for (const DtypeTraits& dtype : kDtypes) {
    if (dtype.bits != 4 && dtype.bits != 8) continue;  // bars has the other widths
    for (const ComputeType compute : kComputeTypes) {
      for (const TargetTraits& target : kTargets) {
        if (target.target == Target::kRef || !is_built(target.target) ||
            !runs_on(target.target, cpu_features())) {
          continue;
        }
        const KernelChoice choice = select_kernel(kind_of(dtype), compute, target.name);
        if (choice.considered.back().target != target.target) continue;
        for (const int group_size : {32, 128}) {
          for (const ZeroKind zeros : {ZeroKind::kNone, ZeroKind::kInt}) {
            if (zeros == ZeroKind::kInt && !dtype.is_integer()) continue;
            register_kernel(
                {dtype.dtype, group_size, zeros, ScaleEncoding::kFp16, compute, target.name});
          }
        }
      }
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  register_all();
  benchmark::AddCustomContext("machine", machine_description());
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
