// SPDX-License-Identifier: Apache-2.0
#include "machine_limits.h"

#include <immintrin.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <fstream>
#include <map>

#include "woq/core/buffer.h"
#include "woq/core/parallel.h"
#include "woq/simd/cpu.h"
#include "woq/simd/target.h"

namespace woq::bench {

namespace {

// Independent accumulators: more than the latency (at most 6) times the instructions a cycle (2).
constexpr int kChains = 12;
constexpr int64_t kInner = 4096;  // instructions of one chain between two looks at the clock

// Instructions are written as such, so that no compiler merges or drops them.
#define WOQ_PEAK_LOOP(Register, instructions)                         \
  Register acc[kChains] = {};                                         \
  Register x = {}, y = {};                                            \
  for (int64_t i = 0; i < kInner; ++i) {                              \
    _Pragma("GCC unroll 12") for (int j = 0; j < kChains; ++j) {      \
      __asm__ volatile(instructions : "+v"(acc[j]) : "v"(x), "v"(y)); \
    }                                                                 \
  }

__attribute__((target("avx2,fma"))) void fp32_avx2() {
  WOQ_PEAK_LOOP(__m256, "vfmadd231ps %2, %1, %0")
}

__attribute__((target("avx2"))) void int8_avx2() {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i acc[kChains] = {};
  __m256i x = _mm256_set1_epi8(1), y = x;
  for (int64_t i = 0; i < kInner; ++i) {
    _Pragma("GCC unroll 12") for (int j = 0; j < kChains; ++j) {
      __m256i pairs;
      __asm__ volatile("vpmaddubsw %2, %1, %0" : "=x"(pairs) : "x"(x), "x"(y));
      __asm__ volatile("vpmaddwd %1, %0, %0" : "+x"(pairs) : "x"(ones));
      __asm__ volatile("vpaddd %1, %0, %0" : "+x"(acc[j]) : "x"(pairs));
    }
  }
}

__attribute__((target("avx512f"))) void fp32_avx512() {
  WOQ_PEAK_LOOP(__m512, "vfmadd231ps %2, %1, %0")
}

__attribute__((target("avx512f,avx512vnni"))) void int8_avx512() {
  WOQ_PEAK_LOOP(__m512i, "vpdpbusd %2, %1, %0")
}

__attribute__((target("avx512f,avx512bf16"))) void bf16_avx512() {
  WOQ_PEAK_LOOP(__m512, "vdpbf16ps %2, %1, %0")
}

// Products of whole tile registers, 16 x 16 sums of 64 bytes of K each, into four of them.
constexpr int64_t kAmxProducts = 4 * kInner;
template <bool kInteger>
void amx() {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } configuration;
  __asm__ volatile(
      "ldtilecfg %0\n"
      "tilezero %%tmm0\n tilezero %%tmm1\n tilezero %%tmm2\n tilezero %%tmm3\n"
      "tilezero %%tmm4\n tilezero %%tmm5\n tilezero %%tmm6\n tilezero %%tmm7\n"
      :
      : "m"(configuration));
  for (int64_t i = 0; i < kInner; ++i) {
    if constexpr (kInteger) {
      __asm__ volatile(
          "tdpbsud %tmm0, %tmm2, %tmm4\n tdpbsud %tmm1, %tmm2, %tmm5\n"
          "tdpbsud %tmm0, %tmm3, %tmm6\n tdpbsud %tmm1, %tmm3, %tmm7\n");
    } else {
      __asm__ volatile(
          "tdpbf16ps %tmm0, %tmm2, %tmm4\n tdpbf16ps %tmm1, %tmm2, %tmm5\n"
          "tdpbf16ps %tmm0, %tmm3, %tmm6\n tdpbf16ps %tmm1, %tmm3, %tmm7\n");
    }
  }
  __asm__ volatile("tilerelease");
}

struct Peak {
  void (*run)();
  int64_t operations;  // of one call
};

Peak peak_of(Limit limit, Isa isa) {
  const int64_t steps = kInner * kChains * 2;
  if (isa == Isa::kAvx2) {
    if (limit == Limit::kFp32) return {&fp32_avx2, steps * 8};
    if (limit == Limit::kInt8) return {&int8_avx2, steps * 32};
    return {};
  }
  if (isa == Isa::kAmx) {
    if (limit == Limit::kInt8) return {&amx<true>, kAmxProducts * 16 * 16 * 64 * 2};
    if (limit == Limit::kBf16) return {&amx<false>, kAmxProducts * 16 * 16 * 32 * 2};
    return {};
  }
  if (limit == Limit::kFp32) return {&fp32_avx512, steps * 16};
  if (limit == Limit::kInt8) return {&int8_avx512, steps * 64};
  return {&bf16_avx512, steps * 32};
}

// One linear stream. kHint, kAhead: what is fetched by hand, as __builtin_prefetch takes it.
template <int kHint, int64_t kAhead>
__attribute__((target("avx2"))) uint64_t read_stream(const uint8_t* p, int64_t bytes) {
  __m256i sum[4] = {};
  for (int64_t i = 0; i + 128 <= bytes; i += 128) {
    if constexpr (kAhead > 0) {
      __builtin_prefetch(p + i + kAhead, 0, kHint);
      __builtin_prefetch(p + i + kAhead + 64, 0, kHint);
    }
    for (int j = 0; j < 4; ++j) {
      sum[j] = _mm256_xor_si256(
          sum[j], _mm256_load_si256(reinterpret_cast<const __m256i*>(p + i + 32 * j)));
    }
  }
  const __m256i all =
      _mm256_xor_si256(_mm256_xor_si256(sum[0], sum[1]), _mm256_xor_si256(sum[2], sum[3]));
  return static_cast<uint64_t>(_mm256_extract_epi64(all, 0));
}

using ReadStream = uint64_t (*)(const uint8_t*, int64_t);
constexpr ReadStream kReadStreams[] = {&read_stream<0, 0>, &read_stream<3, 1024>,
                                       &read_stream<2, 8192>};

// Touched once by the threads that read it.
const Buffer& read_buffer() {
  static const Buffer buffer = [] {
    Buffer made(std::max<int64_t>(4 * last_level_cache_bytes(), 64 << 20) + (32 << 20));
    parallel_for(made.size(), usable_threads(), [&](int64_t begin, int64_t end) {
      std::fill(made.data() + begin, made.data() + end, uint8_t{1});
    });
    return made;
  }();
  return buffer;
}

// Bytes per second of one pass over the buffer.
double read_rate(ReadStream read, int threads) {
  static std::atomic<uint64_t> sink;
  const Buffer& buffer = read_buffer();
  const double start = now();
  parallel_for(buffer.size() / 128, threads, [&](int64_t begin, int64_t end) {
    sink += read(buffer.data() + begin * 128, (end - begin) * 128);
  });
  return static_cast<double>(buffer.size()) / (now() - start);
}

// The fastest way to read differs between machines and numbers of threads. Chosen once.
ReadStream fastest_stream(int threads) {
  static std::map<int, ReadStream> chosen;
  ReadStream& stream = chosen[threads];
  double best = 0;
  if (stream != nullptr) return stream;
  for (const ReadStream candidate : kReadStreams) {
    std::vector<double> rates;
    for (int repeat = 0; repeat < 5; ++repeat) rates.push_back(read_rate(candidate, threads));
    if (median(rates) > best) {
      best = median(rates);
      stream = candidate;
    }
  }
  return stream;
}

}  // namespace

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<int64_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// The kernel's word first: glibc counts ten times the cache on some AMD processors.
int64_t last_level_cache_bytes() {
  int64_t kib = 0;
  char unit = 0;
  if (std::ifstream file("/sys/devices/system/cpu/cpu0/cache/index3/size");
      file >> kib >> unit && unit == 'K' && kib > 0) {
    return kib << 10;
  }
  const int64_t size = sysconf(_SC_LEVEL3_CACHE_SIZE);
  return size > 0 ? size : int64_t{32} << 20;
}

bool has_limit(Limit limit, Isa isa) {
  if (limit == Limit::kRead) return true;
  if (isa == Isa::kAvx2) return limit != Limit::kBf16 && runs_on(Target::kAvx2, cpu_features());
  if (isa == Isa::kAmx) return limit != Limit::kFp32 && runs_on(Target::kAmx, cpu_features());
  const Target needed = limit == Limit::kBf16   ? Target::kAvx512Bf16
                        : limit == Limit::kInt8 ? Target::kAvx512Vnni
                                                : Target::kAvx512;
  return runs_on(needed, cpu_features());
}

double measure(Limit limit, Isa isa, int threads, double seconds) {
  if (limit == Limit::kRead) {
    const ReadStream stream = fastest_stream(threads);
    std::vector<double> rates;
    const double start = now();
    do {
      rates.push_back(read_rate(stream, threads));
    } while (now() - start < seconds);
    return median(rates);
  }
  const Peak peak = peak_of(limit, isa);
  std::vector<double> rates(static_cast<size_t>(threads), 0.0);
  run_team(threads, [&](const TeamMember& member) {
    int64_t calls = 0;
    member.barrier();
    const double start = now();
    do {
      peak.run();
      ++calls;
    } while (now() - start < seconds);
    rates[static_cast<size_t>(member.index)] =
        static_cast<double>(calls * peak.operations) / (now() - start);
  });
  double sum = 0;
  for (const double rate : rates) sum += rate;
  return sum;
}

std::string machine_description() {
  std::string cpu = "unknown CPU", line;
  for (std::ifstream file("/proc/cpuinfo"); std::getline(file, line);) {
    if (line.rfind("model name", 0) == 0) {
      cpu = line.substr(line.find(": ") + 2);
      break;
    }
  }
  return cpu + ", " + std::to_string(usable_threads()) + " threads, last-level cache " +
         std::to_string(last_level_cache_bytes() >> 20) + " MiB, compiler " + __VERSION__;
}

}  // namespace woq::bench
